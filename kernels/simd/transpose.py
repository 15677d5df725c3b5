"""Transpose blocks of 16 × 16 elements in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from ..jit import inline
from ..layout import LANES
from .llvm import V16I, at, element, intrinsic, load_vector, store_vector
from .memory import check, emit_store_row_pair


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of sixteen vectors, by recursion.

    A matrix of 2 × 2 blocks is transposed by transposing each block and swapping the two off the
    diagonal. The swap is done for blocks of 8, then of 4, of 2 and of 1.
    """
    for size in (8, 4, 2, 1):
        lower = [LANES + j - size if j & size else j for j in range(LANES)]
        upper = [LANES + j if j & size else j + size for j in range(LANES)]
        for i in range(LANES):
            if not i & size:
                a, b = rows[i], rows[i + size]
                rows[i] = builder.shuffle_vector(a, b, ir.Constant(V16I, lower))
                rows[i + size] = builder.shuffle_vector(a, b, ir.Constant(V16I, upper))
    return rows


def _columns(context: Any, builder: Any, kind: Any, array: Any, start: Any, stride: Any) -> Any:
    """The columns of the 16 × 16 block whose rows begin at `start`, `stride` apart."""
    offsets = (at(builder, start, stride, row) for row in range(LANES))
    addresses = [element(context, builder, kind, array, offset) for offset in offsets]
    return _transposed(builder, [load_vector(builder, kind, address) for address in addresses])


@intrinsic
def _transpose_16x16(typingctx, x, ix, ldx, y, iy, ldy):
    def codegen(context, builder, signature, arguments):
        x, ix, ldx, y, iy, ldy = arguments
        kind = signature.args[3]
        for row, vector in enumerate(_columns(context, builder, signature.args[0], x, ix, ldx)):
            address = element(context, builder, kind, y, at(builder, iy, ldy, row))
            store_vector(builder, kind, vector, address)

    n = types.intp
    return types.void(x, n, n, y, n, n), codegen


@inline
def transpose_16x16(x, ix, ldx, y, iy, ldy):
    """y[j, i] = x[i, j] for i, j < 16; element (0, 0) at ix and iy, rows `ldx` and `ldy` apart."""
    check(x, ix, ix + (LANES - 1) * ldx + LANES - 1)
    check(y, iy, iy + (LANES - 1) * ldy + LANES - 1)
    _transpose_16x16(x, ix, ldx, y, iy, ldy)


@intrinsic
def _transpose_16x16_to_panel(typingctx, x, ix, ldx, panel, ip):
    def codegen(context, builder, signature, arguments):
        x, ix, ldx, panel, ip = arguments
        kind = signature.args[3]
        columns = _columns(context, builder, signature.args[0], x, ix, ldx)
        for k in range(0, LANES, 2):
            offset = builder.add(ip, ip.type(k * LANES))
            emit_store_row_pair(context, builder, kind, columns[k], columns[k + 1], panel, offset)

    n = types.intp
    return types.void(x, n, n, panel, n), codegen


@inline
def transpose_16x16_to_panel(x, ix, ldx, panel, ip):
    """As transpose_16x16 to sixteen rows of a panel; the first has an even number and is at ip."""
    check(x, ix, ix + (LANES - 1) * ldx + LANES - 1)
    check(panel, ip, ip + LANES * LANES - 1)
    _transpose_16x16_to_panel(x, ix, ldx, panel, ip)
