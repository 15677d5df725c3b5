"""Sixteen rows of sixteen elements, turned: rows become columns without a detour through memory."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from ..jit import inline
from ..layout import LANES
from .llvm import V16I, at, element, load_vector, store_vector
from .memory import check, store_pair


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of sixteen vectors. A square of four blocks is turned by turning each block and
    changing the two beside the diagonal; so this is done to blocks of 8, of 4, of 2 and of 1."""
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
    """The columns of the square whose first row is at `start`, `stride` from row to row."""
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
    """y[j, i] = x[i, j] for i and j from 0 to 15; element (0, 0) at ix and iy, rows `ldx` and `ldy`
    apart."""
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
            store_pair(context, builder, kind, columns[k], columns[k + 1], panel, offset)

    n = types.intp
    return types.void(x, n, n, panel, n), codegen


@inline
def transpose_16x16_to_panel(x, ix, ldx, panel, ip):
    """As transpose_16x16; y is sixteen rows of a panel, the first of them, an even one, at ip."""
    check(x, ix, ix + (LANES - 1) * ldx + LANES - 1)
    check(panel, ip, ip + LANES * LANES - 1)
    _transpose_16x16_to_panel(x, ix, ldx, panel, ip)
