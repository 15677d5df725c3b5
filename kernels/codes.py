"""Weights as whole numbers of 8 or 4 bits: their products, and how both factors become whole.

    w ≈ scale · q              int8: q from −127 to 127
    w ≈ scale · q + offset     int4: q from 0 to 15

A scale (and offset) belongs to BLOCK rows of one column. What such weights are multiplied with is
made whole, too, in blocks of the same rows: x ≈ unit · p, p from −127 to 127. Then within a block

    Σ x · w ≈ unit · (scale · Σ p·q + offset · Σ p)

where Σ p·q is a sum of integers: exact, in whatever order, however the processor does it. Blocks
are added up in float32 in the order of k. So a row has the same bits for any number of threads,
alone or among others, and whatever the instructions, on processors that multiply and add at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core import types
from numba.extending import overload

from .jit import jit
from .layout import BLOCK, GROUP, LANES, numbers_stride, padded, units_stride, zeros
from .simd import (
    AMX_INT8,
    AMX_ROWS,
    WHOLE_TILE_ROWS,
    WHOLE_TILE_VECTORS,
    amx_add_products_of_int4,
    amx_add_products_of_int8,
    array_at,
    fma,
    get,
    load_first,
    rows_of_line,
    scales_of_block,
    splat,
    store_numbers,
    sum_of_whole_products,
    vabs,
    vgreatest,
    vmax,
    vmin,
    vround,
    vsum,
)
from .team import barrier, claim


class Codes(NamedTuple):
    """A right factor: the panels of its numbers, int8 or (int4) uint8, and their scales."""

    numbers: np.ndarray
    scales: np.ndarray


class Rows(NamedTuple):
    """A left factor: rows of int8 and what they are worth (see sum_of_whole_products)."""

    numbers: np.ndarray
    units: np.ndarray


@jit
def codes_at(address, scales, K, N, like):
    """The Codes of [K, N] whose numbers and scales lie at two addresses, of the type of `like`."""
    blocks, columns = padded(K, BLOCK) // BLOCK, padded(N, GROUP)
    per_block = (BLOCK // rows_of_line(like.numbers)) * (4 * LANES) // LANES
    numbers = array_at(address, blocks * columns * per_block, like.numbers)
    size = blocks * columns // LANES * scales_of_block(like.numbers)
    return Codes(numbers, array_at(scales, size, like.scales))


@jit
def code_at(w, k, n, K):
    """The weight in row k and column n of Codes of K rows."""
    rows, per_block = rows_of_line(w.numbers), scales_of_block(w.numbers)
    panel, lane = n // LANES, n % LANES
    blocks = (K + BLOCK - 1) // BLOCK
    line = (panel * blocks * BLOCK + k) // rows
    number = np.int64(w.numbers[line * 4 * LANES + 4 * lane + k % 4])
    scales = (panel * blocks + k // BLOCK) * per_block + lane
    if rows == 4:
        return np.float32(number) * get(w.scales, scales)
    number = (number >> (k % 8 // 4 * 4)) & 15
    return np.float32(number) * get(w.scales, scales) + get(w.scales, scales + LANES)


# ---- the left factor ------------------------------------------------------------------------

_LARGEST = np.float32(127)


def make_rows(M: int, K: int) -> Rows:
    """Room for M rows of at most K numbers; of none where K is 0."""
    whole = padded(M, AMX_ROWS)  # AMX reads whole tiles
    return Rows(
        zeros(whole * numbers_stride(K) if K else 0, np.int8),
        zeros(M * units_stride(K) if K else 0, np.float32),
    )


@jit
def quantize_rows(team, rows, x, ldx, M, K):
    """x [M, K], rows `ldx` apart, as Rows: of the M rows, numbers_stride(K) and units_stride(K)
    apart.

    rows  room for M rows, and for one of each thread. A single row every thread makes for itself:
          that takes less time than to wait for another's.
    """
    ld, ldu = numbers_stride(K), units_stride(K)
    if M == 1:
        _quantize_row(rows, team.rank * ld, team.rank * ldu, x, 0, K)
        return Rows(rows.numbers[team.rank * ld :], rows.units[team.rank * ldu :])
    m = claim(team)
    while m < M:
        _quantize_row(rows, m * ld, m * ldu, x, m * ldx, K)
        m = claim(team)
    barrier(team)
    return rows


@jit
def _quantize_row(rows, i, iu, x, ix, K):
    """One row of x, at ix, to the numbers at i and the units at iu."""
    zero, most = splat(np.float32(0)), splat(_LARGEST)
    for k in range(0, K, BLOCK):
        end = min(K, k + BLOCK)
        greatest = zero
        for c in range(k, end, LANES):
            greatest = vmax(greatest, vabs(load_first(x, ix + c, min(LANES, end - c))))
        span = vgreatest(greatest)
        per_unit = splat(_LARGEST / span if span > 0 else np.float32(0))
        total = flaw = zero
        for c in range(k, k + BLOCK, LANES):
            value = zero
            if c < end:
                value = load_first(x, ix + c, min(LANES, end - c))
            number = vmax(vmin(vround(value * per_unit), most), zero - most)
            store_numbers(number, rows.numbers, i + c)
            total = total + number
            flaw = fma(value, zero, flaw)  # NaN where a number is no finite one, and so the result
        rows.units[iu + 2 * (k // BLOCK)] = span / _LARGEST + vsum(flaw)
        rows.units[iu + 2 * (k // BLOCK) + 1] = vsum(total)


# ---- products -------------------------------------------------------------------------------

_PANELS = GROUP // LANES
_FEW = 16  # as in products.py
_AMX_ROWS = 8  # from so many on AMX's tiles, half empty, are faster than vectors
_full = sum_of_whole_products(WHOLE_TILE_ROWS, WHOLE_TILE_VECTORS, ahead=False)
_four = sum_of_whole_products(4, WHOLE_TILE_VECTORS, ahead=True)
_two = sum_of_whole_products(2, WHOLE_TILE_VECTORS, ahead=True)
_one = sum_of_whole_products(1, WHOLE_TILE_VECTORS, ahead=True)
_one_wide = sum_of_whole_products(1, 4, ahead=False)


@jit
def _add_with_vectors(c, ic, ldc, x, m, w, first, rows, K):
    """GROUP columns, from panel number `first` on: a single row by itself, more in tiles."""
    if rows == 1:
        _one_wide(c, ic, ldc, x, m, w, first, K)
        return
    for p in range(0, _PANELS, WHOLE_TILE_VECTORS):
        _add_in_tiles(c, ic + p * LANES, ldc, x, m, w, first + p, rows, K)


@jit
def _add_in_tiles(c, ic, ldc, x, m, w, panel, rows, K):
    """All rows with one tile's panels: the largest tiles first, then what is left."""
    row = 0
    while row + WHOLE_TILE_ROWS <= rows and rows > _FEW:
        _full(c, ic + row * ldc, ldc, x, m + row, w, panel, K)
        row += WHOLE_TILE_ROWS
    while row + 4 <= rows:
        _four(c, ic + row * ldc, ldc, x, m + row, w, panel, K)
        row += 4
    while row + 2 <= rows:
        _two(c, ic + row * ldc, ldc, x, m + row, w, panel, K)
        row += 2
    if row < rows:
        _one(c, ic + row * ldc, ldc, x, m + row, w, panel, K)


