"""The forward pass: the same bits however tokens arrive. That it is right, test_golden.py says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from minigpt.config import GPTConfig
from minigpt.kernels import reference
from minigpt.kernels.attention import QUERY_BLOCK
from minigpt.kernels.layout import bf16_to_f32
from minigpt.kernels.simd import BF16_PRODUCTS
from minigpt.model.engine import ROWS, Engine
from minigpt.model.forward import query_blocks
from minigpt.model.kv_cache import State
from minigpt.weights.packed import Weights, f32_to_bf16
from minigpt.weights.table import QUANTIZED, is_packed, is_transposed, tensor_shapes

CONFIG = GPTConfig.from_dict(
    {"n_layer": 2, "n_head": 3, "n_embd": 21, "n_positions": 700, "vocab_size": 50}, "test"
)


def random_weights(dtype: str, rounded: bool = False) -> Weights:
    """rounded: held as float32, the matrices of values that bfloat16 has"""
    rng = np.random.default_rng(5)
    shapes = tensor_shapes(CONFIG)
    held, scales = {}, {}
    for name, shape in shapes.items():
        tensor = rng.standard_normal(shape, np.float32) * np.float32(0.4)
        if len(shape) == 2 and rounded:
            tensor = bf16_to_f32(f32_to_bf16(tensor))
        if dtype in QUANTIZED and is_packed(name, shape):
            factor = tensor.T if is_transposed(name) else tensor
            held[name], scales[name] = reference.codes(*reference.quantized(factor, dtype))
        else:
            held[name] = _held(name, tensor, np.float32 if dtype == "f32" else np.uint16)
    return Weights(held, scales, shapes, dtype, "")


def _held(name: str, tensor: np.ndarray, dtype: type) -> np.ndarray:
    if is_packed(name, tensor.shape):
        return reference.panels(tensor.T if is_transposed(name) else tensor, dtype)
    return f32_to_bf16(tensor) if tensor.ndim == 2 and dtype == np.uint16 else tensor


def new_state(engine: Engine, slots: int = 1) -> State:
    return State(CONFIG, slots, CONFIG.n_positions, engine.weights.dtype)


def forward(engine: Engine, pieces: list[tuple[list[int], list[np.ndarray]]]) -> list[np.ndarray]:
    """The logits after each piece; a piece is (slots, their ids)."""
    state = new_state(engine, 3)
    return [engine.forward(state, slots, ids) for slots, ids in pieces]


@pytest.fixture(scope="module", params=["f32", "bf16", "int8", "int4"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(CONFIG, random_weights(request.param), 2)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(6).integers(0, 50, 650)


@pytest.fixture(scope="module")
def whole(engine: Engine, ids: np.ndarray) -> np.ndarray:
    """The logits at every one of 650 tokens read at once: [650, V]."""
    return engine.forward(new_state(engine), [0], [ids], every=True)


def test_a_prompt_longer_than_a_chunk_is_read_like_one(engine, ids, whole):
    assert len(ids) > ROWS
    cuts = [0, 1, 2, 40, 300, 301, 512, 650]
    pieces = [([0], [ids[a:b]]) for a, b in pairwise(cuts)]
    for logits, end in zip(forward(engine, pieces), cuts[1:], strict=True):
        assert logits.tobytes() == whole[end - 1].tobytes()


def test_token_by_token(engine, ids, whole):
    logits = forward(engine, [([0], [ids[t : t + 1]]) for t in range(130)])
    assert np.vstack(logits).tobytes() == whole[:130].tobytes()


def test_a_batch_is_each_alone(engine, ids, whole):
    first, then = forward(
        engine,
        [([2, 0, 1], [ids[:70], ids[:1], ids[:555]]), ([1, 2], [ids[555:556], ids[70:200]])],
    )
    assert first.tobytes() == whole[[69, 0, 554]].tobytes()
    assert then.tobytes() == whole[[555, 199]].tobytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads(engine, ids, whole, threads):
    other = Engine(CONFIG, engine.weights, threads)
    logits = other.forward(new_state(other), [0], [ids], every=True)
    assert logits.tobytes() == whole.tobytes()
    last = other.forward(new_state(other), [0], [ids[:400]])
    assert last.tobytes() == whole[399].tobytes()


def test_bfloat16_weights_give_what_their_float32_values_give(ids):
    """Bit for bit, but where the processor multiplies bfloat16 and activations are rounded, too."""
    a, b = (
        Engine(CONFIG, weights, 1).forward(State(CONFIG, 1, 700, "f32"), [0], [ids])
        for weights in (random_weights("bf16"), random_weights("f32", rounded=True))
    )
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-2 * np.abs(b).max() if BF16_PRODUCTS else 0)


def test_rounded_keys_and_values_change_little(engine, ids, whole):
    exact = engine.forward(State(CONFIG, 1, 700, "f32"), [0], [ids], every=True)
    limit = 0 if engine.weights.dtype == "f32" else 2e-2
    np.testing.assert_allclose(whole, exact, rtol=0, atol=limit * np.abs(exact).max())


def test_a_pass_that_fails_leaves_the_state_as_it_was(engine, ids, whole, monkeypatch):
    state = new_state(engine)
    engine.forward(state, [0], [ids[:20]])
    with monkeypatch.context() as patch:
        patch.setattr(engine._team, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.forward(state, [0], [ids[:30]])
    assert state.lengths.tolist() == [20]
    assert engine.forward(state, [0], [ids[20:50]]).tobytes() == whole[49].tobytes()


def test_attention_blocks_are_runs_of_one_sequence():
    owners = np.array([4] * (QUERY_BLOCK + 2) + [1] * 3)
    positions = np.array([*range(10, QUERY_BLOCK + 12), 0, 1, 2])
    assert query_blocks(owners, positions).reshape(-1, 4).tolist() == [
        [4, 0, QUERY_BLOCK, 10],
        [4, QUERY_BLOCK, 2, QUERY_BLOCK + 10],
        [1, QUERY_BLOCK + 2, 3, 0],
    ]


def test_narrowing_rounds_to_the_nearest_even():
    exact = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -np.inf], np.float32)
    expected = np.array([1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -np.inf], np.float32)
    np.testing.assert_array_equal(bf16_to_f32(f32_to_bf16(exact)), expected)
    assert np.isnan(bf16_to_f32(f32_to_bf16(np.array([np.nan], np.float32)))).all()
