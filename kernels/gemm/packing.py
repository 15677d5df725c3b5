"""Copy matrices from the order of a file or an activation to the order that products read.

A B operand becomes panels (layout.py), an A operand rows. Both are rounded to bfloat16 on the way
if the target is bfloat16.
"""

from __future__ import annotations

import numpy as np

from ..jit import I64_0, entry, jit
from ..layout import LANES, padded
from ..simd import (
    get,
    load,
    load_strided,
    panel_offset,
    put,
    splat,
    store,
    store_row_pair,
    transpose_16x16,
    transpose_16x16_to_panel,
)
from ..team import barrier, next_task

_ROWS = 64  # rows of a task, as they lie in memory
_COLUMNS = 32  # columns of a task of transpose_rows: of bfloat16, a cache line


@entry
def pack(team, panels, w, first_k, first_n, K, N, depth, k_stride, n_stride):
    """Pack a part [K, N] of a matrix into the panels of the full matrix.

    panels  the panels of the full matrix, with `depth` rows, flat: float32 or bfloat16
    w       the part, float32 or bfloat16, flat: element (k, n) at k · k_stride + n · n_stride. One
            of the strides is 1: n_stride for a matrix as Conv1D stores it, else it is transposed.
    first_k, first_n  the position of the part in the matrix: even; a multiple of LANES
    """
    task = next_task(team)
    while task * _ROWS < (K if n_stride == 1 else N):
        k, n, end_k, end_n = _task_range(task, K, N, n_stride)
        pack_rows(
            panels, first_k + k, first_n + n, depth, w, k * k_stride + n * n_stride,
            end_k - k, end_n - n, k_stride, n_stride,
        )  # fmt: skip
        task = next_task(team)
    barrier(team)


@jit
def pack_operand(team, panels, w, iw, K, N, k_stride, n_stride):
    """Pack a matrix [K, N] whose element (0, 0) is at iw: a temporary B operand.

    Rows up to a multiple of K_ALIGN are zeroed. Columns beyond N keep their former contents: no
    column of a product depends on another.
    """
    depth = padded(K)
    task = next_task(team)
    while task * _ROWS < (K if n_stride == 1 else N):
        k, n, end_k, end_n = _task_range(task, K, N, n_stride)
        pack_rows(
            panels, k, n, depth, w, iw + k * k_stride + n * n_stride,
            end_k - k, end_n - n, k_stride, n_stride,
        )  # fmt: skip
        if end_k == K:
            _clear_panel_rows(panels, depth, K + K % 2, n, end_n)
        task = next_task(team)
    barrier(team)


@jit
def _task_range(task, K, N, n_stride):
    """(first k, first n, end k, end n) of a task: _ROWS contiguous rows of w in memory."""
    begin, end = task * _ROWS, (task + 1) * _ROWS
    if n_stride == 1:
        return begin, I64_0, min(K, end), N
    return I64_0, begin, K, min(N, end)


@jit
def pack_rows(panels, first_k, first_n, depth, w, iw, K, N, k_stride, n_stride):
    """As `pack`, by one thread, with element (0, 0) of the part at iw."""
    panel, full_columns = first_n * depth + first_k * LANES, N - N % LANES
    if n_stride == 1:
        for k in range(0, K, 2):
            for n in range(0, full_columns, LANES):
                i = iw + k * k_stride + n
                second = load(w, i + k_stride) if k + 1 < K else splat(np.float32(0))
                store_row_pair(load(w, i), second, panels, panel + n * depth + k * LANES)
    else:
        in_squares = K - K % LANES if k_stride == 1 else 0
        for n in range(0, full_columns, LANES):
            i = iw + n * n_stride
            for k in range(0, in_squares, LANES):
                transpose_16x16_to_panel(
                    w, i + k, n_stride, panels, panel + n * depth + k * LANES
                )  # fmt: skip
            for k in range(in_squares, K, 2):
                row, second = i + k * k_stride, splat(np.float32(0))
                if k + 1 < K:
                    second = load_strided(w, row + k_stride, n_stride)
                first = load_strided(w, row, n_stride)
                store_row_pair(first, second, panels, panel + n * depth + k * LANES)
    for n in range(full_columns, N):
        column, lane = panel + full_columns * depth, n - full_columns
        for k in range(K):
            value = get(w, iw + k * k_stride + n * n_stride)
            put(value, panels, column + panel_offset(panels, k, lane))
        if K % 2:
            put(np.float32(0), panels, column + panel_offset(panels, K, lane))


@jit
def _clear_panel_rows(panels, depth, k, n, end):
    """Zero rows k (even) to depth − 1 of the panels of columns n to end − 1."""
    for panel in range(n * depth, end * depth, LANES * depth):
        for row in range(k, depth, 2):
            zero = splat(np.float32(0))
            store_row_pair(zero, zero, panels, panel + row * LANES)


@jit
def transpose_rows(team, y, ldy, x, ldx, M, N):
    """y[n, m] = x[m, n]: xᵀ as an A operand.

    y  [N, M], rows `ldy` apart; each is zeroed up to a multiple of K_ALIGN
    x  [M, N], rows `ldx` apart
    """
    zero = splat(np.float32(0))
    full_rows = M - M % LANES
    task = next_task(team)
    while task * _COLUMNS < N:
        begin, end = task * _COLUMNS, min(N, (task + 1) * _COLUMNS)
        in_squares = end - (end - begin) % LANES
        for m in range(0, full_rows, LANES):
            for n in range(begin, in_squares, LANES):
                transpose_16x16(x, m * ldx + n, ldx, y, n * ldy + m, ldy)
            for n in range(in_squares, end):
                store(load_strided(x, m * ldx + n, ldx), y, n * ldy + m)
        for n in range(begin, end):
            for m in range(full_rows, padded(M), LANES):
                store(zero, y, n * ldy + m)
            for m in range(full_rows, M):
                put(get(x, m * ldx + n), y, n * ldy + m)
        task = next_task(team)
    barrier(team)
