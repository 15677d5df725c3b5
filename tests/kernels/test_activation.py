"""exp and the activation functions against reference.py in float64, over all magnitudes."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import activation, reference
from minigpt.kernels.jit import entry, jit
from minigpt.kernels.simd import load, load_first, store, store_first
from minigpt.kernels.team import barrier
from minigpt.kernels.view import View
from minigpt.model import dims

pytestmark = pytest.mark.kernel

REFERENCE = {
    activation.GELU: reference.gelu_forward,
    activation.GELU_TANH: reference.gelu_tanh_forward,
    activation.RELU: reference.relu_forward,
    activation.SILU: reference.silu_forward,
}
ROUNDED = {  # for results that are rounded afterwards
    activation.GELU_ROUNDED: reference.gelu_forward,
    activation.GELU_TANH_ROUNDED: reference.gelu_tanh_forward,
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


@pytest.mark.parametrize("kind", REFERENCE)
def test_forward_is_reference(run, kind):
    y = GRID.copy()
    run(_apply, y, kind)
    expected = REFERENCE[kind](GRID.astype(np.float64))
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("kind", ROUNDED)
def test_rounded_forward_is_near_reference(run, kind):
    y = np.append(GRID, np.array([*HUGE, np.inf], np.float32))
    run(_apply, y, kind)
    expected = ROUNDED[kind](GRID.astype(np.float64))
    np.testing.assert_allclose(y[:-3], expected, rtol=2e-6, atol=5e-5)
    assert not y[:-3][GRID < -5].any()
    assert y[-3] == 0
    np.testing.assert_allclose(y[-2:], [1e30, np.inf], rtol=2e-6)


def test_gelu_is_exact_far_below_zero(run):
    """−8 · Φ(−8) = −5e-15; in float32, 1 + erf would cancel to 0."""
    y = np.array([-8, -5, -3], np.float32)
    run(_apply, y, activation.GELU)
    expected = [-8 * 6.220960574271785e-16, -5 * 2.866515718791939e-07, -3 * 1.3498980316300945e-03]
    np.testing.assert_allclose(y, expected, rtol=5e-6)


def test_exp_to_two_units_in_the_last_place():
    x = np.linspace(-87.3, 88.3, 16 * 4000, dtype=np.float32)
    y = x.copy()
    _exp(y)
    np.testing.assert_allclose(y, np.exp(x.astype(np.float64)), rtol=2.4e-7)


def test_exp_of_infinity_and_nan():
    x = np.array([0, -np.inf, -100, np.nan] * 4, np.float32)
    _exp(x)
    np.testing.assert_array_equal(x, np.array([1, 0, 0, np.nan] * 4, np.float32))


AT_HUGE_INPUTS = [  # kind, its values at HUGE and ∞, its derivative at HUGE
    (activation.GELU, [0, 1e30, np.inf], [0, 1]),
    (activation.GELU_TANH, [0, 1e30, np.inf], [0, 1]),
    (activation.RELU, [0, 1e30, np.inf], [0, 1]),
    (activation.SILU, [0, 1e30, np.inf], [0, 1]),
]
HUGE = [-1e30, 1e30]


def test_every_activation_is_tested():
    kinds = set(REFERENCE)
    assert kinds == set(dims._ACTIVATIONS.values())
    assert set(ROUNDED) == set(dims._ROUNDED.values())
    assert kinds == set(BACKWARD) == {kind for kind, _, _ in AT_HUGE_INPUTS}


@pytest.mark.parametrize(("kind", "values", "derivatives"), AT_HUGE_INPUTS)
def test_infinite_and_huge_inputs(run, kind, values, derivatives):
    y = np.array([*HUGE, np.inf], np.float32)
    run(_apply, y, kind)
    np.testing.assert_array_equal(y, np.array(values, np.float32))
    x, dx, dy = np.array(HUGE, np.float32), np.empty(2, np.float32), np.ones(2, np.float32)
    y = np.empty(2, np.float32)
    run(activation.activation_backward, *(View(array, 1, 2, 2) for array in (dx, y, dy, x)), kind)
    np.testing.assert_array_equal(dx, np.array(derivatives, np.float32))
    np.testing.assert_array_equal(y, np.array(values[:2], np.float32))


def test_reference_silu_far_below_zero_is_zero_without_a_warning():
    """e^100 overflows in float32; pytest turns warnings into errors."""
    x, dy = np.array([-100], np.float32), np.ones(1, np.float32)
    assert reference.silu_forward(x) == 0
    assert reference.silu_backward(dy, x) == 0


BACKWARD = {
    activation.GELU: reference.gelu_backward,
    activation.GELU_TANH: reference.gelu_tanh_backward,
    activation.RELU: reference.relu_backward,
    activation.SILU: reference.silu_backward,
}


@pytest.mark.parametrize("kind", BACKWARD)
def test_backward_is_reference(run, kind):
    """dx = dy · f′(x) and y = f(x), in rows that are ld apart; also with dx and dy the same array.

    y has the bits of the forward pass.
    """
    M, C, ld = 30, GRID.size // 30 - 3, GRID.size // 30
    dy = np.linspace(-2, 2, GRID.size, dtype=np.float32)
    dx, y, forward = (np.full_like(dy, np.nan) for _ in range(3))
    dx_view, y_view, dy_view, x_view = (View(array, M, C, ld) for array in (dx, y, dy, GRID))
    run(activation.activation_backward, dx_view, y_view, dy_view, x_view, kind)
    run(activation.activation_forward, View(forward, M, C, ld), x_view, kind)
    np.testing.assert_array_equal(y, forward)
    expected = BACKWARD[kind](dy.astype(np.float64), GRID.astype(np.float64))
    inside = np.arange(GRID.size) % ld < C
    np.testing.assert_allclose(dx[inside], expected[inside], rtol=2e-6, atol=1e-6)
    assert np.isnan(dx[~inside]).all()
    run(activation.activation_backward, dy_view, y_view, dy_view, x_view, kind)
    np.testing.assert_array_equal(dy[inside], dx[inside])


@pytest.mark.parametrize("kind", BACKWARD)
def test_reference_backward_is_the_derivative(kind):
    x, step = np.linspace(-8, 8, 1000), 1e-5
    derivative = (REFERENCE[kind](x + step) - REFERENCE[kind](x - step)) / (2 * step)
    np.testing.assert_allclose(BACKWARD[kind](1.5, x), 1.5 * derivative, atol=1e-9)


@pytest.mark.parametrize("kind", REFERENCE)
def test_forward_of_a_view_has_the_bits_of_one_vector_at_a_time(run, kind):
    at_once, rows = GRID.copy(), np.zeros_like(GRID)
    run(_apply, at_once, kind)
    M = GRID.size // 100
    run(activation.activation_forward, View(rows, M, 97, 100), View(GRID, M, 97, 100), kind)
    inside = np.arange(GRID.size) % 100 < 97
    np.testing.assert_array_equal(rows, np.where(inside, at_once, 0))
