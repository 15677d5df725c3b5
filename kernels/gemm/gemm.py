"""The loop nest under every matrix product: C += A · B, with B in panels (layout.py).

matmul.py calls it with weights as B, attention.py with keys and values. It cuts C into tiles that
stay in registers; the loop inside a tile is a microkernel of simd/.

The order of a sum is part of the definition: an element of C is one chain of multiply-adds in the
order of k (with AMX, of blocks of 32 k), added to what C contains. It has the same bits in whatever
tile it is computed, and however many rows are multiplied together.

    gemm_accumulate(c, ic, ldc, a, ia, lda, b, ib, panel, rows, panels, K)

adds A [rows, K] · B [K, 16 · panels] to C:
    c  float32, element (0, 0) at ic, rows `ldc` apart
    a  element (0, 0) at ia, rows `lda` apart: float32, or bfloat16 where BF16_PRODUCTS
    b  `panels` panels, an even number, float32 or bfloat16; the first at ib, `panel` elements apart

    gemv_accumulate(c, ic, ldc, a, ia, lda, b, ib, panel, panels, K)

does the same for one row of A, and reads one panel after the other: where B comes from memory and
its panels are short, as those of keys and values, a single stream of reads is fastest.

AMX reads and writes full tiles: bfloat16 A and C then need memory for rows up to a multiple of
AMX_ROWS, and A and B zeros for K up to a multiple of K_ALIGN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import I64_1, dispatch_on_types, dtype_of, is_instance, jit
from ..layout import LANES, padded
from ..simd import (
    AMX,
    AMX_INT8,
    AMX_ROWS,
    BF16_PRODUCTS,
    MANY_ROWS,
    TILE_ROWS,
    TILE_VECTORS,
    amx_configure_tiles,
    amx_microkernel_16,
    amx_microkernel_32,
    amx_microkernel_32_prefetch,
    amx_release_tiles,
    microkernel,
    reinterpret,
)
from .quantized import QuantizedActivations

_tile = microkernel(TILE_ROWS, TILE_VECTORS, prefetch_next=False)  # it has no register to spare
_tile_8 = microkernel(8, TILE_VECTORS, prefetch_next=True)
_tile_4 = microkernel(4, TILE_VECTORS, prefetch_next=True)
_tile_2 = microkernel(2, TILE_VECTORS, prefetch_next=True)
_tile_1 = microkernel(1, TILE_VECTORS, prefetch_next=True)
_tile_1x4 = microkernel(1, 4, prefetch_next=False)
_tile_1x1 = microkernel(1, 1, prefetch_next=True)

_HAS_TILE_8 = TILE_ROWS > 8  # AVX-512 alone has the registers for it


@jit
def _accumulate_vectors(c, ic, ldc, a, ia, lda, b, ib, panel, rows, panels, K):
    """gemm_accumulate by vector instructions."""
    if rows == 1 and panels % 4 == 0:
        for p in range(0, panels, 4):
            _tile_1x4(c, ic + p * LANES, ldc, a, ia, lda, b, ib + p * panel, panel, K)
    else:
        for p in range(0, panels, TILE_VECTORS):
            _accumulate_tiles(
                c, ic + p * LANES, ldc, a, ia, lda, b, ib + p * panel, panel, rows, K
            )  # fmt: skip


@jit
def _accumulate_tiles(c, ic, ldc, a, ia, lda, b, ib, panel, rows, K):
    """All rows with TILE_VECTORS panels: full tiles first, smaller ones for the rest."""
    row = 0
    while row + TILE_ROWS <= rows and rows > MANY_ROWS:
        _tile(c, ic + row * ldc, ldc, a, ia + row * lda, lda, b, ib, panel, K)
        row += TILE_ROWS
    while _HAS_TILE_8 and row + 8 <= rows:
        _tile_8(c, ic + row * ldc, ldc, a, ia + row * lda, lda, b, ib, panel, K)
        row += 8
    while row + 4 <= rows:
        _tile_4(c, ic + row * ldc, ldc, a, ia + row * lda, lda, b, ib, panel, K)
        row += 4
    while row + 2 <= rows:
        _tile_2(c, ic + row * ldc, ldc, a, ia + row * lda, lda, b, ib, panel, K)
        row += 2
    if row < rows:
        _tile_1(c, ic + row * ldc, ldc, a, ia + row * lda, lda, b, ib, panel, K)


@jit
def _accumulate_row(c, ic, ldc, a, ia, lda, b, ib, panel, panels, K):
    """gemv_accumulate by vector instructions."""
    for p in range(panels):
        _tile_1x1(c, ic + p * LANES, ldc, a, ia, lda, b, ib + p * panel, panel, K)


@jit
def _accumulate_amx(c, ic, ldc, a, ia, lda, b, ib, panel, rows, panels, K):
    """gemm_accumulate by AMX: tiles of 32 rows × 2 panels, then one of 16."""
    depth = padded(K)
    for p in range(0, panels, 2):
        row = 0
        if rows > AMX_ROWS:
            amx_microkernel_32_prefetch(
                c, ic + p * LANES, ldc, a, ia, lda, b, ib + p * panel, panel, depth
            )  # fmt: skip
            row = 2 * AMX_ROWS
        while row + AMX_ROWS < rows:
            amx_microkernel_32(
                c, ic + row * ldc + p * LANES, ldc, a, ia + row * lda, lda,
                b, ib + p * panel, panel, depth,
            )  # fmt: skip
            row += 2 * AMX_ROWS
        if row < rows:
            amx_microkernel_16(
                c, ic + row * ldc + p * LANES, ldc, a, ia + row * lda, lda,
                b, ib + p * panel, panel, depth,
            )  # fmt: skip


if AMX:

    @jit
    def gemm_accumulate(c, ic, ldc, a, ia, lda, b, ib, panel, rows, panels, K):
        if a.itemsize == 2:
            _accumulate_amx(c, ic, ldc, a, ia, lda, b, ib, panel, rows, panels, K)
        else:
            _accumulate_vectors(c, ic, ldc, a, ia, lda, b, ib, panel, rows, panels, K)

    @jit
    def gemv_accumulate(c, ic, ldc, a, ia, lda, b, ib, panel, panels, K):
        if a.itemsize == 2:
            _accumulate_amx(c, ic, ldc, a, ia, lda, b, ib, panel, I64_1, panels, K)
        else:
            _accumulate_row(c, ic, ldc, a, ia, lda, b, ib, panel, panels, K)

else:
    gemm_accumulate = _accumulate_vectors
    gemv_accumulate = _accumulate_row


def _uses_amx(a: Any) -> bool:
    """Whether products with A operands of Numba type `a` run on AMX: bfloat16, quantized."""
    if is_instance(a, QuantizedActivations):
        return AMX_INT8
    return AMX and dtype_of(a) == np.uint16


@dispatch_on_types
def configure_tiles(a):
    """Set up this thread's AMX tiles, if products with the A operand `a` use them."""
    if _uses_amx(a):
        return lambda a: amx_configure_tiles()
    return lambda a: None


@dispatch_on_types
def release_tiles(a):
    """Release this thread's AMX tiles after the products; the counterpart of configure_tiles."""
    if _uses_amx(a):
        return lambda a: amx_release_tiles()
    return lambda a: None


@dispatch_on_types
def as_a_operand(scratch, b):
    """float32 scratch viewed in the dtype of an A operand for products with b.

    bfloat16 where b is bfloat16 and the processor multiplies bfloat16 itself, else float32.
    """
    if BF16_PRODUCTS and dtype_of(b) == np.uint16:
        return lambda scratch, b: reinterpret(scratch, b)
    return lambda scratch, b: scratch


@dispatch_on_types
def as_b_operand(scratch, like):
    """float32 scratch viewed in the dtype of the panels `like`."""
    if dtype_of(like) == np.uint16:
        return lambda scratch, like: reinterpret(scratch, like)
    return lambda scratch, like: scratch
