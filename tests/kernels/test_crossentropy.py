"""Cross-entropy against reference.py, and its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.crossentropy import (
    SoftmaxStates,
    crossentropy_backward,
    crossentropy_block,
    crossentropy_forward,
)
from minigpt.kernels.layout import IGNORED, LANES, bf16_to_f32, padded
from minigpt.kernels.view import View

pytestmark = pytest.mark.kernel

COLUMNS = 40  # of a block


class Case:
    """Logits [M, V] in blocks of COLUMNS columns, and the memory of the kernels."""

    def __init__(self, logits, targets, dtype=np.float32):
        self.M, self.V = logits.shape
        self.logits, self.targets, self.dtype = logits, targets, dtype
        self.blocks = -(-self.V // COLUMNS)
        self.e = np.zeros((self.M, self.V + 3), dtype)
        size = self.blocks * self.M
        self.states = SoftmaxStates(
            *(np.full(n, np.nan, np.float32) for n in (size, size, self.M, self.M))
        )

    def columns(self, block):
        """(the first column of a block, how many it has, their View in e)"""
        first = block * COLUMNS
        count = min(COLUMNS, self.V - first)
        return first, count, View(self.e.reshape(-1)[first:], self.M, count, self.V + 3)

    def forward(self, run):
        for block in range(self.blocks):
            first, count, e = self.columns(block)
            part = np.full((self.M, COLUMNS + 5), np.nan, np.float32)
            part[:, :count] = self.logits[:, first : first + count]
            logits = View(part.reshape(-1), self.M, count, COLUMNS + 5)
            run(crossentropy_block, e, self.states, logits, self.targets, block, first)
        losses = np.full(self.M, np.nan, np.float32)
        run(crossentropy_forward, losses, self.states, self.targets, self.M, self.blocks)
        return losses

    def backward(self, run, losses, loss_scale):
        """The gradient [M, V], and the same from its transposed blocks."""
        result, transposed = np.empty((2, self.M, self.V), np.float32)
        for block in range(self.blocks):
            first, count, e = self.columns(block)
            ld, ld_t = padded(COLUMNS) + 3, padded(self.M) + 5
            part = np.ones((padded(self.M), ld), self.dtype)
            part_t = np.ones((padded(COLUMNS, LANES), ld_t), self.dtype)
            run(
                crossentropy_backward, View(part.reshape(-1), self.M, count, ld),
                View(part_t.reshape(-1), count, self.M, ld_t), e, self.states, losses,
                self.targets, block, first, np.float32(loss_scale),
            )  # fmt: skip
            one = part[0, -1]
            assert not part[:, count : padded(count)].any()
            assert (part[:, padded(count) :] == one).all()
            assert not part_t[:count, self.M : padded(self.M)].any()
            assert (part_t[:, padded(self.M) :] == one).all()
            for to, gradient in ((result, part), (transposed, part_t.T)):
                gradient = gradient[: self.M, :count]
                if self.dtype == np.uint16:
                    gradient = bf16_to_f32(gradient)
                to[:, first : first + count] = gradient
        return result, transposed


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float32, 1e-6), pytest.param(np.uint16, 4e-3, marks=pytest.mark.amx)],
)
@pytest.mark.parametrize(("M", "V"), [(1, 1), (3, 5), (4, 16), (7, 33), (37, 100)])
def test_forward_and_backward_are_reference(run, rng, M, V, dtype, tolerance):
    """The gradient comes in blocks of columns with zeros up to a multiple of K_ALIGN, in rows and
    transposed. Where it is bfloat16, probabilities are rounded twice."""
    logits = (rng.standard_normal((M, V)) * 4).astype(np.float32)
    targets = rng.integers(0, V, M)
    targets[M // 2] = IGNORED
    case = Case(logits, targets, dtype)
    losses = case.forward(run)
    expected = reference.crossentropy_forward(logits.astype(np.float64), targets)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=2e-6)
    assert losses[M // 2] == 0
    result, transposed = case.backward(run, losses, 0.5)
    expected = 0.5 * reference.crossentropy_backward(logits.astype(np.float64), targets)
    np.testing.assert_allclose(result, expected, rtol=2 * tolerance, atol=1e-6)
    np.testing.assert_array_equal(transposed, result)


@pytest.mark.amx
def test_the_gradient_of_a_certain_target_is_exact_in_bfloat16(run):
    """p − 1 of a target with p close to 1 comes from the loss, not from a rounded p."""
    logits, targets = np.array([[8, 0.5, -1, 0]], np.float32), np.array([0])
    case = Case(logits, targets, np.uint16)
    result, _ = case.backward(run, case.forward(run), 1)
    expected = reference.crossentropy_backward(logits.astype(np.float64), targets)
    np.testing.assert_allclose(result, expected, rtol=8e-3)


def test_large_logits_do_not_overflow(run):
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], np.float32)
    case = Case(logits, np.array([1, 0]))
    np.testing.assert_allclose(case.forward(run), [2e4, np.log(3)], rtol=1e-3)
    assert np.isfinite(case.states.lse).all()


def test_nan_logits_give_a_nan_loss(run):
    assert np.isnan(Case(np.array([[0, np.nan, 1]], np.float32), np.array([0])).forward(run)[0])


def test_reference_backward_is_the_derivative(rng, derivatives):
    logits, targets = rng.standard_normal((4, 5)), np.array([0, 4, IGNORED, 2])
    d = reference.crossentropy_backward(logits, targets)
    expected = derivatives(lambda x: reference.crossentropy_forward(x, targets).sum(), logits)
    np.testing.assert_allclose(d, expected, atol=1e-8)