def add_code_products(
    c: Any, ic: Any, ldc: Any, x: Any, m: Any, w: Any, group: Any, rows: Any, K: Any, scratch: Any
) -> None:
    """c [rows, GROUP] += x[m : m + rows, :] · w[:, GROUP · group : GROUP · (group + 1)].

    c        float32 at ic, rows `ldc` apart
    x, w     Rows and Codes of K terms
    scratch  float32 [AMX_WHOLE_SCRATCH]
    """
    raise NotImplementedError("for compiled code")


@overload(add_code_products)
def _add_code_products(c, ic, ldc, x, m, w, group, rows, K, scratch):
    int4 = w.types[0].dtype == types.uint8
    add_in_amx = amx_add_products_of_int4 if int4 else amx_add_products_of_int8

    def with_vectors(c, ic, ldc, x, m, w, group, rows, K, scratch):
        _add_with_vectors(c, ic, ldc, x, m, w, group * _PANELS, rows, K)

    def in_amx(c, ic, ldc, x, m, w, group, rows, K, scratch):
        if rows < _AMX_ROWS:
            _add_with_vectors(c, ic, ldc, x, m, w, group * _PANELS, rows, K)
        else:
            for p in range(0, _PANELS, 2):
                panel = group * _PANELS + p
                add_in_amx(c, ic + p * LANES, ldc, x, m, w, panel, rows, K, scratch)

    return in_amx if AMX_INT8 else with_vectors
