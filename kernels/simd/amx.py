"""The tiles of AMX, which multiply bfloat16 and bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from ..jit import inline, jit
from ..layout import LANES, QUANT_BLOCK, activation_scales_stride, padded, qx_stride
from .int_tiles import (
    LINE,
    activation_scales,
    all_lanes,
    rows_of_line,
    scales_of_block,
    weight_scales,
    worth,
)
from .llvm import V16I, V64B, call, element, load_vector, store_vector
from .memory import check, prefetch

# Eight tiles of 16 rows × 64 bytes. A product reads bfloat16 A [16, 32] and B, half a panel's
# block [32, 16] in pairs of rows, and adds to float32 C [16, 16]. Tiles are named by number:
# four sums, two of A, two of B.
AMX_ROWS = 16  # rows of A and C
AMX_K = 32  # columns of A, rows of B
_C, _A, _B = 0, 4, 6
# Of int8, A is [16, 64] and B a block of a panel of whole numbers, [64, 16] in fours of rows.

# Palette 1 and, for each tile, the bytes of a row and the number of rows: the 64 bytes that
# LDTILECFG reads.
_AMX_SHAPES = bytes([1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8])


def _tile_number(number: int) -> Any:
    return ir.Constant(ir.IntType(8), number)


def _tile_memory(context, builder, kind, array, index, stride) -> tuple[Any, Any]:
    """The address of a tile's first row in an array, and the bytes from row to row."""
    byte = ir.IntType(8).as_pointer()
    address = builder.bitcast(element(context, builder, kind, array, index), byte)
    return address, builder.mul(stride, stride.type(kind.dtype.bitwidth // 8))


@intrinsic
def amx_configure_tiles(typingctx):
    """Set up this thread's tiles; `amx_release_tiles` gives them back."""

    def codegen(context, builder, signature, arguments):
        shapes = cgutils.global_constant(builder, "amx_shapes", cgutils.make_bytearray(_AMX_SHAPES))
        pointer = builder.bitcast(shapes, ir.IntType(8).as_pointer())
        call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), pointer)

    return types.void(), codegen


@intrinsic
def amx_release_tiles(typingctx):
    def codegen(context, builder, signature, arguments):
        call(builder, "llvm.x86.tilerelease", ir.VoidType())

    return types.void(), codegen


def _amx_move(name: str, first: int) -> Any:
    """A function that moves tile `first` + number from or to memory."""

    @intrinsic(prefer_literal=True)
    def move(typingctx, number, array, index, stride):
        tile = first + number.literal_value

        def codegen(context, builder, signature, arguments):
            _, *offset = arguments
            address, step = _tile_memory(context, builder, signature.args[1], *offset)
            call(builder, name, ir.VoidType(), _tile_number(tile), address, step)

        return types.void(number, array, types.intp, types.intp), codegen

    return move


_amx_load_a = _amx_move("llvm.x86.tileloadd64", _A)
_amx_load_b = _amx_move("llvm.x86.tileloadd64", _B)
_amx_load_c = _amx_move("llvm.x86.tileloadd64", _C)
_amx_store_c = _amx_move("llvm.x86.tilestored64", _C)


@intrinsic(prefer_literal=True)
def _amx_multiply(typingctx, row, column):
    """C[row, column] += A[row] · B[column], both 0 or 1."""
    r, c = row.literal_value, column.literal_value

    def codegen(context, builder, signature, arguments):
        tiles = (_tile_number(number) for number in (_C + 2 * r + c, _A + r, _B + c))
        call(builder, "llvm.x86.tdpbf16ps", ir.VoidType(), *tiles)

    return types.void(row, column), codegen


@jit
def amx_microkernel_32(c, ic, ldc, a, ia, lda, b, ib, panel, K):
    """As the function of `microkernel`, for 32 rows × 2 panels of bfloat16; K % 32 = 0."""
    _check_amx(c, ic, ldc, a, ia, lda, b, ib, panel, K, 2 * AMX_ROWS)
    below_a, below_c = AMX_ROWS * lda, AMX_ROWS * ldc
    _amx_load_c(0, c, ic, ldc)
    _amx_load_c(1, c, ic + LANES, ldc)
    _amx_load_c(2, c, ic + below_c, ldc)
    _amx_load_c(3, c, ic + below_c + LANES, ldc)
    for k in range(0, K, AMX_K):
        _amx_load_b(0, b, ib + k * LANES, AMX_K)
        _amx_load_a(0, a, ia + k, lda)
        _amx_load_b(1, b, ib + panel + k * LANES, AMX_K)
        _amx_multiply(0, 0)
        _amx_load_a(1, a, ia + below_a + k, lda)
        _amx_multiply(0, 1)
        _amx_multiply(1, 0)
        _amx_multiply(1, 1)
    _amx_store_c(0, c, ic, ldc)
    _amx_store_c(1, c, ic + LANES, ldc)
    _amx_store_c(2, c, ic + below_c, ldc)
    _amx_store_c(3, c, ic + below_c + LANES, ldc)


