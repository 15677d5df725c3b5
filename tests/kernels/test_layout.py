"""Memory for kernels begins with a cache line."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels.layout import CACHE_LINE, aligned_zeros, thread_scratch


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
