"""Loading: tensors that fit the config and those that do not, the head, dtypes in memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from minigpt.checkpoint import write_safetensors
from minigpt.config import GPTConfig
from minigpt.errors import CheckpointError
from minigpt.kernels import reference
from minigpt.kernels.layout import bf16_to_f32, f32_to_bf16
from minigpt.source import open_source
from minigpt.weights.loading import load_weights
from minigpt.weights.packed import Weights
from minigpt.weights.table import is_packed, tensor_shapes

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 6, "n_positions": 5, "vocab_size": 11}
CONFIG = GPTConfig.from_dict(SIZES, "config")
UNTIED = GPTConfig.from_dict({**SIZES, "tie_word_embeddings": False}, "config")
HEAD = "lm_head.weight"

Tensors = dict[str, np.ndarray]


@pytest.fixture
def tensors() -> Tensors:
    rng = np.random.default_rng(3)
    return {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in tensor_shapes(CONFIG).items()
    }


def load(
    folder: Path, tensors: Tensors, dtype: str = "auto", config: GPTConfig = CONFIG
) -> Weights:
    """The tensors, written to a file and loaded."""
    write_safetensors(folder / "model.safetensors", tensors)
    return load_weights(open_source(folder, config), dtype)


def prefixed(tensors: Tensors) -> Tensors:
    return {f"transformer.{name}": tensor for name, tensor in tensors.items()}


def assert_same(weights: Weights, expected: Tensors) -> None:
    assert weights.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        loaded = weights.tensor(name)
        assert loaded.dtype == tensor.dtype, name
        np.testing.assert_array_equal(loaded, tensor, name)


# ---- names ----


def test_names_may_have_the_prefix(tensors: Tensors, tmp_path: Path) -> None:
    plain = load(tmp_path, tensors)
    assert plain.prefix == ""
    assert_same(plain, tensors)
    with_prefix = load(tmp_path, prefixed(tensors))
    assert with_prefix.prefix == "transformer."
    assert_same(with_prefix, tensors)


def test_a_tensor_with_and_without_the_prefix(tensors: Tensors, tmp_path: Path) -> None:
    message = "tensor ln_f.bias is there twice, as 'ln_f.bias' and 'transformer.ln_f.bias'"
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, {**prefixed(tensors), "ln_f.bias": tensors["ln_f.bias"]})


@pytest.mark.parametrize("inner", ["", "transformer."])
@pytest.mark.parametrize(
    "wrapper",
    ["_orig_mod.", "module.", "model.", "base_model.model.", "_orig_mod.module._orig_mod.", "any."],
)
def test_the_prefix_of_a_wrapper_does_not_count(
    wrapper: str, inner: str, tensors: Tensors, tmp_path: Path
) -> None:
    head = np.random.default_rng(1).standard_normal((11, 6), np.float32)
    stored = {wrapper + inner + name: tensor for name, tensor in tensors.items()}
    plain = load(tmp_path, {**stored, "score.weight": np.ones(6, np.float32)})
    assert plain.prefix == inner
    assert_same(plain, tensors)
    untied = load(tmp_path, {**stored, wrapper + HEAD: head}, config=UNTIED)
    assert_same(untied, {**tensors, HEAD: head})


def test_the_tensors_of_two_models(tensors: Tensors, tmp_path: Path) -> None:
    sides = ("student", "teacher")
    two = {f"{side}.{name}": tensor for side in sides for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match=r"several models, .* 'student\.' and 'teacher\.'"):
        load(tmp_path, two)
    assert_same(load(tmp_path, {**two, **tensors}), tensors)


@pytest.mark.parametrize("name", ["wte.weight", "h.1.attn.c_attn.bias", "ln_f.weight"])
def test_a_missing_tensor(tensors: Tensors, tmp_path: Path, name: str) -> None:
    del tensors[name]
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        load(tmp_path, tensors)


@pytest.mark.parametrize("name", ["wpe.weight", "h.0.mlp.c_fc.weight", "h.1.ln_1.bias"])
def test_a_tensor_of_another_shape(tensors: Tensors, tmp_path: Path, name: str) -> None:
    for wrong in (tensors[name][..., :-1], tensors[name][None], tensors[name].reshape(-1)[0]):
        with pytest.raises(CheckpointError, match=rf"{name} has shape \[.*by config.json it is"):
            load(tmp_path, {**tensors, name: wrong})


def test_a_transposed_matrix(tensors: Tensors, tmp_path: Path) -> None:
    """A checkpoint of Linear layers has them, where GPT-2 has Conv1D."""
    tensors["h.0.mlp.c_fc.weight"] = tensors["h.0.mlp.c_fc.weight"].T
    with pytest.raises(CheckpointError, match=r"has shape \[24, 6\]"):
        load(tmp_path, tensors)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_weights_that_are_not_floats(tensors: Tensors, tmp_path: Path, dtype: type) -> None:
    tensors["wpe.weight"] = tensors["wpe.weight"].astype(dtype)
    with pytest.raises(CheckpointError, match=r"wpe.weight is of type"):
        load(tmp_path, tensors)


@pytest.mark.parametrize("name", ["h.2.ln_1.weight", "h.0.crossattention.c_attn.weight", "h.x"])
def test_an_unknown_tensor_in_a_layer(tensors: Tensors, tmp_path: Path, name: str) -> None:
    """More layers than in the config, or another architecture: logits would be wrong."""
    with pytest.raises(CheckpointError, match=rf"{name} is in no layer"):
        load(tmp_path, {**tensors, name: np.zeros(6, np.float32)})


def test_mask_buffers_and_heads_of_other_tasks_are_ignored(
    tensors: Tensors, tmp_path: Path
) -> None:
    more = {
        "h.0.attn.bias": np.ones((1, 1, 5, 5), np.bool_),
        "h.1.attn.bias": np.ones((1, 1, 5, 5), np.uint8),
        "h.0.attn.masked_bias": np.array(-1e4, np.float32),
        "score.weight": np.ones((2, 6), np.float32),
    }
    assert_same(load(tmp_path, tensors | more), tensors)


# ---- the head ----


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_a_head_equal_to_wte_is_tied(tensors: Tensors, tmp_path: Path, config: GPTConfig) -> None:
    weights = load(tmp_path, {**tensors, HEAD: tensors["wte.weight"].copy()}, config=config)
    assert weights.tied
    assert weights.head is weights.tensors["wte.weight"]
    assert_same(weights, tensors)


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_an_own_head_is_loaded(tensors: Tensors, tmp_path: Path, config: GPTConfig) -> None:
    head = tensors["wte.weight"] + 1
    weights = load(tmp_path, {**prefixed(tensors), HEAD: head}, config=config)
    assert not weights.tied
    np.testing.assert_array_equal(weights.tensor(HEAD), head)


@pytest.mark.parametrize("prefix", ["", "transformer.", "_orig_mod."])
def test_a_tied_head_may_be_stored_in_place_of_wte(
    prefix: str, tensors: Tensors, tmp_path: Path
) -> None:
    """safetensors' `save_model` keeps the first of the names of shared memory."""
    stored = {prefix + name: tensor for name, tensor in tensors.items()}
    stored[HEAD] = stored.pop(prefix + "wte.weight")
    weights = load(tmp_path, stored)
    assert weights.tied
    assert_same(weights, tensors)
    with pytest.raises(CheckpointError, match=r"wte.weight is missing"):
        load(tmp_path, stored, config=UNTIED)


