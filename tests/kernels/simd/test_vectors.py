"""Arithmetic and reductions of vectors, lane by lane, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels.jit import entry
from minigpt.kernels.simd import (
    fma,
    lane_ids,
    load,
    power_of_two,
    reduce_max,
    reduce_sum,
    select_less,
    splat,
    store,
    vabs,
    vmax,
    vmin,
    vround,
)

pytestmark = pytest.mark.kernel


@entry
def arithmetic(a, b, out):
    x, y = load(a, 0), load(b, 0)
    store(x + y, out, 0)
    store(x - y, out, 16)
    store(x * y, out, 32)
    store(x / y, out, 48)
    store(fma(x, y, x), out, 64)
    store(vmax(x, y), out, 80)
    store(vmin(x, y), out, 96)
    store(vabs(x), out, 112)
    store(vround(x), out, 128)
    store(select_less(x, y, splat(np.float32(1)), lane_ids()), out, 144)
    store(power_of_two(lane_ids() - splat(np.float32(8))), out, 160)


def test_each_operation_in_each_lane(rng):
    a, b = rng.standard_normal((2, 16)).astype(np.float32)
    out = np.empty(176, np.float32)
    arithmetic(a, b, out)
    lanes = np.arange(16, dtype=np.float32)
    expected = [
        a + b, a - b, a * b, a / b, (a.astype(np.float64) * b + a).astype(np.float32),
        np.maximum(a, b), np.minimum(a, b), np.abs(a), np.rint(a),
        np.where(a < b, np.float32(1), lanes), 2.0 ** (lanes - 8),
    ]  # fmt: skip
    np.testing.assert_allclose(out.reshape(-1, 16), expected, rtol=2e-7)


@entry
def reductions(a):
    return reduce_sum(load(a, 0)), reduce_max(load(a, 0))


def test_reductions_have_a_fixed_order(rng):
    a = rng.standard_normal(16).astype(np.float32)
    total = a
    while total.size > 1:
        total = total[: total.size // 2] + total[total.size // 2 :]
    assert reductions(a) == (total[0], a.max())
