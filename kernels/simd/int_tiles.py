"""The same for whole numbers of 8 and 4 bits (layout.py): sums of integers, exact."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from ..jit import jit
from ..layout import LANES, QUANT_BLOCK, activation_scales_stride, qx_stride
from .llvm import (
    I16,
    I32,
    V16F,
    V16I,
    V64B,
    at,
    broadcast,
    call,
    cpu_features,
    element,
    load_vector,
    multiply_add,
    store_vector,
)
from .memory import check, prefetch
from .tiles import zeros_of

LINE = 4 * LANES  # bytes of a panel that are read together: 4 rows of int8, 8 of int4

_VNNI = "avx512vnni" in cpu_features()
_AVX2 = "avx2" in cpu_features()
# Lines of int4 whose sums are taken together in 16 bits: 4 lines · 2 fours · 2 · 15 · 127 fit.
_LINES_OF_INT4 = 4
# VNNI multiplies unsigned by signed bytes: weights of int8 are then taken with this much added.
_ADDED = 128 if _VNNI else 0


def _int_tile_shape() -> tuple[int, int]:
    """(rows, vectors) of the largest tile of whole numbers, as `_tile_shape`."""
    if _VNNI:
        return 12, 2
    return (4, 1) if _AVX2 else (2, 1)


INT_TILE_ROWS, INT_TILE_VECTORS = _int_tile_shape()


_int_tile_zeros = zeros_of(V16I)


def all_lanes(kind: Any, number: int) -> Any:
    return ir.Constant(kind, [number] * kind.count)


def _part(builder: Any, vector: Any, start: int, step: int, count: int) -> Any:
    """Every `step`-th lane from `start` on, `count` of them."""
    lanes = [start + step * lane for lane in range(count)]
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, count), lanes))


def _joined(builder: Any, low: Any, high: Any) -> Any:
    lanes = list(range(low.type.count * 2))
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _pairs_avx2(builder: Any, w: Any, x: Any, signed: bool) -> Any:
    """Sums of two products each, <32 x i16>, of 64 bytes of w and x; |sum| ≤ 2 · 127 · 127.

    The instruction takes unsigned by signed bytes, so the signs of x go over to w where w has
    signs of its own.
    """
    halves = []
    for start in (0, 32):
        first, second = (_part(builder, v, start, 1, 32) for v in (w, x))
        if signed:
            first, second = (
                call(builder, "llvm.abs.v32i8", second.type, second, ir.Constant(ir.IntType(1), 0)),
                call(builder, "llvm.x86.avx2.psign.b", first.type, first, second),
            )
        kind = ir.VectorType(I16, 16)
        halves.append(call(builder, "llvm.x86.avx2.pmadd.ub.sw", kind, first, second))
    return halves


def _add_pairs_avx2(builder: Any, total: Any, pairs: Any) -> Any:
    """total + the sums of two neighbours of `pairs`."""
    ones = all_lanes(ir.VectorType(I16, 16), 1)
    kind = ir.VectorType(I32, 8)
    low, high = (call(builder, "llvm.x86.avx2.pmadd.wd", kind, half, ones) for half in pairs)
    return builder.add(total, _joined(builder, low, high))


def _add_fours(builder: Any, total: Any, w: Any, x: Any, signed: bool) -> Any:
    """total + the sums of four products each, of 64 bytes of w and x; w may be unsigned."""
    wide = ir.VectorType(I16, 64)
    w = builder.sext(w, wide) if signed else builder.zext(w, wide)
    x = builder.sext(x, wide)
    for byte in range(4):
        a, b = (builder.sext(_part(builder, v, byte, 4, LANES), V16I) for v in (w, x))
        total = builder.add(total, builder.mul(a, b))
    return total


def _fours_of_line(builder: Any, line: Any, pairs: bool) -> list[Any]:
    """A line as <64 x i8>, of four rows each; `pairs`: of int4, unsigned, and so two."""
    if not pairs:
        return [builder.xor(line, all_lanes(V64B, -128)) if _VNNI else line]
    high = builder.lshr(builder.bitcast(line, V16I), all_lanes(V16I, 4))
    halves = (line, builder.bitcast(high, V64B))
    return [builder.and_(half, all_lanes(V64B, 15)) for half in halves]


def _gemm_accumulate(builder: Any, total: Any, ws: list[Any], xs: list[Any], signed: bool) -> Any:
    """total + the sums of four products each, of every w with its x."""
    if _VNNI:
        for w, x in zip(ws, xs, strict=True):
            total = call(builder, "llvm.x86.avx512.vpdpbusd.512", V16I, total, w, x)
        return total
    if not _AVX2:
        for w, x in zip(ws, xs, strict=True):
            total = _add_fours(builder, total, w, x, signed)
        return total
    sums = None  # in 16 bits
    for w, x in zip(ws, xs, strict=True):
        pairs = _pairs_avx2(builder, w, x, signed)
        sums = (
            pairs if sums is None else [builder.add(a, b) for a, b in zip(sums, pairs, strict=True)]
        )
    return _add_pairs_avx2(builder, total, sums)


def _same_four(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Four int8 of a left factor, sixteen times: <64 x i8>."""
    address = builder.bitcast(element(context, builder, kind, array, index), I32.as_pointer())
    bits = builder.load(address, align=1)
    one = builder.insert_element(ir.Constant(V16I, ir.Undefined), bits, ir.Constant(I32, 0))
    return builder.bitcast(builder.shuffle_vector(one, one, ir.Constant(V16I, [0] * LANES)), V64B)


