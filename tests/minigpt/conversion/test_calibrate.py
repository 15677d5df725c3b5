"""Calibration: the importance of rows, compared with the activations of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizer import byte_tokenizer

from minigpt import reference_gpt
from minigpt.config import GPTConfig
from minigpt.conversion.calibrate import MAX_TOKENS, first_ids, importance
from minigpt.conversion.convert import convert
from minigpt.errors import InputError
from minigpt.source import open_source
from minigpt.weights.table import tensor_shapes

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
SOURCES = ["cerebras", "heads-17-bf16", "inverse-layer-f64", "mup", "relu-bf16", "silu-f16"]


def found(source: str, ids: list[int]) -> dict[str, np.ndarray]:
    return importance(open_source(GOLDEN / source), ids)


@pytest.mark.parametrize("source", SOURCES)
def test_every_matrix_of_a_layer_has_an_importance_for_each_row(source: str) -> None:
    config = GPTConfig.from_file(GOLDEN / source / "config.json")
    result = found(source, [1, 2, 3, 4, 5])
    shapes = {n: s for n, s in tensor_shapes(config).items() if n.startswith("h.") and len(s) == 2}
    assert result.keys() == shapes.keys()
    for name, shape in shapes.items():
        assert result[name].shape == shape[:1]
        assert (result[name] > 0).all()


@pytest.mark.parametrize("source", SOURCES)
def test_the_importance_is_the_mean_square_of_the_inputs(source: str) -> None:
    """As the forward pass of the reference reports the inputs, with GELU by the tanh formula."""
    config, params = reference_gpt.load(GOLDEN / source)
    if config.activation == "gelu":
        config = replace(config, activation_function="gelu_new")
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    expected: dict[str, np.ndarray] = {}

    def hook(name: str, inputs: np.ndarray) -> None:
        expected[f"{name}.weight"] = np.square(inputs, dtype=np.float64).mean((0, 1))

    reference_gpt.forward(params, config, [ids], hook)
    del expected["lm_head.weight"]
    result = found(source, ids)
    for name, squares in expected.items():
        floor = 1e-3 * squares.mean()
        np.testing.assert_allclose(result[name], np.maximum(squares, floor), rtol=1e-3)


def test_long_texts_are_truncated() -> None:
    ids = list(np.random.default_rng(0).integers(0, 50, MAX_TOKENS + 100))
    a, b = (found("cerebras", [int(i) for i in ids[:n]]) for n in (MAX_TOKENS, MAX_TOKENS + 100))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("ids", [[], [-1], [10**9]])
def test_ids_that_the_model_does_not_have(ids: list[int]) -> None:
    with pytest.raises(InputError, match="calibrate"):
        found("cerebras", ids)


def test_only_int4_can_be_calibrated(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int4"):
        convert(GOLDEN / "cerebras", tmp_path / "new", "int8", calibration="text")


def test_the_first_tokens_of_several_texts_with_ends_between_them(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert first_ids(["a"], tokenizer, False) == a
    assert first_ids(["a", "b"], tokenizer, False) == [*a, 256, *b]
    assert first_ids(["<|endoftext|>"], tokenizer, True) == [256]

    def endless() -> Iterator[str]:
        while True:
            yield "a" * 1000

    assert MAX_TOKENS <= len(first_ids(endless(), tokenizer, False)) < MAX_TOKENS + 1000


def test_texts_of_another_type_are_an_error(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    for texts in (5, [b"bytes"]):
        with pytest.raises(InputError, match="calibration"):
            convert(
                GOLDEN / "cerebras",
                tmp_path / "x",
                "int4",
                calibration=texts,  # type: ignore[arg-type]
                tokenizer=tokenizer,
            )
    assert not (tmp_path / "x").exists()
