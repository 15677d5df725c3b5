"""Conversion: the weights are those of loading, the folder appears at once, damage is refused."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from constant_model import constant_model
from tiny_tokenizer import byte_tokenizer

from minigpt import GPTModel
from minigpt.bundled import BUNDLED_MODEL
from minigpt.checkpoint import open_checkpoint, write_safetensors
from minigpt.config import GPTConfig
from minigpt.conversion.convert import Progress, convert
from minigpt.description import describe
from minigpt.errors import CheckpointError, InputError, SourceError
from minigpt.kernels.layout import bf16_to_f32, f32_to_bf16
from minigpt.source import open_source
from minigpt.weights.table import tensor_shapes

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden"
SOURCES = [
    "cerebras",
    "gelu-tanh-shards",
    "heads-17-bf16",
    "inverse-layer-f64",
    "silu-f16",
    "unscaled-inverse-untied",
]
QUANTIZED = ["int8", "int4"]
IDS = np.arange(1, 20)[None]


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def logits(folder: Path, dtype: str = "auto") -> np.ndarray:
    return GPTModel.from_pretrained(folder, dtype, 2)(IDS).logits


# ---- the weights ----


@pytest.mark.parametrize("dtype", ["f32", "bf16", *QUANTIZED])
@pytest.mark.parametrize("source", SOURCES)
def test_a_converted_folder_has_the_logits_of_its_source(
    source: str, dtype: str, tmp_path: Path
) -> None:
    convert(GOLDEN / source, tmp_path / "new", dtype, threads=2)
    model = GPTModel.from_pretrained(tmp_path / "new", threads=1)
    assert model.dtype == dtype
    assert logits(GOLDEN / source, dtype).tobytes() == model(IDS).logits.tobytes()


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_mapped_weights_equal_those_quantized_by_loading(dtype: str, tmp_path: Path) -> None:
    convert(GOLDEN / "cerebras", tmp_path / "new", dtype)
    mapped, loaded = (
        GPTModel.from_pretrained(folder, dtype).engine.weights
        for folder in (tmp_path / "new", GOLDEN / "cerebras")
    )
    for name in loaded.tensors:
        assert mapped.tensors[name].tobytes() == loaded.tensors[name].tobytes()
    for name in loaded.scales:
        assert mapped.scales[name].tobytes() == loaded.scales[name].tobytes()
        for array in (mapped.tensors[name], mapped.scales[name]):
            assert array.ctypes.data % 64 == 0  # a cache line


@pytest.mark.parametrize("source", ["cerebras", "unscaled-inverse-untied"])
def test_int4_stores_wte_and_the_head_in_int8(source: str, tmp_path: Path) -> None:
    """The layers have the integers of int4, wte and the head those of int8."""
    for dtype in QUANTIZED:
        convert(GOLDEN / source, tmp_path / dtype, dtype)
    int4, int8 = (tensors_of(tmp_path / dtype) for dtype in ("int4", "int8"))
    ends = {name for name in int4 if "wte.weight" in name or "lm_head.weight" in name}
    assert len(ends) == (2 if source == "cerebras" else 4)
    for name in ends:
        assert int4[name].dtype == int8[name].dtype
        assert int4[name].tobytes() == int8[name].tobytes()
    layers = [t for name, t in int4.items() if ".h." in name and name.endswith(".weight")]
    assert {t.dtype for t in layers if t.ndim > 2} == {np.dtype(np.uint8)}


def test_a_folder_of_an_earlier_version_has_wte_in_int4(tmp_path: Path) -> None:
    """tests/golden/int4-throughout, with the logits of the version that wrote it. It is loaded and
    copied as it is."""
    old = GOLDEN / "int4-throughout"
    convert(old, tmp_path / "copy", "int4")
    for folder in (old, tmp_path / "copy"):
        weights = GPTModel.from_pretrained(folder, threads=1).engine.weights
        assert (weights.dtype, weights.wte_dtype) == ("int4", "int4")
        expected = np.load(old / "logits.npy")  # equal on processors of the kind that wrote it
        np.testing.assert_allclose(logits(folder), expected, atol=0.01 * np.abs(expected).max())
    assert tensors_of(tmp_path / "copy").keys() == tensors_of(old).keys()
    for name, tensor in tensors_of(old).items():
        assert tensors_of(tmp_path / "copy")[name].tobytes() == tensor.tobytes()
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "minigpt", "bits": 4, "block": 64}
    convert(old, tmp_path / "wide", "f32")
    convert(tmp_path / "wide", tmp_path / "new", "int4")
    assert GPTModel.from_pretrained(tmp_path / "new").engine.weights.wte_dtype == "int8"
    C, V = 15, 97
    difference = describe(tmp_path / "new").weights_bytes - describe(old).weights_bytes
    assert abs(difference - C * V * (8.25 - 4.5) / 8) < 1  # each is rounded to bytes


def test_matrices_of_other_dtypes_than_a_folder_may_have_are_an_error(tmp_path: Path) -> None:
    """A layer of int8 in a folder of int4."""
    for dtype in QUANTIZED:
        convert(GOLDEN / "cerebras", tmp_path / dtype, dtype)
    tensors, other = tensors_of(tmp_path / "int4"), tensors_of(tmp_path / "int8")
    name = "transformer.h.0.mlp.c_fc.weight"
    for each in (name, f"{name}.scales"):
        tensors[each] = other[each]
    write_safetensors(tmp_path / "int4" / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"c_fc.weight is I8 .* it is U8"):
        open_source(tmp_path / "int4")


def test_f32_equals_the_source_and_bf16_is_rounded(tmp_path: Path) -> None:
    convert(GOLDEN / "cerebras", tmp_path / "f32", "f32")
    convert(GOLDEN / "cerebras", tmp_path / "bf16", "bf16")
    source, wide, narrow = (
        tensors_of(f) for f in (GOLDEN / "cerebras", tmp_path / "f32", tmp_path / "bf16")
    )
    for name, tensor in wide.items():
        np.testing.assert_array_equal(tensor, source[name])
        expected = f32_to_bf16(tensor) if tensor.ndim == 2 else tensor
        np.testing.assert_array_equal(narrow[name], expected)


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("source", ["cerebras", "unscaled-inverse-untied"])
def test_a_quantized_folder_is_dequantized(source: str, dtype: str, tmp_path: Path) -> None:
    convert(GOLDEN / source, tmp_path / "int8", dtype)
    convert(tmp_path / "int8", tmp_path / "wide", "f32")
    weights = GPTModel.from_pretrained(tmp_path / "int8").engine.weights
    wide = tensors_of(tmp_path / "wide")
    assert len(wide) == len(weights.tensors)
    for stored, tensor in wide.items():
        loaded = weights.tensor(stored.removeprefix("transformer."))
        expected = bf16_to_f32(loaded) if loaded.dtype == np.uint16 else loaded
        np.testing.assert_array_equal(tensor, expected)


def test_saving_a_quantized_model(tmp_path: Path) -> None:
    convert(GOLDEN / "cerebras", tmp_path / "int8", "int8")
    convert(tmp_path / "int8", tmp_path / "wide", "f32")
    GPTModel.from_pretrained(tmp_path / "int8").save_pretrained(tmp_path / "saved")
    assert logits(tmp_path / "saved").tobytes() == logits(tmp_path / "wide").tobytes()


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_the_code_in_docs_format_dequantizes_them(dtype: str, tmp_path: Path) -> None:
    """By the lines of docs/format.md themselves."""
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    convert(GOLDEN / "cerebras", tmp_path / "new", dtype)
    weights = GPTModel.from_pretrained(tmp_path / "new").engine.weights
    stored = tensors_of(tmp_path / "new")
    for name in weights.scales:
        scales = bf16_to_f32(stored[f"transformer.{name}.scales"])
        K, N = 64 * scales.shape[1], 16 * scales.shape[0]
        qweight = stored[f"transformer.{name}"]
        names = {"np": np, "qweight": qweight, "scales": scales}
        program = programs[0 if qweight.dtype == np.int8 else 1]
        exec(program, names | {"K": K, "N": N}, found := {})
        expected = weights.tensor(name)
        w = found["w"].T if name == "wte.weight" else found["w"]
        rows, columns = expected.shape
        np.testing.assert_array_equal(w[:rows, :columns], expected)


def test_the_config_says_that_it_is_quantized(tmp_path: Path) -> None:
    convert(GOLDEN / "cerebras", tmp_path / "new", "int4")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    quantization = {"quant_method": "minigpt", "bits": 4, "block": 64, "wte_bits": 8}
    assert config["quantization_config"] == quantization
    assert config["activation_function"] == "gelu"


# ---- what stands beside the weights ----

SIDE_FILES = {
    "generation_config.json": b'{"eos_token_id": [256, 46], "temperature": 0.7}',
    "chat_template.jinja": "{{ messages }} \u00e9".encode(),
    "tokenizer_config.json": b'{"eos_token": "<|endoftext|>", "chat_template": "{{ x }}"}',
    "special_tokens_map.json": b'{"eos_token": "<|endoftext|>"}',
}


def chat_model(folder: Path, **config: object) -> Path:
    """A model with a tokenizer, several ends, and files that only other programs read."""
    constant_model(folder, np.zeros(257), **{"eos_token_id": 256, "bos_token_id": 7, **config})
    byte_tokenizer(folder)
    for name, content in SIDE_FILES.items():
        (folder / name).write_bytes(content)
    return folder


def assert_kept(folder: Path) -> None:
    for name, content in SIDE_FILES.items():
        assert (folder / name).read_bytes() == content, name
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (data["eos_token_id"], data["bos_token_id"]) == ([256, 46], 7)
    config = GPTConfig.from_source(folder)
    assert (config.eos_token_ids, config.start_token_id) == ((256, 46), 7)


@pytest.mark.parametrize("dtype", ["f32", "int8"])
def test_ends_and_side_files_are_kept(dtype: str, tmp_path: Path) -> None:
    source = chat_model(tmp_path / "m")
    convert(source, tmp_path / "new", dtype, threads=1)
    assert_kept(tmp_path / "new")
    GPTModel.from_pretrained(tmp_path / "new", threads=1).save_pretrained(tmp_path / "saved")
    assert_kept(tmp_path / "saved")


def test_saving_over_another_model_leaves_none_of_its_ends(tmp_path: Path) -> None:
    source = constant_model(tmp_path / "m", np.zeros(9), eos_token_id=[5, 3], bos_token_id=2)
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "generation_config.json").write_bytes(b'{"eos_token_id": 8, "bos_token_id": 1}')
    model = GPTModel.from_pretrained(source, threads=1)
    model.save_pretrained(folder)
    assert GPTConfig.from_source(folder) == model.config


def test_saving_over_its_own_source(tmp_path: Path) -> None:
    source = chat_model(tmp_path / "m")
    GPTModel.from_pretrained(source, threads=1).save_pretrained(source)
    assert_kept(source)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    reports: list[Progress] = []
    convert(GOLDEN / "cerebras", tmp_path / "new", "int8", progress=reports.append)
    last = reports[-1]
    assert (last.tensors, last.nbytes) == (last.all_tensors, last.all_nbytes)
    assert [p.nbytes for p in reports] == sorted({p.nbytes for p in reports})
    assert last.nbytes == sum(t.nbytes for t in tensors_of(tmp_path / "new").values())


# ---- the folder appears complete or not at all ----


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_folder_or_file_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for name in ("full", "file", "full/mine"):
        with pytest.raises(CheckpointError, match="already exists"):
            convert(GOLDEN / "cerebras", tmp_path / name)
    assert names_in(tmp_path) == ["file", "full"]
    assert (tmp_path / "full" / "mine").read_text() == "kept"


def test_an_empty_folder_and_new_parents_are_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "a/b/c"):
        convert(GOLDEN / "cerebras", tmp_path / name)
        assert (tmp_path / name / "model.safetensors").is_file()


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.tensors == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(GOLDEN / "cerebras", tmp_path / "new", progress=interrupt)
    assert names_in(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_after_a_kill_the_next_conversion_cleans_up(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from minigpt.conversion.convert import convert\n"
        "def die(progress):\n"
        "    if progress.tensors == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "convert(sys.argv[1], sys.argv[2], progress=die)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, GOLDEN / "cerebras", tmp_path / "new"],
        cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert names_in(tmp_path) != []
    assert not (tmp_path / "new").exists()
    convert(GOLDEN / "cerebras", tmp_path / "new")
    assert names_in(tmp_path) == ["new"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.slow
def test_memory_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """The model is 0.4 GB of zeros in a sparse file; its largest tensor has 4 MB."""
    sizes = {"n_layer": 32, "n_head": 4, "n_embd": 512, "n_positions": 64, "vocab_size": 500}
    config = GPTConfig.from_dict(sizes, "config")
    header, end = {}, 0
    for name, shape in tensor_shapes(config).items():
        nbytes = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    with (tmp_path / "model.safetensors").open("wb") as file:
        text = json.dumps(header).encode()
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    program = (
        "import sys\n"
        "from minigpt.benchmark import peak_rss_bytes\n"
        "from minigpt.conversion.convert import convert\n"
        "convert(sys.argv[1], sys.argv[2] + '/small', 'int8')\n"  # all is compiled
        "before = peak_rss_bytes()\n"
        "convert(sys.argv[3], sys.argv[2] + '/new', 'bf16')\n"
        "print(peak_rss_bytes() - before)\n"
    )
    arguments = [GOLDEN / "cerebras", tmp_path, tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 64 << 20


# ---- refused ----


@pytest.mark.parametrize("dtype", ["auto", "int2", 8, None])
def test_an_unknown_dtype(dtype: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="f32, bf16, int8, int4"):
        convert(GOLDEN / "cerebras", tmp_path / "new", dtype)  # type: ignore[arg-type]
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("progress 5: must be a function or None", {"progress": 5}),
        ("calibration 5: must be a text", {"dtype": "int4", "calibration": 5}),
        ("calibration False: must be a text", {"dtype": "int4", "calibration": False}),
    ],
)
def test_an_option_of_another_type(
    message: str, options: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        convert("nowhere", tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        convert(tmp_path / "nowhere", tmp_path / "new")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite(number: float, dtype: str, tmp_path: Path) -> None:
    tensors = tensors_of(GOLDEN / "cerebras")
    name = next(name for name in tensors if name.endswith("h.1.mlp.c_fc.weight"))
    tensors[name] = tensors[name].copy()
    tensors[name][3, 2] = number
    (tmp_path / "source").mkdir()
    write_safetensors(tmp_path / "source" / "model.safetensors", tensors)
    (tmp_path / "source" / "config.json").write_bytes(
        (GOLDEN / "cerebras" / "config.json").read_bytes()
    )
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc\.weight holds NaN or infinite"):
        convert(tmp_path / "source", tmp_path / "new", dtype)
    assert names_in(tmp_path) == ["source"]


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_a_quantized_folder_is_copied_to_its_own_dtype(dtype: str, tmp_path: Path) -> None:
    convert(GOLDEN / "unscaled-inverse-untied", tmp_path / "once", dtype)
    convert(tmp_path / "once", tmp_path / "twice", dtype)
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "twice")
    )
    assert first == second


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("stored", QUANTIZED)
def test_a_quantized_folder_in_another_dtype(stored: str, dtype: str, tmp_path: Path) -> None:
    """Loaded and converted, it is the folder of its dequantized numbers in that dtype."""
    convert(GOLDEN / "cerebras", tmp_path / "quantized", stored)
    convert(tmp_path / "quantized", tmp_path / "wide", "f32")
    convert(tmp_path / "quantized", tmp_path / "other", dtype)
    if stored != dtype:
        expected = logits(tmp_path / "wide", dtype).tobytes()
        assert logits(tmp_path / "quantized", dtype).tobytes() == expected
        assert logits(tmp_path / "other", dtype).tobytes() == expected


def test_an_int4_folder_is_not_calibrated_again(tmp_path: Path) -> None:
    convert(GOLDEN / "cerebras", tmp_path / "int4", "int4")
    with pytest.raises(InputError, match="is int4 already; calibrate the original"):
        convert(tmp_path / "int4", tmp_path / "new", "int4", calibration="a text")
    assert names_in(tmp_path) == ["int4"]


def test_int4_of_a_quantized_folder_can_be_calibrated(tmp_path: Path) -> None:
    convert(BUNDLED_MODEL, tmp_path / "plain", "int4")
    convert(BUNDLED_MODEL, tmp_path / "fitted", "int4", calibration="Once upon a time " * 20)
    plain, fitted = (tensors_of(tmp_path / name)[C_FC] for name in ("plain", "fitted"))
    assert plain.shape == fitted.shape
    assert not np.array_equal(plain, fitted)


WTE = "transformer.wte.weight"
C_FC = "transformer.h.0.mlp.c_fc.weight"


def without(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in tensors.items() if key != name}


DAMAGES = {
    "scales missing": lambda t: without(t, C_FC + ".scales"),
    "qweight missing": lambda t: without(t, C_FC),
    "a vector missing": lambda t: without(t, "transformer.ln_f.bias"),
    "fewer scales": lambda t: t | {C_FC + ".scales": t[C_FC + ".scales"][:-1]},
    "scales of f32": lambda t: t | {C_FC + ".scales": t[C_FC + ".scales"].astype(np.float32)},
    "qweight of int16": lambda t: t | {C_FC: t[C_FC].astype(np.int16)},
    "a smaller qweight": lambda t: t | {C_FC: t[C_FC][:, :-1]},
    "a flat qweight": lambda t: t | {WTE: t[WTE].reshape(-1)},
    "a matrix of floats": lambda t: t | {WTE: t[WTE].astype(np.float32)},
    "wpe of f32": lambda t: t | {"transformer.wpe.weight": np.zeros((4, 4), np.float32)},
}


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder(damage: str, dtype: str, tmp_path: Path) -> None:
    convert(GOLDEN / "cerebras", tmp_path / "new", dtype)
    damaged = DAMAGES[damage](tensors_of(tmp_path / "new"))
    write_safetensors(tmp_path / "new" / "model.safetensors", damaged)
    with pytest.raises(CheckpointError, match="tensor "):
        GPTModel.from_pretrained(tmp_path / "new")


def test_a_truncated_file(tmp_path: Path) -> None:
    convert(GOLDEN / "cerebras", tmp_path / "new", "int8")
    file = tmp_path / "new" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        GPTModel.from_pretrained(tmp_path / "new")


def test_calibration_leaves_no_tokenizer_file_out(tmp_path: Path) -> None:
    """Calibrating reads one form of a vocabulary; a folder with two keeps both."""
    convert(BUNDLED_MODEL, tmp_path / "source", "f32")
    (tmp_path / "source" / "vocab.json").write_text('{"a": 0}', encoding="utf-8")
    (tmp_path / "source" / "merges.txt").write_text("", encoding="utf-8")
    convert(tmp_path / "source", tmp_path / "new", "int4", calibration="Once upon a time " * 20)
    assert names_in(tmp_path / "source") == names_in(tmp_path / "new")