@jit
def amx_microkernel_16(c, ic, ldc, a, ia, lda, b, ib, panel, K):
    """The same for 16 rows × 2 panels, asking for what comes next of b meanwhile."""
    _check_amx(c, ic, ldc, a, ia, lda, b, ib, panel, K, AMX_ROWS)
    _amx_load_c(0, c, ic, ldc)
    _amx_load_c(1, c, ic + LANES, ldc)
    for k in range(0, K, AMX_K):
        _amx_load_a(0, a, ia + k, lda)
        for line in range(0, AMX_K * LANES, AMX_K):
            prefetch(b, ib + k * LANES + _AMX_AHEAD + line)
            prefetch(b, ib + panel + k * LANES + _AMX_AHEAD + line)
        _amx_load_b(0, b, ib + k * LANES, AMX_K)
        _amx_multiply(0, 0)
        _amx_load_b(1, b, ib + panel + k * LANES, AMX_K)
        _amx_multiply(0, 1)
    _amx_store_c(0, c, ic, ldc)
    _amx_store_c(1, c, ic + LANES, ldc)


_AMX_AHEAD = 4 * AMX_K * LANES  # elements: 4 KiB


@inline
def _check_amx(c, ic, ldc, a, ia, lda, b, ib, panel, K, rows):
    check(a, ia, ia + (rows - 1) * lda + K - 1)
    check(b, ib, ib + panel + K * LANES - 1)
    check(c, ic, ic + (rows - 1) * ldc + 2 * LANES - 1)


def _amx_int_multiply(name: str) -> Any:
    """As _amx_multiply, for bytes; sums are int32."""

    @intrinsic(prefer_literal=True)
    def multiply(typingctx, row, column):
        r, c = row.literal_value, column.literal_value

        def codegen(context, builder, signature, arguments):
            tiles = (_tile_number(number) for number in (_C + 2 * r + c, _A + r, _B + c))
            call(builder, name, ir.VoidType(), *tiles)

        return types.void(row, column), codegen

    return multiply


_amx_multiply_signed = _amx_int_multiply("llvm.x86.tdpbssd")
_amx_multiply_unsigned = _amx_int_multiply("llvm.x86.tdpbsud")  # A signed, B not


@intrinsic(prefer_literal=True)
def _amx_zero(typingctx, number):
    tile = _C + number.literal_value

    def codegen(context, builder, signature, arguments):
        call(builder, "llvm.x86.tilezero", ir.VoidType(), _tile_number(tile))

    return types.void(number), codegen


@intrinsic
def _halves_of_bytes(typingctx, source, index, target, offset):
    """64 bytes of pairs to 128: the low halves of all, then the high halves."""

    def codegen(context, builder, signature, arguments):
        source, index, target, offset = arguments
        address = element(context, builder, signature.args[0], source, index)
        line = builder.load(builder.bitcast(address, V64B.as_pointer()), align=1)
        high = builder.lshr(builder.bitcast(line, V16I), all_lanes(V16I, 4))
        for n, half in enumerate((line, builder.bitcast(high, V64B))):
            start = builder.add(offset, offset.type(n * LINE))
            address = element(context, builder, signature.args[2], target, start)
            value = builder.and_(half, all_lanes(V64B, 15))
            builder.store(value, builder.bitcast(address, V64B.as_pointer()), align=1)

    n = types.intp
    return types.void(source, n, target, n), codegen


@intrinsic
def _accumulate_dequantized(typingctx, sums, index, c, ic, units, iu, b, scales, isc):
    """c[16] += what sixteen int32 of `sums` are worth, as _int_tile_accumulate does it."""

    def codegen(context, builder, signature, arguments):
        sums, index, c, ic, units, iu, _, scales, isc = arguments
        kind, _, kind_c, _, kind_u, _, kind_b, kind_s, _ = signature.args
        address = element(context, builder, kind, sums, index)
        whole = builder.load(builder.bitcast(address, V16I.as_pointer()), align=4)
        row = activation_scales(context, builder, kind_u, units, iu)
        column = weight_scales(context, builder, kind_s, scales, isc, kind_b)
        target = element(context, builder, kind_c, c, ic)
        value = worth(builder, whole, row, column, load_vector(builder, kind_c, target))
        store_vector(builder, kind_c, value, target)

    n = types.intp
    return types.void(sums, n, c, n, units, n, b, scales, n), codegen


