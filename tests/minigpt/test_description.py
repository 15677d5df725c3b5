"""`describe`: the dtype and head of a source, its parameters, and its memory once loaded."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from minigpt.bundled import BUNDLED_MODEL
from minigpt.checkpoint import Checkpoint, write_safetensors
from minigpt.conversion.convert import convert
from minigpt.description import describe
from minigpt.errors import SourceError
from minigpt.kernels.layout import f32_to_bf16
from minigpt.source import open_source
from minigpt.weights.loading import load_weights
from minigpt.weights.table import HEAD

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.mark.parametrize(
    ("folder", "dtype", "tied"),
    [
        ("cerebras", "f32", True),
        ("relu-bf16", "bf16", True),
        ("silu-f16", "f16", True),
        ("inverse-layer-f64", "f64", True),
        ("unscaled-inverse-untied", "f32", False),
    ],
)
def test_dtype_and_head(folder: str, dtype: str, tied: bool) -> None:
    found = describe(GOLDEN / folder)
    assert (found.dtype, found.tied_head) == (dtype, tied)
    assert found.source == str(GOLDEN / folder)
    assert found.disk_bytes == sum((GOLDEN / folder / name).stat().st_size for name in found.files)
    assert found.memory_bytes == found.weights_bytes + found.kv_cache_bytes


@pytest.mark.parametrize("folder", ["cerebras", "relu-bf16", "unscaled-inverse-untied"])
def test_memory_is_that_of_the_loaded_model(folder: str) -> None:
    """Without the padding of panels, of which small models have much."""
    weights = load_weights(open_source(GOLDEN / folder))
    tensors = [weights.tensor(name) for name in weights.tensors]
    found = describe(GOLDEN / folder)
    assert found.parameters == sum(tensor.size for tensor in tensors)
    assert found.weights_bytes == sum(tensor.nbytes for tensor in tensors) <= weights.nbytes


def test_a_float32_head_beside_bf16_matrices(tmp_path: Path) -> None:
    """Loading takes f32 for all of them, and so does the memory that is reported."""
    source = open_source(GOLDEN / "unscaled-inverse-untied")
    tensors = {
        source.names[name]: (
            f32_to_bf16(source.read(name))
            if len(shape) == 2 and name != HEAD
            else source.read(name)
        )
        for name, shape in source.shapes.items()
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    shutil.copy(source.path / "config.json", tmp_path)
    found, weights = describe(tmp_path), load_weights(open_source(tmp_path))
    assert (found.dtype, weights.dtype) == ("bf16+f32", "f32")
    assert found.weights_bytes == describe(source).weights_bytes


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantized_folder(dtype: str, tmp_path: Path) -> None:
    convert(GOLDEN / "cerebras", tmp_path / "new", dtype)
    found, original = describe(tmp_path / "new"), describe(GOLDEN / "cerebras")
    assert found.dtype == dtype
    assert found.parameters == original.parameters
    assert found.weights_bytes < 0.5 * original.weights_bytes
    assert found.kv_cache_bytes == original.kv_cache_bytes // 2  # bfloat16


def test_headers_alone_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "read", lambda self, name: pytest.fail(f"reads {name}"))
    assert describe().source == str(BUNDLED_MODEL)
    assert asdict(describe(open_source(BUNDLED_MODEL))) == asdict(describe())


def test_a_wrong_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        describe(tmp_path / "absent")
