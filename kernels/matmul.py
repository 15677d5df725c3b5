"""Products of matrices. Everything a GPT does between two nonlinearities is one of these two.

matmul_forward             y = x · w       w [K, N], as Conv1D stores it
matmul_transposed_forward  y = x · wᵀ      w [N, K], as an embedding is stored

Neither copies w: weights are used where they lie, in the mapped file.

How an element is summed is part of the definition, so that it has the same bits whatever the
number of rows, of threads, or the processor's tile:
  matmul             blocks of K_BLOCK terms, each one chain of multiply-adds in the order of k;
                     the blocks' sums are added one by one to the bias
  matmul_transposed  sixteen chains, of the terms k ≡ lane (mod 16), then added up by halves

docs/kernels.md tells how one gets from three nested loops to this.
"""

from __future__ import annotations

import numpy as np

from .activation import activation_forward
from .jit import jit
from .layout import LANES
from .simd import (
    DOT_COLUMNS,
    DOT_ROWS,
    TILE_ROWS,
    TILE_VECTORS,
    chain_of_eight,
    fma,
    load,
    load_first,
    prefetch,
    splat,
    store,
    store_first,
    sum_of_dots,
    sum_of_products,
    widen,
)
from .team import barrier, claim

K_BLOCK = 256

# Typed numbers, so that Numba compiles one function for all of them and not one for each.
NO_ACTIVATION = np.int64(-1)
SET, ADD = np.int64(0), np.int64(1)  # what happens to y: y = …, y += …

_TILE_COLUMNS = TILE_VECTORS * LANES
_STREAM_ROWS = max(8, TILE_ROWS)  # up to here w is read once and used from the cache for every row
_STREAM_COLUMNS = 512
_PANEL_COLUMNS = 64  # columns of w that a task packs at a time
_X_ROWS = 96  # rows of x that stay in the L2 cache meanwhile
_AHEAD = 16  # rows of w that packing asks for before it needs them
_TASK_ROWS = 512
_HEAD_COLUMNS = 96  # rows of w that a task of the transposed product takes
_HEAD_X_BYTES = 24 << 10  # of x that stay in the L1 cache meanwhile

# float32 elements of scratch that a thread needs here: packed panels, then one tile
MATMUL_SCRATCH = K_BLOCK * _PANEL_COLUMNS + TILE_ROWS * _TILE_COLUMNS

_add_tile = sum_of_products(TILE_ROWS, TILE_VECTORS, True)
_store_tile = sum_of_products(TILE_ROWS, TILE_VECTORS, False)
_dot_tile = sum_of_dots(DOT_ROWS, DOT_COLUMNS)
_dot_row = sum_of_dots(1, DOT_COLUMNS)
_dot_one = sum_of_dots(1, 1)


