"""View: rows, columns, copies."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels.jit import jit
from minigpt.kernels.layout import f32_to_bf16, row_stride
from minigpt.kernels.view import View, clear_rows, columns_of, copy_rows, rows_of, view

pytestmark = pytest.mark.kernel


def test_copy_rounds_to_bfloat16_and_leaves_the_rest_of_a_row(run, rng):
    x = rng.standard_normal((5, 20)).astype(np.float32)
    same, rounded = np.full((5, 19), 7, np.float32), np.full((5, 19), 7, np.uint16)
    for y in (same, rounded):
        run(copy_rows, View(y.reshape(-1), 5, 17, 19), View(x.reshape(-1), 5, 17, 20))
        assert (y[:, 17:] == 7).all()
    np.testing.assert_array_equal(same[:, :17], x[:, :17])
    np.testing.assert_array_equal(rounded[:, :17], f32_to_bf16(x[:, :17]))


@jit
def clear_part(team, data, M, N):
    clear_rows(team, columns_of(rows_of(view(data, M, N), 1, M - 2), 2, N - 3))


def test_rows_and_columns_of_a_view(run):
    M, N = 5, 40
    data = np.ones((M, row_stride(N)), np.float32)
    run(clear_part, data.reshape(-1), M, N)
    expected = np.ones_like(data)
    expected[1 : M - 1, 2 : N - 1] = 0
    np.testing.assert_array_equal(data, expected)
