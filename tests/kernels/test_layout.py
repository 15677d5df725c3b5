"""Memory for kernels begins with a cache line."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels.layout import CACHE_LINE, aligned_arrays, aligned_zeros, thread_scratch


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
