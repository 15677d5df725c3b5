"""Memory for kernels begins with a cache line; conversion to bfloat16 rounds to the nearest."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels.layout import (
    CACHE_LINE,
    aligned_arrays,
    aligned_zeros,
    bf16_to_f32,
    f32_to_bf16,
    thread_scratch,
)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1, np.float32), (100, np.uint16), (7, np.int8), (1 << 20, np.float32)],
)
def test_aligned_zeros_begin_with_a_cache_line(size, dtype):
    array = aligned_zeros(size, dtype)
    assert (array.size, array.dtype, array.any()) == (size, dtype, False)
    assert array.ctypes.data % CACHE_LINE == 0


def test_each_row_of_scratch_begins_with_a_cache_line():
    rows = thread_scratch(3, 17)
    assert rows.shape == (3, 32)
    assert all(row.ctypes.data % CACHE_LINE == 0 for row in rows)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.int8])
def test_aligned_arrays_are_disjoint_parts_of_one_memory(dtype):
    sizes = {"a": 1, "b": 64, "c": 0, "d": 100}
    memory, arrays = aligned_arrays(sizes, np.dtype(dtype))
    assert {name: array.size for name, array in arrays.items()} == sizes
    assert memory.size * memory.itemsize % CACHE_LINE == 0
    for array in arrays.values():
        assert array.dtype == dtype
        assert array.ctypes.data % CACHE_LINE == 0
        array += 1
    assert memory.sum() == sum(sizes.values())  # no element is in two arrays, gaps are zero


def test_f32_to_bf16_rounds_to_nearest_and_ties_to_even():
    one, step = 0x3F80, 2.0**-7  # of bfloat16 just above 1
    values = [1, 1 + step / 2, 1 + 1.5 * step, 1 + 0.49 * step, 1 + 0.51 * step, -1, 0]
    expected = [one, one, one + 2, one, one + 1, 0xBF80, 0]
    assert f32_to_bf16(np.array(values, np.float32)).tolist() == expected
    special = np.array([np.inf, -np.inf, np.nan, 3.4e38], np.float32)
    assert np.isnan(bf16_to_f32(f32_to_bf16(special))[2])
    assert bf16_to_f32(f32_to_bf16(special))[[0, 1, 3]].tolist() == [np.inf, -np.inf, np.inf]
