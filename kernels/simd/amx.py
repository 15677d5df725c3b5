"""Microkernels in AMX's tiles, which multiply bfloat16 and bytes.

A processor with AMX has eight tiles of 16 rows × 64 bytes for each thread, named by number: here
four of C, two of A, two of B. One instruction adds the product of a tile of A [16, 32] and a tile
of B [32, 16], bfloat16 in the layout of panels, to a tile of C [16, 16], float32. With int8 A is
[16, 64], B [64, 16] in the layout of quantized panels, and C int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from ..jit import inline, jit
from ..layout import LANES, QUANT_BLOCK, activation_scales_stride, padded, qx_stride
from .int_tiles import (
    LINE,
    add_dequantized,
    all_lanes,
    k_per_line,
    load_activation_scale,
    load_weight_scales,
    scales_per_block,
)
from .llvm import V16I, V64B, call, element, intrinsic, literal_intrinsic, load_vector, store_vector
from .memory import check, prefetch

AMX_ROWS = 16  # rows of a tile of A and C
AMX_K = 32  # columns of a tile of A, rows of a tile of B, in bfloat16
_C, _A, _B = 0, 4, 6  # the first tile of each operand

# The 64 bytes that LDTILECFG reads: palette 1, then for each tile the bytes of a row, and the rows.
_AMX_CONFIG = bytes([1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8])


def _tile_number(number: int) -> Any:
    """A tile's number as the LLVM intrinsics take it."""
    return ir.Constant(ir.IntType(8), number)


def _tile_memory(context, builder, kind, array, index, stride) -> tuple[Any, Any]:
    """The address of a tile's first row in an array, and the stride of rows in bytes."""
    byte = ir.IntType(8).as_pointer()
    address = builder.bitcast(element(context, builder, kind, array, index), byte)
    return address, builder.mul(stride, stride.type(kind.dtype.bitwidth // 8))


@intrinsic
def amx_configure_tiles(typingctx):
    """Configure this thread's tiles, until amx_release_tiles."""

    def codegen(context, builder, signature, arguments):
        config = cgutils.global_constant(builder, "amx_config", cgutils.make_bytearray(_AMX_CONFIG))
        pointer = builder.bitcast(config, ir.IntType(8).as_pointer())
        call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), pointer)

    return types.void(), codegen


@intrinsic
def amx_release_tiles(typingctx):
    """Return this thread's tiles to their initial state, so that the system need not save them."""

    def codegen(context, builder, signature, arguments):
        call(builder, "llvm.x86.tilerelease", ir.VoidType())

    return types.void(), codegen


def _amx_move(name: str, first: int) -> Any:
    """A function of compiled code that loads or stores tile `first` + number (a constant)."""

    @literal_intrinsic
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


@literal_intrinsic
def _amx_multiply(typingctx, row, column):
    """C[row, column] += A[row] · B[column], in bfloat16; row and column are constants, 0 or 1."""
    r, c = row.literal_value, column.literal_value

    def codegen(context, builder, signature, arguments):
        tiles = (_tile_number(number) for number in (_C + 2 * r + c, _A + r, _B + c))
        call(builder, "llvm.x86.tdpbf16ps", ir.VoidType(), *tiles)

    return types.void(row, column), codegen


def _amx_microkernel_32(prefetch_next: bool) -> Any:
    """Make `microkernel` for 32 rows × 2 panels of bfloat16; K is a multiple of 32."""

    @jit
    def gemm_accumulate(c, ic, ldc, a, ia, lda, b, ib, panel, K):
        _check_amx(c, ic, ldc, a, ia, lda, b, ib, panel, K, 2 * AMX_ROWS)
        below_a, below_c = AMX_ROWS * lda, AMX_ROWS * ldc
        _amx_load_c(0, c, ic, ldc)
        _amx_load_c(1, c, ic + LANES, ldc)
        _amx_load_c(2, c, ic + below_c, ldc)
        _amx_load_c(3, c, ic + below_c + LANES, ldc)
        for k in range(0, K, AMX_K):
            if prefetch_next:
                _prefetch_step(b, ib, panel, k)
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

    return gemm_accumulate