def test_an_untied_model_needs_its_head(tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lm_head.weight is missing"):
        load(tmp_path, tensors, config=UNTIED)


def test_a_head_of_another_shape(tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lm_head.weight has shape \[10, 6\]"):
        load(tmp_path, {**tensors, HEAD: tensors["wte.weight"][:10]})


# ---- dtypes in memory ----


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_panels_equal_the_references(tensors: Tensors, tmp_path: Path, dtype: str) -> None:
    weights = load(tmp_path, tensors, dtype)
    for name, tensor in tensors.items():
        if is_packed(name, tensor.shape):
            matrix = tensor.T if name == "wte.weight" else tensor
            expected = reference.pack_panels(matrix, weights.tensors[name].dtype)
            np.testing.assert_array_equal(weights.tensors[name], expected, name)


@pytest.mark.parametrize("chunk_bytes", [1, 1000])
def test_loading_in_chunks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    config = GPTConfig.from_dict({**SIZES, "n_embd": 70, "vocab_size": 101}, "config")
    rng = np.random.default_rng(4)
    shapes = tensor_shapes(config).items()
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes}
    monkeypatch.setattr("minigpt.source._CHUNK_BYTES", chunk_bytes)
    assert_same(load(tmp_path, tensors, config=config), tensors)


def test_float_weights_do_not_need_the_file_after_loading(tensors: Tensors, tmp_path: Path) -> None:
    weights = load(tmp_path, tensors)
    os.truncate(tmp_path / "model.safetensors", 0)
    assert_same(weights, tensors)


@pytest.mark.parametrize("stored", [np.float16, np.float64])
def test_f16_and_f64_are_loaded_as_f32(tensors: Tensors, tmp_path: Path, stored: type) -> None:
    tensors = {name: tensor.astype(stored) for name, tensor in tensors.items()}
    weights = load(tmp_path, tensors)
    assert weights.dtype == "f32"
    assert_same(weights, {name: tensor.astype(np.float32) for name, tensor in tensors.items()})


def test_bf16_matrices_stay_and_bf16_vectors_become_f32(tensors: Tensors, tmp_path: Path) -> None:
    halves = {name: f32_to_bf16(tensor) for name, tensor in tensors.items()}
    exact = {name: bf16_to_f32(tensor) for name, tensor in halves.items()}
    expected = {name: halves[name] if exact[name].ndim == 2 else exact[name] for name in exact}
    weights = load(tmp_path, halves)
    assert weights.dtype == "bf16"
    assert_same(weights, expected)
    assert_same(load(tmp_path, exact, "bf16"), expected)
    assert_same(load(tmp_path, halves, "f32"), exact)


def test_matrices_of_mixed_dtypes_are_loaded_as_f32(tensors: Tensors, tmp_path: Path) -> None:
    half = f32_to_bf16(tensors["wpe.weight"])
    weights = load(tmp_path, {**tensors, "wpe.weight": half})
    assert weights.dtype == "f32"
    assert_same(weights, {**tensors, "wpe.weight": bf16_to_f32(half)})
