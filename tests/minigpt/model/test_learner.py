"""Learner: PyTorch's gradients and losses, the same bits in every way to compute, and learner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minigpt import GPTModel, reference_gpt
from minigpt.config import GPTConfig
from minigpt.model import learner as learner_module
from minigpt.model.learner import Learner
from minigpt.model.optimizer import AdamW
from minigpt.training.initial import random_tensors

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/training.npz"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def small_config(**sizes) -> GPTConfig:
    small = {"n_layer": 2, "n_head": 2, "n_embd": 24, "n_positions": 128, "vocab_size": 40}
    return GPTConfig.from_dict({**small, "activation_function": "gelu", **sizes}, "test")


def batch(rng, config, B, T):
    ids, targets = rng.integers(0, config.vocab_size, (2, B, T))
    if T > 3:
        targets[0, :3] = -100
    return ids, targets


# ---- against PyTorch


def test_no_golden_state_is_missing():
    assert len(FOLDERS) == 5


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_gradients_are_torchs_by_name(folder):
    with np.load(folder / "training.npz") as states:
        expected = {
            name.removeprefix("grad/"): states[name] for name in states if name.startswith("grad/")
        }
        model = GPTModel.from_pretrained(folder, dtype="f32", threads=2)
        loss, grads = model.loss_and_grad(states["ids"], states["targets"])
        assert loss == pytest.approx(states["losses"][0], rel=1e-5)
    assert set(grads) == set(expected)
    for name, grad in grads.items():
        assert grad.dtype == np.float32
        assert grad.shape == expected[name].shape
        error = abs(grad - expected[name]).max() / abs(expected[name]).max()
        assert error < 2e-5, name


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_ten_steps_have_torchs_losses(folder):
    model = GPTModel.from_pretrained(folder, dtype="f32", threads=1)
    weights = model.engine.weights
    tensors = {name: weights.tensor(name).astype(np.float32) for name in weights.shapes}
    learner = Learner(model.config, tensors, threads=2)
    with np.load(folder / "training.npz") as states:
        ids, targets, expected = states["ids"], states["targets"], states["losses"]
    loss_scale = 1 / (targets != -100).sum()
    losses = []
    for step in range(1, 11):
        learner.zero_grad()
        losses.append(learner.backward(ids, targets, loss_scale) * loss_scale)
        learner.step(AdamW(step, lr=3e-3, max_grad_norm=0))
    losses.append(learner.loss(ids, targets) * loss_scale)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


# ---- against reference_gpt


@pytest.mark.parametrize(
    ("B", "T", "sizes"),
    [
        (3, 1, {}),
        (2, 70, {"n_head": 1, "n_embd": 33, "activation_function": "gelu_new"}),
        (1, 5, {"vocab_size": 4100, "n_embd": 8}),  # two blocks of the head's rows
        (9, 64, {"n_layer": 1}),  # two blocks of logits
    ],
)
def test_gradients_and_step_are_those_of_reference_gpt(rng, B, T, sizes):
    """Shapes that the golden states lack: at the borders of every block."""
    config = small_config(**sizes)
    tensors = random_tensors(config, 1)
    for tensor in tensors.values():
        tensor += 0.1 * rng.standard_normal(tensor.shape).astype(np.float32)
    params = {n: t.astype(np.float64) for n, t in tensors.items()}
    learner = Learner(config, {n: t.copy() for n, t in tensors.items()}, threads=2)
    ids, targets = batch(rng, config, B, T)
    count = (targets != -100).sum()
    loss, grads = reference_gpt.loss_and_grads(params, config, ids, targets)
    nats = learner.backward(ids, targets, 1 / count)
    assert nats / count == pytest.approx(loss, rel=1e-6)
    assert learner.loss(ids, targets) == nats
    for name, grad in learner.grads.items():
        error = abs(grad - grads[name]).max()
        assert error < 2e-5 * (abs(grads[name]).max() + 1e-3), name
    m, v = ({n: np.zeros_like(p) for n, p in params.items()} for _ in range(2))
    settings = AdamW(step=1, lr=1e-3, eps=1e-4, max_grad_norm=0.01)
    norm = reference_gpt.adamw_step(params, grads, m, v, *settings)
    assert learner.step(settings) == pytest.approx(norm, rel=1e-5)
    for name, param in params.items():
        np.testing.assert_allclose(learner.tensors[name], param, rtol=1e-5, atol=1e-6)


# ---- the same bits


@pytest.mark.parametrize("dtype", ["f32", pytest.param("bf16", marks=pytest.mark.amx)])
def test_threads_and_recompute_do_not_change_a_bit(rng, dtype, meet):
    config = small_config(n_layer=3)
    ids, targets = batch(rng, config, 3, 30)
    results = []
    for threads, recompute in ((1, False), (3, False), (2, True)):
        meet(threads)
        learner = Learner(config, random_tensors(config, 2), threads, dtype, recompute)
        for step in (1, 2):
            learner.zero_grad()
            learner.backward(ids, targets, 1 / 87)
            norm = learner.step(AdamW(step, lr=1e-2))
        results.append((norm, [tensor.tobytes() for tensor in learner.tensors.values()]))
    assert results[0] == results[1] == results[2]


def test_large_batches_are_processed_in_chunks(rng, monkeypatch):
    """Chunks add up, and the memory of a large batch leaves no trace in a smaller one after it."""
    config = small_config()
    ids, targets = batch(rng, config, 5, 20)
    at_once, in_chunks = (Learner(config, random_tensors(config, 3), threads=1) for _ in range(2))
    nats = at_once.backward(ids, targets, 0.01)
    monkeypatch.setattr(learner_module, "_MAX_TOKENS", 45)
    assert in_chunks.backward(ids, targets, 0.01) == pytest.approx(nats, rel=1e-6)
    for name, grad in at_once.grads.items():
        np.testing.assert_allclose(in_chunks.grads[name], grad, rtol=1e-4, atol=1e-7)
    small = ids[:1, :7], targets[:1, :7]
    fresh = Learner(config, random_tensors(config, 3), threads=1)
    at_once.zero_grad()
    assert at_once.backward(*small, 1.0) == fresh.backward(*small, 1.0)
    for name, grad in at_once.grads.items():
        np.testing.assert_array_equal(grad, fresh.grads[name])


def test_gradients_begin_anew_after_zero_grad(rng):
    """zero_grad leaves them in memory, and backward overwrites or clears every one of them."""
    for head in ({}, {"tie_word_embeddings": False}):
        config = small_config(**head)
        tensors = random_tensors(config, 5)
        used, fresh = (Learner(config, tensors, threads=2) for _ in range(2))
        used.backward(*batch(rng, config, 3, 40), 1.0)
        used.zero_grad()
        ids, targets = batch(rng, config, 2, 9)
        assert used.backward(ids, targets, 0.1) == fresh.backward(ids, targets, 0.1)
        for name, grad in used.grads.items():
            np.testing.assert_array_equal(grad, fresh.grads[name], name)
        used.zero_grad()
        assert not any(grad.any() for grad in used.grads.values())
        assert used.step(AdamW(1, lr=1e-3)) == 0


# ---- learning


def sorting(rng, count):
    """ids and targets of `count` lines: six digits, 10, the digits sorted. Only these count."""
    digits = rng.integers(0, 10, (count, 6))
    line = np.hstack([digits, np.full((count, 1), 10), np.sort(digits)])
    ids, targets = line[:, :-1].copy(), line[:, 1:].copy()
    targets[:, :6] = -100
    return ids, targets


@pytest.mark.slow
def test_a_tiny_model_learns_to_sort():
    """Greedy decoding sorts each of 200 unseen lines of digits."""
    rng = np.random.default_rng(4)
    config = small_config(n_embd=64, n_head=2, n_positions=12, vocab_size=11)
    learner = Learner(config, random_tensors(config, 4), threads=2)
    for step in range(1, 401):
        ids, targets = sorting(rng, 64)
        learner.zero_grad()
        learner.backward(ids, targets, 1 / (64 * 6))
        lr = 5e-3 * min(1, step / 50) * (1 - step / 401)
        learner.step(AdamW(step, lr))
    ids, targets = sorting(np.random.default_rng(5), 200)
    logits = reference_gpt.forward(learner.tensors, config, ids)
    assert (logits.argmax(-1) == targets)[targets != -100].all()


@pytest.mark.slow
def test_bf16_follows_the_curve_of_f32():
    """The losses of 60 steps agree to 1 %."""
    curves = []
    for dtype in ("f32", "bf16"):
        rng = np.random.default_rng(6)
        config = small_config(n_embd=32, n_positions=12, vocab_size=11)
        learner = Learner(config, random_tensors(config, 6), 2, dtype)
        curve = []
        for step in range(1, 61):
            ids, targets = sorting(rng, 32)
            learner.zero_grad()
            curve.append(learner.backward(ids, targets, 1 / (32 * 6)) / (32 * 6))
            learner.step(AdamW(step, lr=2e-3, max_grad_norm=0))
        curves.append(curve)
    assert curves[0][-1] < 0.75 * curves[0][0]
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.01)
