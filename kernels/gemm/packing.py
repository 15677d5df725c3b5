"""Matrices from the order they are stored in to the order that products read them in.

The right factor goes to panels (see layout.py), the left one to rows; both are rounded to bfloat16
on the way, where the target is of that type.
"""

from __future__ import annotations

import numpy as np

from ..jit import entry, jit
from ..layout import LANES, padded
from ..simd import (
    get,
    load,
    load_first,
    load_strided,
    panel_offset,
    put,
    splat,
    store,
    store_first,
    store_two,
    transpose_16x16,
    transpose_16x16_to_panel,
)
from ..team import barrier, next_task

_ROWS = 64  # rows of a task
_COLUMNS = 32  # columns: of bfloat16, a cache line
_START = np.int64(0)  # a typed number, as in matmul.py


@entry
def pack(team, panels, w, first_k, first_n, K, N, depth, k_stride, n_stride):
    """A piece of a matrix into its panels.

    panels  the whole matrix's panels, of `depth` rows, flat: float32 or bfloat16
    w       the piece [K, N], float32 or bfloat16, flat: element (k, n) at k · k_stride +
            n · n_stride. One of the strides is 1: as Conv1D stores a matrix, or transposed.
    first_k, first_n  where in the matrix the piece begins: even; a multiple of LANES
    """
    task = next_task(team)
    while task * _ROWS < (K if n_stride == 1 else N):
        k, n, end_k, end_n = _part(task, K, N, n_stride)
        pack_rows(
            panels, first_k + k, first_n + n, depth, w, k * k_stride + n * n_stride,
            end_k - k, end_n - n, k_stride, n_stride,
        )  # fmt: skip
        task = next_task(team)
    barrier(team)


@jit
def pack_operand(team, panels, w, iw, K, N, k_stride, n_stride):
    """A whole matrix, whose element (0, 0) is at iw, into panels: a right factor of the moment.

    Rows of zeros follow up to a multiple of K_ALIGN. Columns beyond N keep what was there: no
    column
    of a product depends on another.
    """
    depth = padded(K)
    task = next_task(team)
    while task * _ROWS < (K if n_stride == 1 else N):
        k, n, end_k, end_n = _part(task, K, N, n_stride)
        pack_rows(
            panels, k, n, depth, w, iw + k * k_stride + n * n_stride,
            end_k - k, end_n - n, k_stride, n_stride,
        )  # fmt: skip
        if end_k == K:
            _clear_rows(panels, depth, K + K % 2, n, end_n)
        task = next_task(team)
    barrier(team)


@jit
def _part(task, K, N, n_stride):
    """What a task packs, as (first k, first n, end of k, end of n): _ROWS whole rows of w as it
    lies in memory, so that it is read from front to back."""
    begin, end = task * _ROWS, (task + 1) * _ROWS
    if n_stride == 1:
        return begin, _START, min(K, end), N
    return _START, begin, K, min(N, end)


@jit
def pack_rows(panels, first_k, first_n, depth, w, iw, K, N, k_stride, n_stride):
    """As `pack`, for one thread, from element iw of w on."""
    panel, whole = first_n * depth + first_k * LANES, N - N % LANES
    if n_stride == 1:
        for k in range(0, K, 2):
            for n in range(0, whole, LANES):
                here = iw + k * k_stride + n
                second = load(w, here + k_stride) if k + 1 < K else splat(np.float32(0))
                store_two(load(w, here), second, panels, panel + n * depth + k * LANES)
    else:
        in_squares = K - K % LANES if k_stride == 1 else 0
        for n in range(0, whole, LANES):
            here = iw + n * n_stride
            for k in range(0, in_squares, LANES):
                transpose_16x16_to_panel(
                    w, here + k, n_stride, panels, panel + n * depth + k * LANES
                )  # fmt: skip
            for k in range(in_squares, K, 2):
                row, second = here + k * k_stride, splat(np.float32(0))
                if k + 1 < K:
                    second = load_strided(w, row + k_stride, n_stride)
                first = load_strided(w, row, n_stride)
                store_two(first, second, panels, panel + n * depth + k * LANES)
    for n in range(whole, N):
        column, lane = panel + whole * depth, n - whole
        for k in range(K):
            value = get(w, iw + k * k_stride + n * n_stride)
            put(value, panels, column + panel_offset(panels, k, lane))
        if K % 2:
            put(np.float32(0), panels, column + panel_offset(panels, K, lane))


@jit
def _clear_rows(panels, depth, k, n, end):
    """Zeros in rows k, even, … depth − 1 of the panels of columns n … end − 1."""
    for panel in range(n * depth, end * depth, LANES * depth):
        for row in range(k, depth, 2):
            zero = splat(np.float32(0))
            store_two(zero, zero, panels, panel + row * LANES)


@jit
def transpose_rows(team, y, ldy, x, ldx, M, N):
    """y[n, m] = x[m, n]: x as a left factor from its other side.

    y  [N, M], rows `ldy` apart; zeros follow each row up to a multiple of K_ALIGN
    x  [M, N], rows `ldx` apart
    """
    zero = splat(np.float32(0))
    whole = M - M % LANES
    task = next_task(team)
    while task * _COLUMNS < N:
        begin, end = task * _COLUMNS, min(N, (task + 1) * _COLUMNS)
        in_squares = end - (end - begin) % LANES
        for m in range(0, whole, LANES):
            for n in range(begin, in_squares, LANES):
                transpose_16x16(x, m * ldx + n, ldx, y, n * ldy + m, ldy)
            for n in range(in_squares, end):
                store(load_strided(x, m * ldx + n, ldx), y, n * ldy + m)
        for n in range(begin, end):
            for m in range(whole, padded(M), LANES):
                store(zero, y, n * ldy + m)
            for m in range(whole, M):
                put(get(x, m * ldx + n), y, n * ldy + m)
        task = next_task(team)
    barrier(team)


@jit
def copy_rows(team, y, x, ld, M, N):
    """y[m, :] = x[m, :], for [M, N], rows `ld` apart in both."""
    m = next_task(team)
    while m < M:
        for n in range(0, N, LANES):
            lanes = min(LANES, N - n)
            store_first(load_first(x, m * ld + n, lanes), y, m * ld + n, lanes)
        m = next_task(team)
    barrier(team)


@jit
def clear_rows(team, y, ld, M, N):
    """y[m, :] = 0, for [M, N], rows `ld` apart."""
    m = next_task(team)
    while m < M:
        y[m * ld : m * ld + N] = 0
        m = next_task(team)
    barrier(team)
