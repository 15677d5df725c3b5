"""Layer normalization against reference.py in float64."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.layernorm import (
    LayerNorm,
    layernorm_backward,
    layernorm_forward,
    layernorm_partials,
    layernorm_rows,
)
from minigpt.kernels.layout import f32_to_bf16
from minigpt.kernels.view import View

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(("M", "C"), [(1, 1), (1, 16), (3, 5), (9, 17), (20, 64), (17, 100)])
def test_forward_is_reference(run, rng, M, C):
    x = (rng.standard_normal((M, C)) * 3 + 10).astype(np.float32)
    weight, bias = rng.standard_normal((2, C)).astype(np.float32)
    y = np.full(M * C, np.nan, np.float32)
    norm = LayerNorm(weight, bias)
    run(layernorm_forward, View(y, M, C, C), View(x.ravel(), M, C, C), norm, np.float32(1e-5))
    expected = reference.layernorm_forward(x.astype(np.float64), weight, bias, 1e-5)
    np.testing.assert_allclose(y.reshape(M, C), expected, rtol=2e-5, atol=2e-5)


def test_rows_are_ld_apart_and_may_be_bfloat16(run, rng):
    M, C, ld = 10, 33, 64
    x = rng.standard_normal((M, ld)).astype(np.float32)
    weight, bias = rng.standard_normal((2, C)).astype(np.float32)
    y, rounded = np.zeros((M, ld), np.float32), np.zeros((M, ld), np.uint16)
    for result in (y, rounded):
        run(
            layernorm_forward, View(result.reshape(-1), M, C, ld), View(x.ravel(), M, C, ld),
            LayerNorm(weight, bias), np.float32(1e-5),
        )  # fmt: skip
        assert not result[:, C:].any()
    np.testing.assert_array_equal(rounded, f32_to_bf16(y))


def test_rows_in_any_order_have_the_bits_of_all_rows(run, rng):
    M, C, ld = 6, 33, 40
    x = rng.standard_normal((M, ld)).astype(np.float32)
    norm, eps = LayerNorm(*rng.standard_normal((2, C)).astype(np.float32)), np.float32(1e-5)
    rows = np.array([5, 0, 5])
    y, some = np.zeros((M, ld), np.float32), np.zeros((3, ld), np.float32)
    x_view = View(x.ravel(), M, C, ld)
    run(layernorm_forward, View(y.reshape(-1), M, C, ld), x_view, norm, eps)
    run(layernorm_rows, View(some.reshape(-1), 3, C, ld), x_view, rows, norm, eps)
    np.testing.assert_array_equal(some, y[rows])


def test_a_large_mean_does_not_cancel(run):
    x = (1000 + np.arange(32, dtype=np.float32) / 32).reshape(1, 32)
    one, zero = np.ones(32, np.float32), np.zeros(32, np.float32)
    y = np.empty(32, np.float32)
    norm = LayerNorm(one, zero)
    run(layernorm_forward, View(y, 1, 32, 32), View(x.ravel(), 1, 32, 32), norm, np.float32(1e-5))
    expected = reference.layernorm_forward(x.astype(np.float64), one, zero, 1e-5)
    np.testing.assert_allclose(y, expected[0], atol=1e-3)


@pytest.mark.parametrize(("M", "C"), [(1, 1), (1, 16), (3, 5), (40, 33), (70, 64)])
def test_backward_is_reference(run, rng, M, C):
    """The gradients are added to; their sums go over several blocks of rows."""
    ld = C + 3
    x, dy, dx = (rng.standard_normal((M, ld)).astype(np.float32) for _ in range(3))
    weight, dweight, dbias = rng.standard_normal((3, C)).astype(np.float32)
    before = dx.copy(), dweight.copy(), dbias.copy()
    partials = np.full(layernorm_partials(M, C), np.nan, np.float32)
    run(
        layernorm_backward, View(dx.reshape(-1), M, C, ld), LayerNorm(dweight, dbias),
        View(dy.ravel(), M, C, ld), View(x.ravel(), M, C, ld), LayerNorm(weight, weight),
        partials, np.float32(1e-5),
    )  # fmt: skip
    expected = reference.layernorm_backward(
        *(a.astype(np.float64) for a in (dy[:, :C], x[:, :C], weight)), 1e-5
    )
    after = dx[:, :C], dweight, dbias
    for new, old, added in zip(after, (before[0][:, :C], *before[1:]), expected, strict=True):
        np.testing.assert_allclose(new - old, added, rtol=1e-4, atol=1e-5 * (1 + abs(added).max()))
    np.testing.assert_array_equal(dx[:, C:], before[0][:, C:])


def test_reference_backward_is_the_derivative(rng, derivatives):
    x, dy = rng.standard_normal((2, 3, 5))
    weight, bias = rng.standard_normal((2, 5))
    dx, dweight, dbias = reference.layernorm_backward(dy, x, weight, 1e-5)
    loss = lambda x, w, b: (dy * reference.layernorm_forward(x, w, b, 1e-5)).sum()  # noqa: E731
    np.testing.assert_allclose(dx, derivatives(lambda x: loss(x, weight, bias), x), atol=1e-8)
    np.testing.assert_allclose(dweight, derivatives(lambda w: loss(x, w, bias), weight), atol=1e-8)
    np.testing.assert_allclose(dbias, derivatives(lambda b: loss(x, weight, b), bias), atol=1e-8)