@jit
def amx_microkernel_16(c, ic, ldc, a, ia, lda, b, ib, panel, K):
    """As amx_microkernel_32_prefetch for 16 rows × 2 panels."""
    _check_amx(c, ic, ldc, a, ia, lda, b, ib, panel, K, AMX_ROWS)
    _amx_load_c(0, c, ic, ldc)
    _amx_load_c(1, c, ic + LANES, ldc)
    for k in range(0, K, AMX_K):
        _amx_load_a(0, a, ia + k, lda)
        _prefetch_step(b, ib, panel, k)
        _amx_load_b(0, b, ib + k * LANES, AMX_K)
        _amx_multiply(0, 0)
        _amx_load_b(1, b, ib + panel + k * LANES, AMX_K)
        _amx_multiply(0, 1)
    _amx_store_c(0, c, ic, ldc)
    _amx_store_c(1, c, ic + LANES, ldc)


# The first rows that pass a block of a panel prefetch it: the others find it in L1.
amx_microkernel_32 = _amx_microkernel_32(prefetch_next=False)
amx_microkernel_32_prefetch = _amx_microkernel_32(prefetch_next=True)
_PREFETCH_DISTANCE = 4 * AMX_K * LANES  # elements: 4 KiB


@inline
def _prefetch_step(b, ib, panel, k):
    """Prefetch the tiles of both panels that are multiplied _PREFETCH_DISTANCE after row k."""
    for line in range(0, AMX_K * LANES, AMX_K):
        prefetch(b, ib + k * LANES + _PREFETCH_DISTANCE + line)
        prefetch(b, ib + panel + k * LANES + _PREFETCH_DISTANCE + line)


@inline
def _check_amx(c, ic, ldc, a, ia, lda, b, ib, panel, K, rows):
    """Bounds checks of the bfloat16 microkernels."""
    check(a, ia, ia + (rows - 1) * lda + K - 1)
    check(b, ib, ib + panel + K * LANES - 1)
    check(c, ic, ic + (rows - 1) * ldc + 2 * LANES - 1)


def _amx_int_multiply(name: str) -> Any:
    """As _amx_multiply for bytes and sums in int32, by the LLVM intrinsic `name`."""

    @literal_intrinsic
    def multiply(typingctx, row, column):
        r, c = row.literal_value, column.literal_value

        def codegen(context, builder, signature, arguments):
            tiles = (_tile_number(number) for number in (_C + 2 * r + c, _A + r, _B + c))
            call(builder, name, ir.VoidType(), *tiles)

        return types.void(row, column), codegen

    return multiply


_amx_multiply_signed = _amx_int_multiply("llvm.x86.tdpbssd")
_amx_multiply_unsigned = _amx_int_multiply("llvm.x86.tdpbsud")  # A signed, B unsigned


@literal_intrinsic
def _amx_zero(typingctx, number):
    """Zero C tile `number`, a constant."""
    tile = _C + number.literal_value

    def codegen(context, builder, signature, arguments):
        call(builder, "llvm.x86.tilezero", ir.VoidType(), _tile_number(tile))

    return types.void(number), codegen


@intrinsic
def _unpack_int4(typingctx, source, index, target, offset):
    """Write a line of int4, 64 bytes, as 128 bytes: the low halves, then the high halves."""

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
def _accumulate_dequantized(typingctx, sums, index, c, ic, xs, ixs, b, ws, iws):
    """C[16] += sixteen int32 of `sums`, dequantized by the scales of activations and weights."""

    def codegen(context, builder, signature, arguments):
        sums, index, c, ic, xs, ixs, _, ws, iws = arguments
        kind, _, kind_c, _, kind_xs, _, kind_b, kind_ws, _ = signature.args
        address = element(context, builder, kind, sums, index)
        dot = builder.load(builder.bitcast(address, V16I.as_pointer()), align=4)
        row = load_activation_scale(context, builder, kind_xs, xs, ixs)
        column = load_weight_scales(context, builder, kind_ws, ws, iws, kind_b)
        target = element(context, builder, kind_c, c, ic)
        before = load_vector(builder, kind_c, target)
        store_vector(builder, kind_c, add_dequantized(builder, before, dot, row, column), target)

    n = types.intp
    return types.void(sums, n, c, n, xs, n, b, ws, n), codegen


_BLOCK_BYTES = QUANT_BLOCK * LANES  # a block of a panel in int8
_C_BYTES = 4 * AMX_ROWS * LANES  # a tile of C
# float32 elements of scratch: two blocks of unpacked int4, four tiles of C
AMX_INT_SCRATCH = (2 * _BLOCK_BYTES + 4 * _C_BYTES) // 4


