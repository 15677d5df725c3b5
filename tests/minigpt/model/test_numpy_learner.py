"""The learner in plain NumPy, by which others are judged: against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_learner import NumpyLearner

from minigpt.config import GPTConfig
from minigpt.weights.table import all_shapes

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 6, "n_inner": 10, "n_positions": 7, "vocab_size": 11}
MUP = {
    "model_type": "btlm",
    "mup_embeddings_scale": 1.7,
    "mup_output_alpha": 0.8,
    "mup_width_scale": 0.6,
    "mup_scale_qk_dot_by_d": True,
}
KINDS = {
    "gelu": {"activation_function": "gelu"},
    "gelu_new": {"activation_function": "gelu_new", "scale_attn_by_inverse_layer_idx": True},
    "relu": {"activation_function": "relu", "scale_attn_weights": False},
    "silu, own head": {"activation_function": "silu", "tie_word_embeddings": False},
    "mup": {**MUP, "activation_function": "gelu"},
}


def learner(fields: dict, dtype: type = np.float64) -> NumpyLearner:
    config = GPTConfig.from_dict({**SIZES, **fields}, "config")
    rng = np.random.default_rng(5)
    shapes = all_shapes(config, not config.tie_word_embeddings)
    tensors = {name: rng.normal(0, 0.5, shape).astype(dtype) for name, shape in shapes.items()}
    return NumpyLearner(config, tensors)


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(6).integers(0, 11, (3, 5))


@pytest.fixture
def targets(ids: np.ndarray) -> np.ndarray:
    targets = np.roll(ids, -1, 1)
    targets[0, 1:3] = -100
    return targets


@pytest.mark.parametrize("kind", KINDS)
def test_every_gradient_is_that_of_finite_differences(kind, ids, targets) -> None:
    found = learner(KINDS[kind])
    share = 0.25
    assert found.accumulate(ids, targets, share) == pytest.approx(found.loss(ids, targets))
    rng = np.random.default_rng(7)
    for name, tensor in found.tensors.items():
        direction = rng.normal(size=tensor.shape)
        h, kept = 1e-5, tensor.copy()
        losses = []
        for sign in (1, -1):
            tensor[:] = kept + sign * h * direction
            losses.append(found.loss(ids, targets))
        tensor[:] = kept
        expected = share * (losses[0] - losses[1]) / (2 * h)
        assert np.sum(found.grads[name] * direction) == pytest.approx(expected, 1e-6, 1e-8), name


def test_gradients_add_up_until_they_are_cleared(ids, targets) -> None:
    once, twice = learner(KINDS["gelu"]), learner(KINDS["gelu"])
    once.accumulate(ids, targets, 1.0)
    twice.accumulate(ids[:1], targets[:1], 1.0)
    twice.accumulate(ids[1:], targets[1:], 1.0)
    for name, grad in once.grads.items():
        np.testing.assert_allclose(twice.grads[name], grad, 1e-9, 1e-12, err_msg=name)
    once.clear()
    assert not any(grad.any() for grad in once.grads.values())


def test_the_first_update_is_adamw_by_hand() -> None:
    """At step 1 the corrected moments are g and g²: a step of lr in each direction, and decay."""
    found = learner(KINDS["gelu"])
    before = {name: tensor.copy() for name, tensor in found.tensors.items()}
    rng = np.random.default_rng(8)
    for grad in found.grads.values():
        grad[:] = rng.normal(size=grad.shape)
    norm = found.update(1, 0.01, 0.9, 0.95, 1e-12, 0.1, clip=1.0)
    flat = np.concatenate([grad.ravel() for grad in found.grads.values()])
    assert norm == pytest.approx(np.linalg.norm(flat))
    for name, tensor in found.tensors.items():
        decayed = before[name] * (1 - 0.001 if tensor.ndim == 2 else 1)
        expected = decayed - 0.01 * np.sign(found.grads[name])
        np.testing.assert_allclose(tensor, expected, 1e-6, 1e-8, err_msg=name)
        np.testing.assert_allclose(found.first_moments[name], 0.1 * found.grads[name] / norm)


def test_float32_learns(ids, targets) -> None:
    found = learner(KINDS["gelu"], np.float32)
    losses = []
    for step in range(1, 151):
        found.clear()
        losses.append(found.accumulate(ids, targets, 1 / 13))
        found.update(step, 0.03, 0.9, 0.95, 1e-8, 0.0, clip=1.0)
    assert losses[-1] < 0.1 * losses[0]
    assert {tensor.dtype for tensor in found.tensors.values()} == {np.dtype(np.float32)}
