"""The one loop nest under every product of matrices: c += a · b, with b in panels.

matmul.py gives it weights as b, attention.py keys and values. It cuts c into tiles that stay in
registers; simd/ has the loop inside a tile.

How an element is summed is part of the definition: one chain of multiply-adds in the order of k
(in AMX, of blocks of 32 k), added to what is in c. So it has the same bits whatever tile it is
in, and however many rows are multiplied at once.

    gemm_accumulate(c, ic, ldc, a, ia, lda, b, ib, panel, rows, panels, K)

adds a[rows, K] · b[K, 16 · panels] to c:
    c  float32 at ic, rows `ldc` apart
    a  at ia, rows `lda` apart; bfloat16 only where BF16_PRODUCTS, and b, are
    b  panels `panel` elements apart, the first at ib; their number is even
With AMX and bfloat16, whole tiles are read and written: rows up to a multiple of AMX_ROWS, for
which a and c have room, and K up to a multiple of K_ALIGN, for which a and b have zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import types
from numba.extending import overload

from ..jit import jit
from ..layout import LANES, padded
from ..simd import (
    AMX,
    AMX_INT8,
    AMX_ROWS,
    BF16_PRODUCTS,
    TILE_ROWS,
    TILE_VECTORS,
    amx_configure_tiles,
    amx_microkernel_16,
    amx_microkernel_32,
    amx_release_tiles,
    microkernel,
)

# Few rows wait for memory: a single one takes four panels at a time, more ask for what comes
# next of b. Many wait for arithmetic: from more than _FEW rows on, the largest tile is the best.
_FEW = 16
_full = microkernel(TILE_ROWS, TILE_VECTORS, ahead=False)
_four = microkernel(4, TILE_VECTORS, ahead=True)
_two = microkernel(2, TILE_VECTORS, ahead=True)
_one = microkernel(1, TILE_VECTORS, ahead=True)
_one_wide = microkernel(1, 4, ahead=False)


@jit
def _gemm_accumulate(c, ic, ldc, a, ia, lda, b, ib, panel, rows, panels, K):
    """With vectors: a single row by itself, more in tiles."""
    if rows == 1 and panels % 4 == 0:
        for p in range(0, panels, 4):
            _one_wide(c, ic + p * LANES, ldc, a, ia, lda, b, ib + p * panel, panel, K)
    else:
        for p in range(0, panels, TILE_VECTORS):
            _add_in_tiles(
                c, ic + p * LANES, ldc, a, ia, lda, b, ib + p * panel, panel, rows, K
            )  # fmt: skip


@jit
def _add_in_tiles(c, ic, ldc, a, ia, lda, b, ib, panel, rows, K):
    """All rows with one tile's panels: the largest tiles first, then what is left."""
    row = 0
    while row + TILE_ROWS <= rows and rows > _FEW:
        _full(c, ic + row * ldc, ldc, a, ia + row * lda, lda, b, ib, panel, K)
        row += TILE_ROWS
    while row + 4 <= rows:
        _four(c, ic + row * ldc, ldc, a, ia + row * lda, lda, b, ib, panel, K)
        row += 4
    while row + 2 <= rows:
        _two(c, ic + row * ldc, ldc, a, ia + row * lda, lda, b, ib, panel, K)
        row += 2
    if row < rows:
        _one(c, ic + row * ldc, ldc, a, ia + row * lda, lda, b, ib, panel, K)


@jit
def _add_in_amx(c, ic, ldc, a, ia, lda, b, ib, panel, rows, panels, K):
    """Tiles of 32 rows × 2 panels, then of 16."""
    depth = padded(K)
    for p in range(0, panels, 2):
        row = 0
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
            _add_in_amx(c, ic, ldc, a, ia, lda, b, ib, panel, rows, panels, K)
        else:
            _gemm_accumulate(c, ic, ldc, a, ia, lda, b, ib, panel, rows, panels, K)

else:
    gemm_accumulate = _gemm_accumulate


def configure_tiles(a: Any) -> None:
    """What a thread does before it multiplies with `a` on the left."""
    raise NotImplementedError("for compiled code")


def release_tiles(a: Any) -> None:
    """What it does afterwards."""
    raise NotImplementedError("for compiled code")


def _in_amx(a: Any) -> bool:
    """Whether AMX multiplies left factors of a's type: bfloat16, or Rows of whole numbers."""
    if isinstance(a, types.Array):
        return AMX and a.dtype.bitwidth == 16
    return AMX_INT8


@overload(configure_tiles)
def _configure_tiles(a):
    return (lambda a: amx_configure_tiles()) if _in_amx(a) else (lambda a: None)


@overload(release_tiles)
def _release_tiles(a):
    return (lambda a: amx_release_tiles()) if _in_amx(a) else (lambda a: None)


def as_a_operand(scratch: Any, b: Any) -> Any:
    """float32 scratch as room for what is multiplied with b: for bfloat16 where that is faster."""
    raise NotImplementedError("for compiled code")


@overload(as_a_operand)
def _as_a_operand(scratch, b):
    if BF16_PRODUCTS and b.dtype.bitwidth == 16:
        return lambda scratch, b: scratch.view(np.uint16)
    return lambda scratch, b: scratch


def as_b_operand(scratch: Any, like: Any) -> Any:
    """float32 scratch as room for panels of the type of `like`."""
    raise NotImplementedError("for compiled code")


@overload(as_b_operand)
def _as_b_operand(scratch, like):
    if like.dtype.bitwidth == 16:
        return lambda scratch, like: scratch.view(np.uint16)
    return lambda scratch, like: scratch