def _amx_int_microkernel(multiply: Any, int4: bool) -> Any:
    """Make the function that adds x[m : m + rows, :] · two panels of w to C [rows, 32].

    int4  unpack each block of a panel to bytes first
    """

    @jit
    def gemm_accumulate(c, ic, ldc, x, m, w, panel, rows, K, scratch):
        """Add A · B to C [rows, 32].

        c        float32 at ic, rows `ldc` apart
        x        QuantizedActivations with K columns, with memory for full tiles of rows from m on
        w        QuantizedMatrix with K rows; B is its panels `panel` and `panel` + 1
        scratch  float32 [AMX_INT_SCRATCH]
        """
        lines, step = QUANT_BLOCK // k_per_line(w.qweight), scales_per_block(w.qweight)
        ld, ldxs, blocks = (
            qx_stride(K),
            activation_scales_stride(K),
            (K + QUANT_BLOCK - 1) // QUANT_BLOCK,
        )
        panel_size, panel_scales = blocks * lines * LINE, blocks * step
        unpacked = scratch[: 2 * _BLOCK_BYTES // 4].view(w.qweight.dtype)
        sums = scratch[2 * _BLOCK_BYTES // 4 : AMX_INT_SCRATCH].view(np.int32)
        check(x.qx, m * ld, (m + padded(rows, AMX_ROWS) - 1) * ld + blocks * QUANT_BLOCK - 1)
        check(w.qweight, panel * panel_size, (panel + 2) * panel_size - 1)
        check(w.scales, panel * panel_scales, (panel + 2) * panel_scales - 1)
        check(c, ic, ic + (rows - 1) * ldc + 2 * LANES - 1)
        for block in range(blocks):
            ib = panel * panel_size + block * lines * LINE
            if int4:
                for line in range(lines):
                    i, to = ib + line * LINE, 2 * line * LINE
                    _unpack_int4(w.qweight, i, unpacked, to)
                    _unpack_int4(w.qweight, i + panel_size, unpacked, _BLOCK_BYTES + to)
                _amx_load_b(0, unpacked, 0, QUANT_BLOCK)
                _amx_load_b(1, unpacked, _BLOCK_BYTES, QUANT_BLOCK)
            else:
                _amx_load_b(0, w.qweight, ib, QUANT_BLOCK)
                _amx_load_b(1, w.qweight, ib + panel_size, QUANT_BLOCK)
            iws = panel * panel_scales + block * step
            row = 0
            while row < rows:
                ia = (m + row) * ld + block * QUANT_BLOCK
                _amx_zero(0)
                _amx_zero(1)
                _amx_load_a(0, x.qx, ia, ld)
                multiply(0, 0)
                multiply(0, 1)
                _amx_store_c(0, sums, 0, 2 * LANES)
                _amx_store_c(1, sums, LANES, 2 * LANES)
                if row + AMX_ROWS < rows:
                    _amx_zero(2)
                    _amx_zero(3)
                    _amx_load_a(1, x.qx, ia + AMX_ROWS * ld, ld)
                    multiply(1, 0)
                    multiply(1, 1)
                    _amx_store_c(2, sums, AMX_ROWS * 2 * LANES, 2 * LANES)
                    _amx_store_c(3, sums, AMX_ROWS * 2 * LANES + LANES, 2 * LANES)
                for r in range(min(2 * AMX_ROWS, rows - row)):
                    ixs = (m + row + r) * ldxs + 2 * block
                    i, to = r * 2 * LANES, ic + (row + r) * ldc
                    _accumulate_dequantized(
                        sums, i, c, to, x.scales_and_sums, ixs, w.qweight, w.scales, iws
                    )
                    _accumulate_dequantized(
                        sums, i + LANES, c, to + LANES, x.scales_and_sums, ixs,
                        w.qweight, w.scales, iws + panel_scales,
                    )  # fmt: skip
                row += 2 * AMX_ROWS

    return gemm_accumulate


amx_microkernel_int8 = _amx_int_microkernel(_amx_multiply_signed, int4=False)
amx_microkernel_int4 = _amx_int_microkernel(_amx_multiply_unsigned, int4=True)
