"""A ModelSource: opened by headers alone, one GGUF header for all, tensors by the table's names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from minigpt import GPTModel, GPTTokenizer
from minigpt.checkpoint import Checkpoint, gguf_parts, write_safetensors
from minigpt.config import GPTConfig
from minigpt.conversion.convert import convert
from minigpt.conversion.gguf_export import save_gguf
from minigpt.errors import ConfigError, SourceError
from minigpt.kernels.layout import bf16_to_f32, f32_to_bf16
from minigpt.source import open_source
from minigpt.tokenizer.files import read_vocabulary
from minigpt.weights.packed import float32_tensors, map_quantized
from minigpt.weights.table import HEAD, SCALES, tensor_shapes

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TASKS = GOLDEN / "tasks"  # has a tokenizer, which a GGUF file needs
SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 6, "n_positions": 5, "vocab_size": 70}
CONFIG = GPTConfig.from_dict(SIZES, "config")

Tensors = dict[str, np.ndarray]


@pytest.fixture
def tensors() -> Tensors:
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(CONFIG)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(folder: Path, tensors: Tensors) -> Path:
    (folder / "config.json").write_text(json.dumps(SIZES), encoding="utf-8")
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture
def no_tensor_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Checkpoint, name: str) -> None:
        pytest.fail(f"reads {name}")

    monkeypatch.setattr(Checkpoint, "read", read)


# ---- opening


@pytest.mark.usefixtures("no_tensor_is_read")
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_opening_reads_headers_alone(prefix: str, tensors: Tensors, tmp_path: Path) -> None:
    stored = {prefix + name: tensor for name, tensor in tensors.items()}
    write(tmp_path, stored | {HEAD: tensors["wte.weight"], "score.weight": np.ones(3, np.float32)})
    source = open_source(tmp_path)
    assert (source.path, source.files, source.config) == (tmp_path, tmp_path, CONFIG)
    assert (source.prefix, source.quantized) == (prefix, None)
    assert source.names == {name: prefix + name for name in tensors} | {HEAD: HEAD}


def test_wrapped_weights_are_used_under_plain_names(tensors: Tensors, tmp_path: Path) -> None:
    """In gradients and in a saved folder; read from two shards of which one has a tied head."""
    wrapped = {f"_orig_mod.transformer.{name}": each for name, each in tensors.items()}
    wrapped["_orig_mod.lm_head.weight"] = wrapped.pop("_orig_mod.transformer.wte.weight")
    (tmp_path / "config.json").write_text(json.dumps(SIZES), encoding="utf-8")
    shards = (sorted(wrapped)[:4], sorted(wrapped)[4:])
    for number, names in enumerate(shards):
        file = tmp_path / f"model-{number}.safetensors"
        write_safetensors(file, {name: wrapped[name] for name in names})
    index = {name: f"model-{number}.safetensors" for number in (0, 1) for name in shards[number]}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    model = GPTModel.from_pretrained(tmp_path, threads=1)
    plain = tmp_path / "plain"
    plain.mkdir()
    expected = GPTModel.from_pretrained(write(plain, tensors), threads=1)
    ids = np.array([[1, 2, 3]])
    assert np.array_equal(model(ids).logits, expected(ids).logits)
    _, grads = model.loss_and_grad(ids, ids)
    assert grads.keys() == {f"transformer.{name}" for name in tensors}
    model.save_pretrained(tmp_path / "saved")
    saved = open_source(tmp_path / "saved")
    assert saved.names == {name: f"transformer.{name}" for name in tensors}


def test_an_opened_source_is_a_source() -> None:
    source = open_source(TASKS)
    assert open_source(source) is source
    ids = GPTTokenizer.from_pretrained(source).encode("abc", return_tensors="np")
    expected = GPTModel.from_pretrained(TASKS, threads=1)(ids).logits
    assert np.array_equal(GPTModel.from_pretrained(source, threads=1)(ids).logits, expected)


def test_a_config_may_be_given(tensors: Tensors, tmp_path: Path) -> None:
    write(tmp_path, tensors)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        open_source(tmp_path)
    assert open_source(tmp_path, CONFIG).config is CONFIG


def test_a_wrong_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        open_source(tmp_path / "absent")
    shutil.copy(TASKS / "config.json", tmp_path)
    with pytest.raises(SourceError, match="holds no weights"):
        open_source(tmp_path)


def test_a_gguf_header_is_parsed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It serves config, tensors and tokenizer, in a conversion and in the three of a load."""
    save_gguf(TASKS, tmp_path / "model.gguf", "f32")
    parsed: list[Path] = []
    read_gguf = gguf_parts.read_gguf

    def counting(file):
        parsed.append(file.path)
        return read_gguf(file)

    monkeypatch.setattr(gguf_parts, "read_gguf", counting)
    convert(tmp_path / "model.gguf", tmp_path / "int4", "int4", calibration="Once upon a time")
    assert parsed == [tmp_path / "model.gguf"]
    save_gguf(tmp_path / "model.gguf", tmp_path / "again.gguf", "f32")
    assert len(parsed) == 2
    source = open_source(tmp_path / "again.gguf")
    GPTModel.from_pretrained(source, threads=1)
    GPTTokenizer.from_pretrained(source)
    assert parsed[2:] == [tmp_path / "again.gguf"]
    assert read_vocabulary(source.files).tokens == read_vocabulary(TASKS).tokens


