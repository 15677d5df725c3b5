"""Matrices from the order they are stored in to the order that products read them in.

The right factor goes to panels (see layout.py), the left one to rows; both are rounded to bfloat16
on the way, where the target is of that type.
"""

from __future__ import annotations

import numpy as np

from .jit import entry, inline, jit
from .layout import LANES, padded
from .simd import (
    get,
    load,
    load_first,
    load_strided,
    place,
    put,
    splat,
    store,
    store_first,
    store_two,
)
from .team import barrier, claim

_ROWS = 64  # rows of a task
_START = np.int64(0)  # a typed number, as in matmul.py


@entry
def pack(team, panels, w, first_k, first_n, K, N, depth, k_stride, n_stride):
    """A piece of a matrix into its panels.

    panels  the whole matrix's panels, of `depth` rows, flat: float32 or bfloat16
    w       the piece [K, N], float32 or bfloat16, flat: element (k, n) at k · k_stride +
            n · n_stride. One of the strides is 1: as Conv1D stores a matrix, or transposed.
    first_k, first_n  where in the matrix the piece begins: even; a multiple of LANES
    """
    task = claim(team)
    while task * _ROWS < K:
        begin = task * _ROWS
        end = min(K, begin + _ROWS)
        pack_rows(panels, first_k, first_n, depth, w, _START, begin, end, N, k_stride, n_stride)
        task = claim(team)
    barrier(team)


@jit
def pack_factor(team, panels, w, iw, K, N, k_stride, n_stride):
    """A whole matrix, whose element (0, 0) is at iw, into panels: a right factor of the moment.

    Rows of zeros follow up to a multiple of PAD. Columns beyond N keep what was there: no column
    of a product depends on another.
    """
    depth = padded(K)
    task = claim(team)
    while task * _ROWS < depth:
        begin = task * _ROWS
        end = min(K, begin + _ROWS)
        pack_rows(panels, _START, _START, depth, w, iw, begin, end, N, k_stride, n_stride)
        for k in range(max(begin, K + K % 2), min(depth, begin + _ROWS)):
            for n in range(0, N, LANES):
                _clear_row(panels, n * depth, k)
        task = claim(team)
    barrier(team)


@jit
def pack_rows(panels, first_k, first_n, depth, w, iw, begin, end, N, k_stride, n_stride):
    """Rows begin … end − 1 of a piece, begin even; one thread's work. As `pack`, from iw on."""
    for n in range(0, N - N % LANES, LANES):
        panel = (first_n + n) * depth
        for k in range(begin, end, 2):
            here = iw + k * k_stride + n * n_stride
            first, second = _row(w, here, n_stride), splat(np.float32(0))
            if k + 1 < end:
                second = _row(w, here + k_stride, n_stride)
            store_two(first, second, panels, panel + (first_k + k) * LANES)
    for n in range(N - N % LANES, N):
        panel, lane = (first_n + n) // LANES * LANES * depth, n % LANES
        for k in range(begin, end):
            value = get(w, iw + k * k_stride + n * n_stride)
            put(value, panels, panel + place(panels, first_k + k, lane))
        if (end - begin) % 2:
            put(np.float32(0), panels, panel + place(panels, first_k + end, lane))


@inline
def _row(w, index, n_stride):
    return load(w, index) if n_stride == 1 else load_strided(w, index, n_stride)


@inline
def _clear_row(panels, panel, k):
    """Zeros in row k of a panel."""
    for lane in range(LANES):
        put(np.float32(0), panels, panel + place(panels, k, lane))


@jit
def transpose_rows(team, y, ldy, x, ldx, M, N):
    """y[n, m] = x[m, n]: x as a left factor from its other side.

    y  [N, M], rows `ldy` apart; zeros follow each row up to a multiple of PAD
    x  [M, N], rows `ldx` apart
    """
    zero = splat(np.float32(0))
    whole = M - M % LANES
    task = claim(team)
    while task * LANES < N:
        for m in range(0, whole, LANES):
            for n in range(task * LANES, min(N, (task + 1) * LANES)):
                store(load_strided(x, m * ldx + n, ldx), y, n * ldy + m)
        for n in range(task * LANES, min(N, (task + 1) * LANES)):
            for m in range(whole, padded(M), LANES):
                store(zero, y, n * ldy + m)
            for m in range(whole, M):
                put(get(x, m * ldx + n), y, n * ldy + m)
        task = claim(team)
    barrier(team)


@jit
def copy_rows(team, y, x, ld, M, N):
    """y[m, :] = x[m, :], for [M, N], rows `ld` apart in both."""
    m = claim(team)
    while m < M:
        for n in range(0, N, LANES):
            lanes = min(LANES, N - n)
            store_first(load_first(x, m * ld + n, lanes), y, m * ld + n, lanes)
        m = claim(team)
    barrier(team)


@jit
def clear_rows(team, y, ld, M, N):
    """y[m, :] = 0, for [M, N], rows `ld` apart."""
    m = claim(team)
    while m < M:
        y[m * ld : m * ld + N] = 0
        m = claim(team)
    barrier(team)
