"""exp and the activations: how far they are from the mathematics, over all magnitudes."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import activation, reference
from minigpt.kernels.jit import entry, jit
from minigpt.kernels.simd import load, load_first, store, store_first
from minigpt.kernels.team import barrier
from minigpt.kernels.view import View

pytestmark = pytest.mark.kernel

TWINS = {
    activation.GELU: reference.gelu_forward,
    activation.GELU_TANH: reference.gelu_tanh_forward,
    activation.RELU: reference.relu_forward,
    activation.SILU: reference.silu_forward,
}
GRID = np.linspace(-30, 30, 16 * 3000, dtype=np.float32)


@jit
def _apply(team, y, kind):
    if team.rank == 0:
        for i in range(0, y.size, 16):
            lanes = min(16, y.size - i)
            store_first(activation.activate(load_first(y, i, lanes), kind), y, i, lanes)
    barrier(team)


@entry
def _exp(y):
    for i in range(0, y.size, 16):
        store(activation.exp(load(y, i)), y, i)


@pytest.mark.parametrize("kind", TWINS)
def test_is_the_twin(run, kind):
    y = GRID.copy()
    run(_apply, y, kind)
    truth = TWINS[kind](GRID.astype(np.float64))
    np.testing.assert_allclose(y, truth, rtol=1e-6, atol=3e-7)


def test_gelus_tail_keeps_its_digits(run):
    """−8 · Φ(−8) is 5e-15: 1 + erf would have cancelled to 0."""
    y = np.array([-8, -5, -3], np.float32)
    run(_apply, y, activation.GELU)
    truth = [-8 * 6.220960574271785e-16, -5 * 2.866515718791939e-07, -3 * 1.3498980316300945e-03]
    np.testing.assert_allclose(y, truth, rtol=5e-6)


def test_exp_to_two_units_in_the_last_place():
    x = np.linspace(-87.3, 88.3, 16 * 4000, dtype=np.float32)
    y = x.copy()
    _exp(y)
    np.testing.assert_allclose(y, np.exp(x.astype(np.float64)), rtol=2.4e-7)


def test_exp_at_the_ends():
    x = np.array([0, -np.inf, -100, np.nan] * 4, np.float32)
    _exp(x)
    np.testing.assert_array_equal(x, np.array([1, 0, 0, np.nan] * 4, np.float32))


@pytest.mark.parametrize("kind", TWINS)
def test_infinite_and_huge_inputs(run, kind):
    y = np.array([-1e30, 1e30, -np.inf, np.inf], np.float32)
    run(_apply, y, kind)
    assert y[0] == 0
    assert y[1] == np.float32(1e30)
    assert y[3] == np.inf


BACKWARD = {
    activation.GELU: reference.gelu_backward,
    activation.GELU_TANH: reference.gelu_tanh_backward,
    activation.RELU: reference.relu_backward,
    activation.SILU: reference.silu_backward,
}


@pytest.mark.parametrize("kind", BACKWARD)
def test_backward_is_the_twin(run, kind):
    """dx = dy · derivative(x), over all magnitudes, in rows that lie apart; in place, too."""
    M, C, ld = 30, GRID.size // 30 - 3, GRID.size // 30
    dy = np.linspace(-2, 2, GRID.size, dtype=np.float32)
    dx = np.full_like(dy, np.nan)
    dx_view, dy_view, x_view = (View(array, M, C, ld) for array in (dx, dy, GRID))
    run(activation.activation_backward, dx_view, dy_view, x_view, kind)
    truth = BACKWARD[kind](dy.astype(np.float64), GRID.astype(np.float64))
    inside = np.arange(GRID.size) % ld < C
    np.testing.assert_allclose(dx[inside], truth[inside], rtol=2e-6, atol=1e-6)
    assert np.isnan(dx[~inside]).all()
    run(activation.activation_backward, dy_view, dy_view, x_view, kind)
    np.testing.assert_array_equal(dy[inside], dx[inside])


@pytest.mark.parametrize("kind", BACKWARD)
def test_reference_backward_is_the_derivative(kind):
    x, step = np.linspace(-8, 8, 1000), 1e-5
    derivative = (TWINS[kind](x + step) - TWINS[kind](x - step)) / (2 * step)
    np.testing.assert_allclose(BACKWARD[kind](1.5, x), 1.5 * derivative, atol=1e-9)


@pytest.mark.parametrize("kind", BACKWARD)
def test_derivatives_of_huge_inputs(run, kind):
    far = np.array([-1e30, 1e30], np.float32)
    dx, dy = np.empty(2, np.float32), np.ones(2, np.float32)
    run(activation.activation_backward, *(View(array, 1, 2, 2) for array in (dx, dy, far)), kind)
    np.testing.assert_array_equal(dx, np.array([0, 1], np.float32))


@pytest.mark.parametrize("kind", TWINS)
def test_forward_over_rows_is_the_same(run, kind):
    whole, rows = GRID.copy(), np.zeros_like(GRID)
    run(_apply, whole, kind)
    M = GRID.size // 100
    run(activation.activation_forward, View(rows, M, 97, 100), View(GRID, M, 97, 100), kind)
    inside = np.arange(GRID.size) % 100 < 97
    np.testing.assert_array_equal(rows, np.where(inside, whole, 0))