@jit
def matmul_forward(team, y, x, w, bias, M, K, N, mode, activation):
    """y = x · w + bias in mode SET, y += x · w + bias in mode ADD; then the activation, if any.

    y     float32 [M · N]
    x     float32 [M · K]
    w     [K · N]
    bias  [N]
    activation  a number of activation.py, or NO_ACTIVATION
    """
    columns = _stream_columns(N, team.size) if M <= _STREAM_ROWS else _PANEL_COLUMNS
    across = (N + columns - 1) // columns
    tasks = across * ((M + _TASK_ROWS - 1) // _TASK_ROWS)
    task = claim(team)
    while task < tasks:
        m, n = task // across * _TASK_ROWS, task % across * columns
        rows, width = min(_TASK_ROWS, M - m), min(columns, N - n)
        _start(y, bias, m, n, rows, width, N, mode)
        if M <= _STREAM_ROWS:
            _stream(team.scratch, y, x, w, m, n, rows, width, K, N)
        else:
            _multiply_panels(team.scratch, y, x, w, m, n, rows, width, K, N)
        if activation != NO_ACTIVATION:
            for row in range(m, m + rows):
                activation_forward(y, row * N + n, width, activation)
        task = claim(team)
    barrier(team)


@jit
def _stream_columns(N, threads):
    """Columns of w for a task: wide, for long reads, yet four tasks or more for each thread."""
    shared = (N // (4 * threads) + 63) // 64 * 64
    return min(_STREAM_COLUMNS, max(64, shared))


@jit
def _start(y, bias, m, n, rows, width, N, mode):
    """What the products are added to: the bias, and in mode ADD what was there before."""
    for row in range(m, m + rows):
        for c in range(n, n + width):
            start = widen(bias[c])
            y[row * N + c] = y[row * N + c] + start if mode == ADD else start


@jit
def _stream(part, y, x, w, m, n, rows, width, K, N):
    """y[m.., n..] += x · w for few rows: w passes by once, eight of its rows at a time.

    part  float32 [rows · width]: this block's sums, in the L1 cache
    """
    for first in range(0, K, K_BLOCK):
        end = min(K, first + K_BLOCK)
        part[: rows * width] = 0
        for k in range(first, end, 8):
            depth = min(8, end - k)
            for row in range(rows):
                if depth == 8:
                    _add_eight(part, row * width, x, (m + row) * K + k, w, k * N + n, width, N)
                else:
                    for one in range(k, end):
                        _add_one(part, row * width, x, (m + row) * K + one, w, one * N + n, width)
        for row in range(rows):
            for c in range(width):
                y[(m + row) * N + n + c] += part[row * width + c]


@jit
def _add_eight(part, ip, x, ix, w, iw, width, N):
    """part += Σ x[ix + r] · w[row r], r = 0 … 7, asking for the eight after the next meanwhile."""
    whole = width - width % LANES
    for c in range(0, whole, LANES):
        for r in range(16, 24):
            prefetch(w, iw + r * N + c)
        store(chain_of_eight(load(part, ip + c), x, ix, w, iw + c, N), part, ip + c)
    if whole < width:
        rest = width - whole
        acc = load_first(part, ip + whole, rest)
        for r in range(8):
            acc = fma(splat(x[ix + r]), load_first(w, iw + r * N + whole, rest), acc)
        store_first(acc, part, ip + whole, rest)


@jit
def _add_one(part, ip, x, ix, w, iw, width):
    """part += x[ix] · w[one row]"""
    factor = splat(x[ix])
    for c in range(0, width, LANES):
        lanes = min(LANES, width - c)
        acc = fma(factor, load_first(w, iw + c, lanes), load_first(part, ip + c, lanes))
        store_first(acc, part, ip + c, lanes)


@jit
def _multiply_panels(scratch, y, x, w, m, n, rows, width, K, N):
    """y[m.., n..] += x · w for many rows: tiles over packed panels of w.

    A panel is K_BLOCK rows × one tile's columns of w, laid out in the order the tile reads it.
    """
    panels = (width + _TILE_COLUMNS - 1) // _TILE_COLUMNS
    for first in range(0, K, K_BLOCK):
        depth = min(K_BLOCK, K - first)
        # 1. pack
        for panel in range(panels):
            column = panel * _TILE_COLUMNS
            place, lanes = column * K_BLOCK, min(_TILE_COLUMNS, width - column)
            _pack(scratch, place, w, first * N + n + column, lanes, depth, N)
        # 2. multiply, a block of x's rows at a time
        for block in range(m, m + rows, _X_ROWS):
            end = min(m + rows, block + _X_ROWS)
            for panel in range(panels):
                column = panel * _TILE_COLUMNS
                lanes = min(_TILE_COLUMNS, width - column)
                for row in range(block, end, TILE_ROWS):
                    if row + TILE_ROWS <= end and lanes == _TILE_COLUMNS:
                        _add_tile(
                            y, row * N + n + column, N,
                            x, row * K + first, K,
                            scratch, column * K_BLOCK, _TILE_COLUMNS, LANES, depth,
                        )  # fmt: skip
                    else:
                        _add_edge(
                            scratch, column, y, x, row, end, n + column, lanes, first, depth, K, N
                        )  # fmt: skip


@jit
def _pack(panel, place, w, iw, lanes, depth, N):
    """Copy w[depth rows, lanes columns] to a panel; the columns that a tile has more are zeros."""
    for k in range(depth):
        for c in range(0, _TILE_COLUMNS, LANES):
            prefetch(w, iw + (k + _AHEAD) * N + c)
            here = max(0, min(LANES, lanes - c))
            if here == LANES:
                vector = load(w, iw + k * N + c)
            elif here:
                vector = load_first(w, iw + k * N + c, here)
            else:
                vector = splat(np.float32(0))
            store(vector, panel, place + k * _TILE_COLUMNS + c)


@jit
def _add_edge(scratch, column, y, x, row, end, n, lanes, first, depth, K, N):
    """A tile that reaches over the last row or column: computed aside, then added where it counts.

    It is moved up to end at the last row (there are more rows than a tile has), so its first rows
    may be ones that other tiles compute.
    """
    aside = K_BLOCK * _PANEL_COLUMNS
    top = min(row, end - TILE_ROWS)
    _store_tile(
        scratch, aside, _TILE_COLUMNS,
        x, top * K + first, K,
        scratch, column * K_BLOCK, _TILE_COLUMNS, LANES, depth,
    )  # fmt: skip
    for r in range(row, min(end, row + TILE_ROWS)):
        for c in range(lanes):
            y[r * N + n + c] += scratch[aside + (r - top) * _TILE_COLUMNS + c]


@jit
def matmul_transposed_forward(team, y, x, w, M, K, N, scale):
    """y[m, n] = scale · Σ_k x[m, k] · w[n, k]

    y  float32 [M · N]
    x  float32 [M · K]
    w  [N · K]
    """
    tasks = (N + _HEAD_COLUMNS - 1) // _HEAD_COLUMNS
    block = max(DOT_ROWS, _HEAD_X_BYTES // (4 * K) // DOT_ROWS * DOT_ROWS)
    task = claim(team)
    while task < tasks:
        n = task * _HEAD_COLUMNS
        end = min(N, n + _HEAD_COLUMNS)
        for m in range(0, M, block):
            _dot_block(y, x, w, m, min(M, m + block), n, end, K, N)
        for m in range(M):
            for c in range(n, end):
                y[m * N + c] *= scale
        task = claim(team)
    barrier(team)


@jit
def _dot_block(y, x, w, m, m_end, n, n_end, K, N):
    """The dot products of rows m … m_end of x with rows n … n_end of w."""
    for c in range(n, n_end, DOT_COLUMNS):
        whole = c + DOT_COLUMNS <= n_end
        row = m
        while whole and row + DOT_ROWS <= m_end:
            _dot_tile(y, row * N + c, N, x, row * K, K, w, c * K, K, K)
            row += DOT_ROWS
        while whole and row < m_end:
            _dot_row(y, row * N + c, N, x, row * K, K, w, c * K, K, K)
            row += 1
        while row < m_end:
            for one in range(c, n_end):
                _dot_one(y, row * N + one, N, x, row * K, K, w, one * K, K, K)
            row += 1
