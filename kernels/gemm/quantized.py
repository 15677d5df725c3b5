"""Weights as whole numbers of 8 or 4 bits: their products, and how both factors become whole.

    w ≈ scale · q              int8: q from −127 to 127
    w ≈ scale · q + offset     int4: q from 0 to 15

A scale (and offset) belongs to QUANT_BLOCK rows of one column. What such weights are multiplied
with is
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

from ..jit import jit
from ..layout import LANES, N_BLOCK, QUANT_BLOCK, activation_scales_stride, padded, qx_stride, zeros
from ..simd import (
    AMX_INT8,
    AMX_ROWS,
    INT_TILE_ROWS,
    INT_TILE_VECTORS,
    amx_microkernel_int4,
    amx_microkernel_int8,
    array_at,
    fma,
    get,
    int_microkernel,
    load_first,
    reduce_max,
    reduce_sum,
    rows_of_line,
    scales_of_block,
    splat,
    store_numbers,
    vabs,
    vmax,
    vmin,
    vround,
)
from ..team import barrier, next_task


class QuantizedMatrix(NamedTuple):
    """A right factor: the panels of its numbers, int8 or (int4) uint8, and their scales."""

    numbers: np.ndarray
    scales: np.ndarray


class Rows(NamedTuple):
    """A left factor: rows of int8 and what they are worth (see int_microkernel)."""

    numbers: np.ndarray
    units: np.ndarray


@jit
def quantized_at(address, scales, K, N, like):
    """The QuantizedMatrix [K, N] whose qweight and scales lie at two addresses."""
    blocks, columns = padded(K, QUANT_BLOCK) // QUANT_BLOCK, padded(N, N_BLOCK)
    per_block = (QUANT_BLOCK // rows_of_line(like.numbers)) * (4 * LANES) // LANES
    numbers = array_at(address, blocks * columns * per_block, like.numbers)
    size = blocks * columns // LANES * scales_of_block(like.numbers)
    return QuantizedMatrix(numbers, array_at(scales, size, like.scales))


@jit
def dequantized_element(w, k, n, K):
    """The weight in row k and column n of QuantizedMatrix of K rows."""
    rows, per_block = rows_of_line(w.numbers), scales_of_block(w.numbers)
    panel, lane = n // LANES, n % LANES
    blocks = (K + QUANT_BLOCK - 1) // QUANT_BLOCK
    line = (panel * blocks * QUANT_BLOCK + k) // rows
    number = np.int64(w.numbers[line * 4 * LANES + 4 * lane + k % 4])
    scales = (panel * blocks + k // QUANT_BLOCK) * per_block + lane
    if rows == 4:
        return np.float32(number) * get(w.scales, scales)
    number = (number >> (k % 8 // 4 * 4)) & 15
    return np.float32(number) * get(w.scales, scales) + get(w.scales, scales + LANES)


# ---- the left factor ------------------------------------------------------------------------

_LARGEST = np.float32(127)


def make_quantized_activations(M: int, K: int) -> Rows:
    """Room for M rows of at most K numbers; of none where K is 0."""
    whole = padded(M, AMX_ROWS)  # AMX reads whole tiles
    return Rows(
        zeros(whole * qx_stride(K) if K else 0, np.int8),
        zeros(M * activation_scales_stride(K) if K else 0, np.float32),
    )


@jit
def quantize_activations(team, rows, x, ldx, M, K):
    """Quantize the rows of x [M, K], `ldx` apart; the result's lie qx_stride(K) and
    activation_scales_stride(K) apart.

    rows  room for M rows, and for one of each thread. A single row every thread makes for itself:
          that takes less time than to wait for another's.
    """
    ld, ldu = qx_stride(K), activation_scales_stride(K)
    if M == 1:
        _quantize_row(rows, team.rank * ld, team.rank * ldu, x, 0, K)
        return Rows(rows.numbers[team.rank * ld :], rows.units[team.rank * ldu :])
    m = next_task(team)
    while m < M:
        _quantize_row(rows, m * ld, m * ldu, x, m * ldx, K)
        m = next_task(team)
    barrier(team)
    return rows


@jit
def _quantize_row(rows, i, iu, x, ix, K):
    """One row of x, at ix, to the numbers at i and the units at iu."""
    zero, most = splat(np.float32(0)), splat(_LARGEST)
    for k in range(0, K, QUANT_BLOCK):
        end = min(K, k + QUANT_BLOCK)
        greatest = zero
        for c in range(k, end, LANES):
            greatest = vmax(greatest, vabs(load_first(x, ix + c, min(LANES, end - c))))
        span = reduce_max(greatest)
        per_unit = splat(_LARGEST / span if span > 0 else np.float32(0))
        total = flaw = zero
        for c in range(k, k + QUANT_BLOCK, LANES):
            value = zero
            if c < end:
                value = load_first(x, ix + c, min(LANES, end - c))
            number = vmax(vmin(vround(value * per_unit), most), zero - most)
            store_numbers(number, rows.numbers, i + c)
            total = total + number
            flaw = fma(value, zero, flaw)  # NaN where a number is no finite one, and so the result
        rows.units[iu + 2 * (k // QUANT_BLOCK)] = span / _LARGEST + reduce_sum(flaw)
        rows.units[iu + 2 * (k // QUANT_BLOCK) + 1] = reduce_sum(total)


# ---- products -------------------------------------------------------------------------------

_PANELS = N_BLOCK // LANES
_FEW = 16  # as in products.py
_AMX_ROWS = 8  # from so many on AMX's tiles, half empty, are faster than vectors
_full = int_microkernel(INT_TILE_ROWS, INT_TILE_VECTORS, ahead=False)
_four = int_microkernel(4, INT_TILE_VECTORS, ahead=True)
_two = int_microkernel(2, INT_TILE_VECTORS, ahead=True)
_one = int_microkernel(1, INT_TILE_VECTORS, ahead=True)
_one_wide = int_microkernel(1, 4, ahead=False)


@jit
def _add_with_vectors(c, ic, ldc, x, m, w, first, rows, K):
    """N_BLOCK columns, from panel number `first` on: a single row by itself, more in tiles."""
    if rows == 1:
        _one_wide(c, ic, ldc, x, m, w, first, K)
        return
    for p in range(0, _PANELS, INT_TILE_VECTORS):
        _add_in_tiles(c, ic + p * LANES, ldc, x, m, w, first + p, rows, K)


@jit
def _add_in_tiles(c, ic, ldc, x, m, w, panel, rows, K):
    """All rows with one tile's panels: the largest tiles first, then what is left."""
    row = 0
    while row + INT_TILE_ROWS <= rows and rows > _FEW:
        _full(c, ic + row * ldc, ldc, x, m + row, w, panel, K)
        row += INT_TILE_ROWS
    while row + 4 <= rows:
        _four(c, ic + row * ldc, ldc, x, m + row, w, panel, K)
        row += 4
    while row + 2 <= rows:
        _two(c, ic + row * ldc, ldc, x, m + row, w, panel, K)
        row += 2
    if row < rows:
        _one(c, ic + row * ldc, ldc, x, m + row, w, panel, K)


def gemm_accumulate_int(
    c: Any, ic: Any, ldc: Any, x: Any, m: Any, w: Any, group: Any, rows: Any, K: Any, scratch: Any
) -> None:
    """c [rows, N_BLOCK] += x[m : m + rows, :] · w[:, N_BLOCK · group : N_BLOCK · (group + 1)].

    c        float32 at ic, rows `ldc` apart
    x, w     Rows and QuantizedMatrix of K terms
    scratch  float32 [AMX_INT_SCRATCH]
    """
    raise NotImplementedError("for compiled code")


@overload(gemm_accumulate_int)
def _gemm_accumulate_int(c, ic, ldc, x, m, w, group, rows, K, scratch):
    int4 = w.types[0].dtype == types.uint8
    add_in_amx = amx_microkernel_int4 if int4 else amx_microkernel_int8

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
