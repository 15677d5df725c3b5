"""Products of quantized operands: weights of 8 or 4 bits, activations of 8 bits.

    w ≈ w_scale · q              int8: q from −127 to 127
    w ≈ w_scale · q + offset     int4: q from 0 to 15

A scale (and offset) belongs to a block: QUANT_BLOCK rows of one column. Activations are quantized
in blocks of the same rows, x ≈ x_scale · p, with p from −127 to 127. Within a block then

    Σ x · w ≈ x_scale · (w_scale · Σ p·q + offset · Σ p)

Σ p·q is a sum of integers: exact, so every processor may compute it by its own instructions. The
blocks are added up in float32, in the order of k. A row of the result therefore has the same bits
for any number of threads, alone or in a batch, on every processor with fused multiply-add.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit import I64_0, dispatch_on_types, dtype_of, inline, jit
from ..layout import (
    LANES,
    N_BLOCK,
    QUANT_BLOCK,
    activation_scales_stride,
    aligned_zeros,
    padded,
    qx_stride,
)
from ..simd import (
    AMX_INT8,
    AMX_ROWS,
    INT_FEW_ROWS,
    INT_ROW_VECTORS,
    INT_TILE_ROWS,
    INT_TILE_VECTORS,
    MANY_ROWS,
    amx_microkernel_int4,
    amx_microkernel_int8,
    array_at,
    fma,
    get,
    int_microkernel,
    k_per_line,
    load,
    load_first,
    reduce_max,
    reduce_sum,
    scales_per_block,
    select_less,
    splat,
    store_int8,
    vabs,
    vround,
)
from ..team import barrier, join, next_task


class QuantizedMatrix(NamedTuple):
    """A quantized B operand [K, N], flat, in the panels of layout.py.

    qweight  the integers: int8, or uint8 for pairs of int4
    scales   their scales, and for int4 offsets: bfloat16 in uint16
    """

    qweight: np.ndarray
    scales: np.ndarray


class QuantizedActivations(NamedTuple):
    """A quantized A operand [M, K], flat.

    qx               int8 [M, K], rows qx_stride(K) apart
    scales_and_sums  float32 [M, K / QUANT_BLOCK, 2], rows activation_scales_stride(K) apart: the
                     scale of a block and the sum of its integers
    """

    qx: np.ndarray
    scales_and_sums: np.ndarray


@jit
def quantized_at(qweight, scales, K, N, like):
    """The QuantizedMatrix [K, N] at two addresses, of the dtypes of the QuantizedMatrix `like`."""
    blocks, columns = padded(K, QUANT_BLOCK) // QUANT_BLOCK, padded(N, N_BLOCK)
    bytes_per_column = (QUANT_BLOCK // k_per_line(like.qweight)) * (4 * LANES) // LANES
    size = blocks * columns // LANES * scales_per_block(like.qweight)
    return QuantizedMatrix(
        array_at(qweight, blocks * columns * bytes_per_column, like.qweight),
        array_at(scales, size, like.scales),
    )


@jit
def dequantized_element(w, k, n, K):
    """The weight in row k and column n of a QuantizedMatrix with K rows, as float32."""
    rows, step = k_per_line(w.qweight), scales_per_block(w.qweight)
    panel, lane = n // LANES, n % LANES
    blocks = (K + QUANT_BLOCK - 1) // QUANT_BLOCK
    line = (panel * blocks * QUANT_BLOCK + k) // rows
    q = np.int64(w.qweight[line * 4 * LANES + 4 * lane + k % 4])
    i = (panel * blocks + k // QUANT_BLOCK) * step + lane
    if rows == 4:  # int8
        return np.float32(q) * get(w.scales, i)
    q = (q >> (k % 8 // 4 * 4)) & 15
    return np.float32(q) * get(w.scales, i) + get(w.scales, i + LANES)


# ---- activations ----------------------------------------------------------------------------

_MAX_INT8 = np.float32(127)


def make_quantized_activations(M: int, K: int) -> QuantizedActivations:
    """A buffer for M rows with at most K columns; empty arrays if K is 0."""
    rows = padded(M, AMX_ROWS)  # AMX reads full tiles
    return QuantizedActivations(
        aligned_zeros(rows * qx_stride(K) if K else 0, np.int8),
        aligned_zeros(M * activation_scales_stride(K) if K else 0, np.float32),
    )


@jit
def quantize_activations(team, buffer, x, ldx, M, K):
    """Quantize the rows of x [M, K], `ldx` apart, into `buffer`; returns QuantizedActivations.

    buffer  QuantizedActivations for a row of each thread, and for M rows. Every thread quantizes a
            single row for itself, which takes less time than a barrier.
    """
    ld, ld_scales = qx_stride(K), activation_scales_stride(K)
    if M == 1:
        if join(team):
            _quantize_row(buffer, team.rank * ld, team.rank * ld_scales, x, 0, K)
        return QuantizedActivations(
            buffer.qx[team.rank * ld :], buffer.scales_and_sums[team.rank * ld_scales :]
        )
    m = next_task(team)
    while m < M:
        _quantize_row(buffer, m * ld, m * ld_scales, x, m * ldx, K)
        m = next_task(team)
    barrier(team)
    return buffer


@jit
def _quantize_row(buffer, i, i_scales, x, ix, K):
    """Quantize the row of x at ix: integers to element i of qx, scales and sums to i_scales."""
    zero, max_int8 = splat(np.float32(0)), splat(_MAX_INT8)
    min_int8 = zero - max_int8
    not_finite = zero
    for k in range(0, K, QUANT_BLOCK):
        maxima = zero
        for c in range(k, k + QUANT_BLOCK, LANES):
            value = _load_padded(x, ix, c, K)
            maxima = _maximum(maxima, vabs(value))
            not_finite = fma(value, zero, not_finite)  # 0; NaN after NaN or ±∞
        absmax = reduce_max(maxima)
        inverse_scale = splat(_MAX_INT8 / absmax if absmax > 0 else np.float32(0))
        total = zero
        for c in range(k, k + QUANT_BLOCK, LANES):
            p = vround(_load_padded(x, ix, c, K) * inverse_scale)
            p = _maximum(min_int8, select_less(p, max_int8, p, max_int8))
            store_int8(p, buffer.qx, i + c)
            total = total + p
        buffer.scales_and_sums[i_scales + 2 * (k // QUANT_BLOCK)] = absmax / _MAX_INT8
        buffer.scales_and_sums[i_scales + 2 * (k // QUANT_BLOCK) + 1] = reduce_sum(total)
    if reduce_sum(not_finite) != 0:
        _mark_not_finite(buffer, i_scales, x, ix, K)


@jit
def _mark_not_finite(buffer, i_scales, x, ix, K):
    """NaN for the scales of the blocks with NaN or ±∞."""
    for k in range(0, K, QUANT_BLOCK):
        not_finite = splat(np.float32(0))
        for c in range(k, k + QUANT_BLOCK, LANES):
            not_finite = fma(_load_padded(x, ix, c, K), splat(np.float32(0)), not_finite)
        buffer.scales_and_sums[i_scales + 2 * (k // QUANT_BLOCK)] += reduce_sum(not_finite)


@inline
def _load_padded(x, ix, c, K):
    """Elements c … c + 15 of the row of x at ix; 0 from K on."""
    if c + LANES <= K:
        return load(x, ix + c)
    if c < K:
        return load_first(x, ix + c, K - c)
    return splat(np.float32(0))


@inline
def _maximum(a, b):
    """The maximum, lane by lane; a where b is NaN."""
    return select_less(a, b, b, a)


# ---- products -------------------------------------------------------------------------------

_PANELS = N_BLOCK // LANES
_MIN_AMX_ROWS = 8  # from here on AMX's tiles of 16 rows are faster than vectors, even half empty
_tile = int_microkernel(INT_TILE_ROWS, INT_TILE_VECTORS, prefetch_next=False)
_tile_4 = int_microkernel(4, 1, prefetch_next=True)
_tile_2 = int_microkernel(2, 1, prefetch_next=True)
_tile_1 = int_microkernel(1, 1, prefetch_next=False)
_tile_row = int_microkernel(1, INT_ROW_VECTORS, prefetch_next=False)
_tile_few = int_microkernel(INT_FEW_ROWS, 1, True) if INT_FEW_ROWS > 4 else _tile_4


@jit
def _accumulate_vectors(c, ic, ldc, x, m, w, panel, rows, K):
    """gemm_accumulate_int by vector instructions, for the N_BLOCK columns from `panel` on."""
    if rows == 1:
        for p in range(0, _PANELS, INT_ROW_VECTORS):
            _tile_row(c, ic + p * LANES, ldc, x, m, w, panel + p, K)
        return
    rest = rows
    if rows > MANY_ROWS:
        rest = rows % INT_TILE_ROWS
        if rest and rest + INT_TILE_ROWS == INT_FEW_ROWS:
            rest = INT_FEW_ROWS  # one tile, rather than a full one and a small one
    full = rows - rest
    for p in range(0, _PANELS, INT_TILE_VECTORS):
        for row in range(0, full, INT_TILE_ROWS):
            _tile(c, ic + row * ldc + p * LANES, ldc, x, m + row, w, panel + p, K)
    for p in range(_PANELS):
        _accumulate_few(c, ic + full * ldc + p * LANES, ldc, x, m + full, w, panel + p, rest, K)


@jit
def _accumulate_few(c, ic, ldc, x, m, w, panel, rows, K):
    """All rows with a panel, which is read from front to back."""
    row = I64_0
    while row + INT_FEW_ROWS <= rows:
        _tile_few(c, ic + row * ldc, ldc, x, m + row, w, panel, K)
        row += INT_FEW_ROWS
    while row + 4 <= rows:
        _tile_4(c, ic + row * ldc, ldc, x, m + row, w, panel, K)
        row += 4
    while row + 2 <= rows:
        _tile_2(c, ic + row * ldc, ldc, x, m + row, w, panel, K)
        row += 2
    if row < rows:
        _tile_1(c, ic + row * ldc, ldc, x, m + row, w, panel, K)


@dispatch_on_types
def gemm_accumulate_int(c, ic, ldc, x, m, w, block, rows, K, scratch):
    """c [rows, N_BLOCK] += x[m : m + rows, :] · w[:, N_BLOCK · block : N_BLOCK · (block + 1)].

    c        float32 at ic, rows `ldc` apart
    x, w     QuantizedActivations with K columns, QuantizedMatrix with K rows
    scratch  float32 [AMX_INT_SCRATCH]
    """
    qweight, _ = w.types
    int4 = dtype_of(qweight) == np.uint8
    amx_microkernel = amx_microkernel_int4 if int4 else amx_microkernel_int8

    def by_vectors(c, ic, ldc, x, m, w, block, rows, K, scratch):
        _accumulate_vectors(c, ic, ldc, x, m, w, block * _PANELS, rows, K)

    def by_amx(c, ic, ldc, x, m, w, block, rows, K, scratch):
        if rows < _MIN_AMX_ROWS:
            _accumulate_vectors(c, ic, ldc, x, m, w, block * _PANELS, rows, K)
        else:
            for p in range(0, _PANELS, 2):
                panel = block * _PANELS + p
                amx_microkernel(c, ic + p * LANES, ldc, x, m, w, panel, rows, K, scratch)

    return by_amx if AMX_INT8 else by_vectors