# ---- the head


def test_a_head_is_compared_with_wte_bit_by_bit(tensors: Tensors, tmp_path: Path) -> None:
    wte = tensors["wte.weight"]
    assert open_source(write(tmp_path, tensors)).tied
    assert open_source(write(tmp_path, tensors | {HEAD: wte.copy()})).tied
    other = wte.copy()
    other[-1, -1] = np.nextafter(other[-1, -1], np.float32(9))
    source = open_source(write(tmp_path, tensors | {HEAD: other}))
    assert not source.tied
    assert source.shapes[HEAD] == wte.shape
    assert not open_source(write(tmp_path, tensors | {HEAD: wte.astype(np.float64)})).tied


@pytest.mark.parametrize("folder", ["cerebras", "unscaled-inverse-untied"])
def test_a_quantized_source(folder: str, tmp_path: Path) -> None:
    convert(GOLDEN / folder, tmp_path / "int8", "int8")
    source, original = open_source(tmp_path / "int8"), open_source(GOLDEN / folder)
    assert source.quantized == "int8"
    assert (source.tied, source.shapes) == (original.tied, original.shapes)
    assert "wte.weight" + SCALES in source.names
    weights = map_quantized(source, "int8")
    for name in source.shapes:
        expected = weights.tensor(name)  # wpe as the bits of bfloat16
        assert np.array_equal(source.read(name), expected)
        wide = bf16_to_f32(expected) if expected.dtype == np.uint16 else expected
        assert np.array_equal(source.read_float32(name), wide)
        if expected.ndim == 2:
            rows = [rows for _, rows in source.row_chunks(name)]
            assert np.array_equal(np.concatenate(rows), expected)
            chunks = [chunk for _, column, chunk in source.chunks(name) if column == 0]
            assert np.array_equal(np.concatenate(chunks), expected)


# ---- reading tensors


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, "bf16"])
def test_reading_float_tensors(dtype, tensors: Tensors, tmp_path: Path, monkeypatch) -> None:
    """By chunks of any size, and at once: bfloat16 stays, others become float32."""
    monkeypatch.setattr("minigpt.source._CHUNK_BYTES", 1)  # the smallest chunks
    stored = {
        name: f32_to_bf16(tensor) if dtype == "bf16" else tensor.astype(dtype)
        for name, tensor in tensors.items()
    }
    source = open_source(write(tmp_path, stored))
    for name, tensor in stored.items():
        expected = tensor if dtype == "bf16" else tensor.astype(np.float32)
        read = source.read(name)
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)
        wide = source.read_float32(name)
        assert wide.dtype == np.float32
        assert wide.flags.c_contiguous
        np.testing.assert_array_equal(wide, bf16_to_f32(read) if dtype == "bf16" else read)
    rows = list(source.row_chunks("wte.weight"))
    assert [first for first, _ in rows] == [0, 64]
    wte = source.read("wte.weight")
    np.testing.assert_array_equal(np.concatenate([part for _, part in rows]), wte)
    chunks = list(source.chunks("wte.weight"))
    assert [(row, column) for row, column, _ in chunks] == [(0, 0), (64, 0)]
    np.testing.assert_array_equal(np.concatenate([chunk for _, _, chunk in chunks]), wte)


def test_a_copy_does_not_change_the_source(tensors: Tensors, tmp_path: Path) -> None:
    source = open_source(write(tmp_path, tensors))
    source.read_float32("wte.weight")[:] = 0
    np.testing.assert_array_equal(source.read("wte.weight"), tensors["wte.weight"])


def test_all_tensors_as_float32(tmp_path: Path) -> None:
    """Those of a GGUF file lie transposed and come C-contiguous; int8 ones are dequantized."""
    save_gguf(TASKS, tmp_path / "model.gguf", "f32")
    convert(TASKS, tmp_path / "int8", "int8")
    expected = float32_tensors(open_source(TASKS))
    assert expected.keys() == tensor_shapes(open_source(TASKS).config).keys()
    for path, error in ((tmp_path / "model.gguf", 0), (tmp_path / "int8", 0.01)):
        found = float32_tensors(open_source(path))
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert tensor.dtype == np.float32
            assert tensor.flags.c_contiguous
            assert abs(tensor - expected[name]).max() <= error * abs(expected[name]).max()
