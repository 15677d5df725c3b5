"""Calibration: the importance of rows, compared with the activations of the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizer import byte_tokenizer

from minigpt import GPTModel
from minigpt.config import GPTConfig
from minigpt.conversion.calibrate import MAX_TOKENS, first_ids, importance
from minigpt.conversion.convert import convert
from minigpt.errors import InputError
from minigpt.source import open_source
from minigpt.weights.table import is_packed, tensor_shapes

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
SOURCES = ["cerebras", "heads-17-bf16", "inverse-layer-f64", "mup", "relu-bf16", "silu-f16"]


def found(source: str, ids: list[int]) -> dict[str, np.ndarray]:
    return importance(open_source(GOLDEN / source), ids)


@pytest.mark.parametrize("source", SOURCES)
def test_every_packed_matrix_has_an_importance_for_each_row(source: str) -> None:
    config = GPTConfig.from_file(GOLDEN / source / "config.json")
    result = found(source, [1, 2, 3, 4, 5])
    shapes = {n: s for n, s in tensor_shapes(config).items() if is_packed(n, s)}
    assert result.keys() == shapes.keys() | {"lm_head.weight"}
    for name, shape in shapes.items():
        rows = shape[1] if name == "wte.weight" else shape[0]
        assert result[name].shape == (rows,)
        assert (result[name] > 0).all()


@pytest.mark.parametrize("source", SOURCES)
def test_the_importance_of_the_head_is_the_mean_square_of_its_inputs(source: str) -> None:
    """It depends on all layers. Inputs x are the least-squares solution of x · headᵀ = logits."""
    model = GPTModel.from_pretrained(GOLDEN / source)
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    logits = model(np.array([ids])).logits[0].astype(np.float64)
    weights, config = model.engine.weights, model.config
    name = "wte.weight" if weights.tied else "lm_head.weight"
    head = weights.tensor(name)
    if head.dtype == np.uint16:
        head = (head.astype(np.uint32) << 16).view(np.float32)
    head = head.astype(np.float64) * config.mup_output_alpha * config.mup_width_scale
    x = np.linalg.lstsq(head, logits.T, rcond=None)[0].T
    expected = np.square(x).mean(0)
    np.testing.assert_allclose(
        found(source, ids)[name], np.maximum(expected, 1e-3 * expected.mean()), rtol=0.02
    )


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
