"""Cross-entropy against reference.py, and its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.crossentropy import crossentropy_backward, crossentropy_forward
from minigpt.kernels.layout import IGNORED, padded
from minigpt.kernels.view import View

pytestmark = pytest.mark.kernel


def forward(run, logits, targets):
    M, V = logits.shape
    losses, lse = np.full((2, M), np.nan, np.float32)
    ld = V + 3
    rows = np.full((M, ld), np.nan, np.float32)
    rows[:, :V] = logits
    view = View(rows.reshape(-1), M, V, ld)
    run(crossentropy_forward, losses, lse, view, targets)
    return losses, lse, view


@pytest.mark.parametrize(("M", "V"), [(1, 1), (3, 5), (4, 16), (7, 33), (5, 100)])
def test_forward_and_backward_are_reference(run, rng, M, V):
    """The gradient is computed 40 columns at a time, with zeros up to a multiple of K_ALIGN."""
    logits = (rng.standard_normal((M, V)) * 4).astype(np.float32)
    targets = rng.integers(0, V, M)
    targets[M // 2] = IGNORED
    losses, lse, view = forward(run, logits, targets)
    expected = reference.crossentropy_forward(logits.astype(np.float64), targets)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=2e-6)
    assert losses[M // 2] == 0
    result = np.empty((M, V), np.float32)
    for first in range(0, V, 40):
        count = min(40, V - first)
        part = np.full((M, padded(40) + 3), np.nan, np.float32)
        run(
            crossentropy_backward, View(part.reshape(-1), M, count, part.shape[1]), view, lse,
            targets, first, np.float32(0.5),
        )  # fmt: skip
        result[:, first : first + count] = part[:, :count]
        assert not part[:, count : padded(count)].any()
        assert np.isnan(part[:, padded(count) :]).all()
    expected = 0.5 * reference.crossentropy_backward(logits.astype(np.float64), targets)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_large_logits_do_not_overflow(run):
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], np.float32)
    losses, lse, _ = forward(run, logits, np.array([1, 0]))
    np.testing.assert_allclose(losses, [2e4, np.log(3)], rtol=1e-3)
    assert np.isfinite(lse).all()


def test_nan_logits_give_a_nan_loss(run):
    losses, _, _ = forward(run, np.array([[0, np.nan, 1]], np.float32), np.array([0]))
    assert np.isnan(losses[0])


def test_reference_backward_is_the_derivative(rng, derivatives):
    logits, targets = rng.standard_normal((4, 5)), np.array([0, 4, IGNORED, 2])
    d = reference.crossentropy_backward(logits, targets)
    expected = derivatives(lambda x: reference.crossentropy_forward(x, targets).sum(), logits)
    np.testing.assert_allclose(d, expected, atol=1e-8)