@intrinsic
def _int_tile_lines(typingctx, tile, a, ia, lda, b, ib, panel):
    """acc[r, v] += Σ_k a[r, k] · b[k, v] over the rows of `lines_together` lines."""

    def codegen(context, builder, signature, arguments):
        acc, a, ia, lda, b, ib, panel = arguments
        _, kind_a, _, _, kind_b, _, _ = signature.args
        pairs = kind_b.dtype == types.uint8
        lines = _LINES_OF_INT4 if pairs else 1
        for v in range(tile.vectors):
            ws = []
            for line in range(lines):
                start = builder.add(at(builder, ib, panel, v), ib.type(line * LINE))
                address = element(context, builder, kind_b, b, start)
                value = builder.load(builder.bitcast(address, V64B.as_pointer()), align=1)
                ws += _fours_of_line(builder, value, pairs)
            for r in range(tile.rows):
                xs = [
                    _same_four(
                        context, builder, kind_a, a,
                        builder.add(at(builder, ia, lda, r), ia.type(4 * four)),
                    )
                    for four in range(len(ws))
                ]  # fmt: skip
                cell = r * tile.vectors + v
                total = _gemm_accumulate(
                    builder, builder.extract_value(acc, cell), ws, xs, not pairs
                )
                acc = builder.insert_value(acc, total, cell)
        return acc

    n = types.intp
    return tile(tile, a, n, n, b, n, n), codegen


def activation_scales(context: Any, builder: Any, kind: Any, units: Any, index: Any) -> Any:
    """What 1 is worth in a block of a row, and the sum of the block, each sixteen times."""
    offsets = [index, builder.add(index, index.type(1))]
    return [
        broadcast(builder, builder.load(element(context, builder, kind, units, i))) for i in offsets
    ]


def weight_scales(
    context: Any, builder: Any, kind: Any, scales: Any, index: Any, kind_b: Any
) -> Any:
    """The scales of a block of a panel, and for int4 the offsets."""
    offsets = [index]
    if kind_b.dtype == types.uint8:
        offsets.append(builder.add(index, index.type(LANES)))
    return [load_vector(builder, kind, element(context, builder, kind, scales, i)) for i in offsets]


def worth(builder: Any, whole: Any, row: Any, column: Any, value: Any, added: int = 0) -> Any:
    """value + scale · unit · whole, and for int4 offset · unit · total; all in this order.

    added  what was added to every weight
    """
    (unit, total), (scale, *offset) = row, column
    products = builder.sitofp(whole, V16F)
    if added:
        more = builder.fmul(total, ir.Constant(V16F, [float(added)] * LANES))
        products = builder.fsub(products, more)
    value = multiply_add(builder, products, builder.fmul(scale, unit), value)
    if offset:
        value = multiply_add(builder, builder.fmul(unit, total), offset[0], value)
    return value


