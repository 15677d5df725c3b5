"""Layer normalisation against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.layernorm import layernorm_forward


@pytest.mark.parametrize(("M", "C"), [(1, 1), (1, 16), (3, 5), (9, 17), (20, 64), (17, 100)])
def test_is_numpys(run, rng, M, C):
    x = (rng.standard_normal((M, C)) * 3 + 10).astype(np.float32)
    weight, bias = rng.standard_normal((2, C)).astype(np.float32)
    y = np.full(M * C, np.nan, np.float32)
    run(layernorm_forward, y, x.ravel(), C, weight, bias, M, C, np.float32(1e-5))
    truth = reference.layernorm(x.astype(np.float64), weight, bias, 1e-5)
    np.testing.assert_allclose(y.reshape(M, C), truth, rtol=2e-5, atol=2e-5)


def test_rows_may_lie_apart_and_be_rounded_to_bfloat16(run, rng):
    M, C, ld = 10, 33, 64
    x = rng.standard_normal((M, ld)).astype(np.float32)
    weight, bias = rng.standard_normal((2, C)).astype(np.float32)
    y, halves = np.zeros((M, ld), np.float32), np.zeros((M, ld), np.uint16)
    for result in (y, halves):
        run(
            layernorm_forward, result.reshape(-1), x.ravel(), ld, weight, bias,
            M, C, np.float32(1e-5),
        )  # fmt: skip
        assert not result[:, C:].any()
    np.testing.assert_array_equal(halves, reference.bfloat16(y))


def test_a_large_mean_does_not_cancel(run):
    x = (1000 + np.arange(32, dtype=np.float32) / 32).reshape(1, 32)
    one, zero = np.ones(32, np.float32), np.zeros(32, np.float32)
    y = np.empty(32, np.float32)
    run(layernorm_forward, y, x.ravel(), 32, one, zero, 1, 32, np.float32(1e-5))
    truth = reference.layernorm(x.astype(np.float64), one, zero, 1e-5)
    np.testing.assert_allclose(y, truth[0], atol=1e-3)