AMX_INT_SCRATCH = (2 * QUANT_BLOCK * LANES + 4 * 4 * AMX_ROWS * LANES) // 4  # float32


def _amx_int_microkernel(multiply: Any, pairs: bool) -> Any:
    """c [rows, 32] += x[m : m + rows, :] · two panels of w, from number `panel` on.

    pairs  w is int4: each block of a panel is first spread to bytes
    """

    @jit
    def gemm_accumulate(c, ic, ldc, x, m, w, panel, rows, K, scratch):
        """
        c        float32 at ic, rows `ldc` apart
        x, w     Rows and QuantizedMatrix of K terms; x has room for whole tiles of rows
        scratch  float32 [AMX_INT_SCRATCH]
        """
        lines, step = QUANT_BLOCK // rows_of_line(w.numbers), scales_of_block(w.numbers)
        ld, ldu, blocks = (
            qx_stride(K),
            activation_scales_stride(K),
            (K + QUANT_BLOCK - 1) // QUANT_BLOCK,
        )
        size, size_of_scales = blocks * lines * LINE, blocks * step
        whole = QUANT_BLOCK * LANES
        spread = scratch[: 2 * whole // 4].view(w.numbers.dtype)
        sums = scratch[2 * whole // 4 : AMX_INT_SCRATCH].view(np.int32)
        check(x.numbers, m * ld, (m + padded(rows, AMX_ROWS) - 1) * ld + blocks * QUANT_BLOCK - 1)
        check(w.numbers, panel * size, (panel + 2) * size - 1)
        check(w.scales, panel * size_of_scales, (panel + 2) * size_of_scales - 1)
        check(c, ic, ic + (rows - 1) * ldc + 2 * LANES - 1)
        for block in range(blocks):
            ib = panel * size + block * lines * LINE
            if pairs:
                for line in range(lines):
                    here = ib + line * LINE
                    _halves_of_bytes(w.numbers, here, spread, 2 * line * LINE)
                    _halves_of_bytes(w.numbers, here + size, spread, whole + 2 * line * LINE)
                _amx_load_b(0, spread, 0, QUANT_BLOCK)
                _amx_load_b(1, spread, whole, QUANT_BLOCK)
            else:
                _amx_load_b(0, w.numbers, ib, QUANT_BLOCK)
                _amx_load_b(1, w.numbers, ib + size, QUANT_BLOCK)
            isc = panel * size_of_scales + block * step
            row = 0
            while row < rows:
                ia = (m + row) * ld + block * QUANT_BLOCK
                _amx_zero(0)
                _amx_zero(1)
                _amx_load_a(0, x.numbers, ia, ld)
                multiply(0, 0)
                multiply(0, 1)
                _amx_store_c(0, sums, 0, 2 * LANES)
                _amx_store_c(1, sums, LANES, 2 * LANES)
                if row + AMX_ROWS < rows:
                    _amx_zero(2)
                    _amx_zero(3)
                    _amx_load_a(1, x.numbers, ia + AMX_ROWS * ld, ld)
                    multiply(1, 0)
                    multiply(1, 1)
                    _amx_store_c(2, sums, AMX_ROWS * 2 * LANES, 2 * LANES)
                    _amx_store_c(3, sums, AMX_ROWS * 2 * LANES + LANES, 2 * LANES)
                for r in range(min(2 * AMX_ROWS, rows - row)):
                    iu = (m + row + r) * ldu + 2 * block
                    here = ic + (row + r) * ldc
                    at = r * 2 * LANES
                    _accumulate_dequantized(
                        sums, at, c, here, x.units, iu, w.numbers, w.scales, isc
                    )
                    _accumulate_dequantized(
                        sums, at + LANES, c, here + LANES, x.units, iu,
                        w.numbers, w.scales, isc + size_of_scales,
                    )  # fmt: skip
                row += 2 * AMX_ROWS

    return gemm_accumulate


amx_microkernel_int8 = _amx_int_microkernel(_amx_multiply_signed, pairs=False)
amx_microkernel_int4 = _amx_int_microkernel(_amx_multiply_unsigned, pairs=True)