@intrinsic
def _int_tile_accumulate(typingctx, tile, c, ic, ldc, units, iu, ldu, b, scales, isc, panel):
    """c[r, v] += what acc[r, v] is worth."""

    def codegen(context, builder, signature, arguments):
        acc, c, ic, ldc, units, iu, ldu, _, scales, isc, panel = arguments
        _, kind_c, _, _, kind_u, _, _, kind_b, kind_s, _, _ = signature.args
        added = 0 if kind_b.dtype == types.uint8 else _ADDED
        columns = [
            weight_scales(context, builder, kind_s, scales, at(builder, isc, panel, v), kind_b)
            for v in range(tile.vectors)
        ]
        for r in range(tile.rows):
            row = activation_scales(context, builder, kind_u, units, at(builder, iu, ldu, r))
            for v, column in enumerate(columns):
                start = at(builder, at(builder, ic, ldc, r), ic.type(LANES), v)
                address = element(context, builder, kind_c, c, start)
                whole = builder.extract_value(acc, r * tile.vectors + v)
                before = load_vector(builder, kind_c, address)
                value = worth(builder, whole, row, column, before, added)
                store_vector(builder, kind_c, value, address)

    n = types.intp
    return types.void(tile, c, n, n, units, n, n, b, scales, n, n), codegen


def _number_of(of_int8: int, of_int4: int) -> Any:
    """A function for compiled code: one of two numbers, by the type of an array."""

    @intrinsic
    def number(typingctx, b):
        found = of_int4 if b.dtype == types.uint8 else of_int8

        def codegen(context, builder, signature, arguments):
            return context.get_constant(types.intp, found)

        return types.intp(b), codegen

    return number


rows_of_line = _number_of(4, 8)  # a line is 64 bytes of a panel
lines_together = _number_of(1, _LINES_OF_INT4)  # that _int_tile_lines takes
scales_of_block = _number_of(LANES, 2 * LANES)  # of 16 columns, with the offsets


def int_microkernel(rows: int, vectors: int, ahead: bool) -> Any:
    """c[r, v] += Σ_k a[r, k] · b[k, v]: `microkernel` for whole numbers with scales.

    Block by block in the order of k, the exact integer is turned to float32, multiplied with the
    scales of both factors, and added to c.
    """

    @jit
    def gemm_accumulate(c, ic, ldc, x, m, w, panel, K):
        """
        c  float32 [rows, vectors · 16] at ic, rows `ldc` apart
        x  Rows of K numbers, of which those from m on are taken
        w  QuantizedMatrix of K rows, of which the panels from number `panel` on are
        """
        lines, step = QUANT_BLOCK // rows_of_line(w.numbers), scales_of_block(w.numbers)
        together = lines_together(w.numbers)
        ld, ldu, blocks = (
            qx_stride(K),
            activation_scales_stride(K),
            (K + QUANT_BLOCK - 1) // QUANT_BLOCK,
        )
        size, size_of_scales = blocks * lines * LINE, blocks * step
        a, ia, units, iu = x.numbers, m * ld, x.units, m * ldu
        b, ib, scales, isc = w.numbers, panel * size, w.scales, panel * size_of_scales
        check(a, ia, ia + (rows - 1) * ld + blocks * QUANT_BLOCK - 1)
        check(b, ib, ib + vectors * size - 1)
        check(c, ic, ic + (rows - 1) * ldc + vectors * LANES - 1)
        check(units, iu, iu + (rows - 1) * ldu + 2 * blocks - 1)
        check(scales, isc, isc + vectors * size_of_scales - 1)
        for _ in range(blocks):
            acc = _int_tile_zeros(rows, vectors)
            for _ in range(0, lines, together):
                if ahead:
                    for line in range(together):
                        for v in range(vectors, 2 * vectors):
                            prefetch(b, ib + v * size + line * LINE)
                acc = _int_tile_lines(acc, a, ia, ld, b, ib, size)
                ia += together * (QUANT_BLOCK // lines)
                ib += together * LINE
            _int_tile_accumulate(acc, c, ic, ldc, units, iu, ldu, b, scales, isc, size_of_scales)
            iu += 2
            isc += step

    return gemm_accumulate
