"""Loads and stores of vectors: parts of a vector, bfloat16, addresses, bounds checks."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels.jit import entry
from minigpt.kernels.simd import (
    array_at,
    get,
    load,
    load_first,
    reduce_sum,
    store,
    store_first,
)

pytestmark = pytest.mark.kernel


@entry
def copy_first(a, b, count):
    store_first(load_first(a, 0, count), b, 0, count)
    return reduce_sum(load_first(a, 0, count))


@pytest.mark.parametrize("count", range(17))
def test_partial_loads_and_stores_leave_other_elements_alone(count):
    a, b = np.arange(1, 17, dtype=np.float32), np.zeros(16, np.float32)
    assert copy_first(a, b, count) == a[:count].sum()
    np.testing.assert_array_equal(b, np.where(np.arange(16) < count, a, 0))


@entry
def bf16_to_f32(bits, out):
    store(load(bits, 0), out, 0)
    store_first(load_first(bits, 0, 5), out, 16, 16)
    out[32] = get(bits, 3)


def test_uint16_is_loaded_as_bfloat16(rng):
    bits = (rng.standard_normal(16).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    exact = (bits.astype(np.uint32) << 16).view(np.float32)
    out = np.empty(33, np.float32)
    bf16_to_f32(bits, out)
    np.testing.assert_array_equal(out[:16], exact)
    np.testing.assert_array_equal(out[16:32], np.where(np.arange(16) < 5, exact, 0))
    assert out[32] == exact[3]


@entry
def sum_at(address, size, like):
    total = 0.0
    for value in array_at(address, size, like):
        total += value
    return total


def test_array_at_is_the_array_at_an_address(rng):
    a = rng.standard_normal(10).astype(np.float32)
    total = sum_at(np.uint64(a.ctypes.data), a.size, np.empty(0, np.float32))
    assert total == pytest.approx(a.sum(dtype=np.float64))


def test_a_vector_outside_its_array_raises_if_bounds_are_checked(run_python):
    code = """
import numpy as np
from minigpt.kernels.jit import entry
from minigpt.kernels.simd import load, reduce_sum
@entry
def f(a, i): return reduce_sum(load(a, i))
a = np.ones(20, np.float32)
assert f(a, 4) == 16
for i in (-1, 5):
    try: f(a, i)
    except IndexError: print("caught")
"""
    result = run_python("-c", code, NUMBA_BOUNDSCHECK="1")
    assert result.stdout == "caught\ncaught\n", result.stderr
