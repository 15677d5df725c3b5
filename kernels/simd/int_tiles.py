"""Register tiles for products of quantized activations and weights (layout.py): exact integer sums.

Every processor computes the same integers, by the instructions that it has: VNNI, AVX2's pairs of
bytes, or plain multiplications. (AMX has its own tiles: amx.py.)
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import models, register_model

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
    intrinsic,
    literal_intrinsic,
    load_vector,
    multiply_add,
    store_vector,
)
from .memory import check, prefetch
from .tiles import TileType, tile_address, tile_load, tile_store

LINE = 4 * LANES  # bytes of a panel that are loaded together: 4 rows of int8, 8 of int4

_VNNI = "avx512vnni" in cpu_features()
_AVX2 = "avx2" in cpu_features()
# Lines of int4 whose products AVX2 adds up in 16 bits: 4 lines · 2 halves · 2 · 15 · 127 fit.
_INT4_LINES_AVX2 = 4
# VNNI's instruction takes four or five cycles, and a core starts one or two in each. Tiles of one
# or two vectors sum in several chains, which are added at the end of a block.
_MIN_CHAINS = 4
# VNNI multiplies unsigned by signed bytes, so this is added to weights of int8, and its product
# with the sum of the activations subtracted at the end.
_VNNI_OFFSET = 128 if _VNNI else 0


def _int_tile_shape() -> tuple[int, int]:
    """(rows, vectors) of the tile for many rows. With VNNI its sums fit into registers both as
    integers and as float32, else as integers."""
    if _VNNI:
        return 6, 2
    return (4, 1) if _AVX2 else (2, 1)


INT_TILE_ROWS, INT_TILE_VECTORS = _int_tile_shape()
_FLOAT_SUMS_IN_REGISTERS = _VNNI  # from block to block; else they lie in C
# Rows of the largest tile of one vector, for few rows: it reads a panel once for all of them.
INT_FEW_ROWS = 8 if _VNNI else 4
INT_ROW_VECTORS = 4  # of the tile of a single row: four streams of memory, which share x's vectors


class IntTileType(TileType):
    """A tile of `rows` × `vectors` vectors of int32, each a sum in `chains` parts."""

    def __init__(self, rows: int, vectors: int) -> None:
        self.chains = max(1, _MIN_CHAINS // (rows * vectors)) if _VNNI else 1
        super().__init__(rows, vectors, V16I)

    def lines_per_step(self, int4: bool) -> int:
        """The lines of each panel that _int_tile_add_lines multiplies."""
        if not int4:
            return self.chains
        return max(1, self.chains // 2) if _VNNI else _INT4_LINES_AVX2


@register_model(IntTileType)
class _IntTileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: Any) -> None:
        super().__init__(
            manager, tile, ir.ArrayType(tile.vector, tile.rows * tile.vectors * tile.chains)
        )


@literal_intrinsic
def _int_tile_zeros(typingctx, rows, vectors):
    tile = IntTileType(rows.literal_value, vectors.literal_value)

    def codegen(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(rows, vectors), codegen


def all_lanes(kind: Any, number: int) -> Any:
    """A constant vector: `number` in every lane."""
    return ir.Constant(kind, [number] * kind.count)


def _lanes(builder: Any, vector: Any, start: int, step: int, count: int) -> Any:
    """Lanes start, start + step, … of a vector, `count` of them."""
    lanes = [start + step * lane for lane in range(count)]
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, count), lanes))


def _concatenate(builder: Any, low: Any, high: Any) -> Any:
    lanes = list(range(low.type.count * 2))
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _pair_sums_avx2(builder: Any, w: Any, x: Any, signed: bool) -> Any:
    """Sums of two neighbouring products, <32 x i16>, of 64 bytes of w and x; |sum| ≤ 2 · 127 · 127.

    The instruction multiplies unsigned by signed bytes: where w is signed, it becomes |x| · ±w,
    with the sign of x.
    """
    halves = []
    for start in (0, 32):
        first, second = (_lanes(builder, v, start, 1, 32) for v in (w, x))
        if signed:
            first, second = (
                call(builder, "llvm.abs.v32i8", second.type, second, ir.Constant(ir.IntType(1), 0)),
                call(builder, "llvm.x86.avx2.psign.b", first.type, first, second),
            )
        kind = ir.VectorType(I16, 16)
        halves.append(call(builder, "llvm.x86.avx2.pmadd.ub.sw", kind, first, second))
    return halves


def _add_pair_sums_avx2(builder: Any, total: Any, pairs: Any) -> Any:
    """total + the sums of two neighbours of `pairs`, in 32 bits."""
    ones = all_lanes(ir.VectorType(I16, 16), 1)
    kind = ir.VectorType(I32, 8)
    low, high = (call(builder, "llvm.x86.avx2.pmadd.wd", kind, half, ones) for half in pairs)
    return builder.add(total, _concatenate(builder, low, high))


def _add_quads(builder: Any, total: Any, w: Any, x: Any, signed: bool) -> Any:
    """total + the sums of four neighbouring products of 64 bytes of w and x, without AVX2."""
    wide = ir.VectorType(I16, 64)
    w = builder.sext(w, wide) if signed else builder.zext(w, wide)
    x = builder.sext(x, wide)
    for byte in range(4):
        a, b = (builder.sext(_lanes(builder, v, byte, 4, LANES), V16I) for v in (w, x))
        total = builder.add(total, builder.mul(a, b))
    return total


def _unpack_line(builder: Any, line: Any, int4: bool) -> list[Any]:
    """A line as vectors <64 x i8> of four rows each: one of int8, or two of int4, unsigned."""
    if not int4:
        return [builder.xor(line, all_lanes(V64B, -128)) if _VNNI else line]
    high = builder.lshr(builder.bitcast(line, V16I), all_lanes(V16I, 4))
    halves = (line, builder.bitcast(high, V64B))
    return [builder.and_(half, all_lanes(V64B, 15)) for half in halves]


def _dot_product(
    builder: Any, chains: list[Any], ws: list[Any], xs: list[Any], signed: bool
) -> list[Any]:
    """The chains + the sums of four neighbouring products, over all vectors w of ws and x of xs."""
    if _VNNI:
        for n, (w, x) in enumerate(zip(ws, xs, strict=True)):
            i = n % len(chains)
            chains[i] = call(builder, "llvm.x86.avx512.vpdpbusd.512", V16I, chains[i], w, x)
        return chains
    (total,) = chains
    if not _AVX2:
        for w, x in zip(ws, xs, strict=True):
            total = _add_quads(builder, total, w, x, signed)
        return [total]
    sums = None  # in 16 bits
    for w, x in zip(ws, xs, strict=True):
        pairs = _pair_sums_avx2(builder, w, x, signed)
        sums = (
            pairs if sums is None else [builder.add(a, b) for a, b in zip(sums, pairs, strict=True)]
        )
    return [_add_pair_sums_avx2(builder, total, sums)]


def _broadcast_quad(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Four int8 of A, repeated sixteen times: <64 x i8>."""
    address = builder.bitcast(element(context, builder, kind, array, index), I32.as_pointer())
    bits = builder.load(address, align=1)
    one = builder.insert_element(ir.Constant(V16I, ir.Undefined), bits, ir.Constant(I32, 0))
    return builder.bitcast(builder.shuffle_vector(one, one, ir.Constant(V16I, [0] * LANES)), V64B)


@intrinsic
def _int_tile_add_lines(typingctx, tile, a, ia, lda, b, ib, panel):
    """acc[r, v] += Σ_k a[r, k] · b[k, v] over the rows of some lines: see lines_per_step."""

    def codegen(context, builder, signature, arguments):
        acc, a, ia, lda, b, ib, panel = arguments
        _, kind_a, _, _, kind_b, _, _ = signature.args
        int4 = kind_b.dtype == types.uint8
        for v in range(tile.vectors):
            ws = []
            for line in range(tile.lines_per_step(int4)):
                start = builder.add(at(builder, ib, panel, v), ib.type(line * LINE))
                address = element(context, builder, kind_b, b, start)
                value = builder.load(builder.bitcast(address, V64B.as_pointer()), align=1)
                ws += _unpack_line(builder, value, int4)
            for r in range(tile.rows):
                xs = [
                    _broadcast_quad(
                        context, builder, kind_a, a,
                        builder.add(at(builder, ia, lda, r), ia.type(4 * quad)),
                    )
                    for quad in range(len(ws))
                ]  # fmt: skip
                first = (r * tile.vectors + v) * tile.chains
                chains = [builder.extract_value(acc, first + n) for n in range(tile.chains)]
                for n, total in enumerate(_dot_product(builder, chains, ws, xs, not int4)):
                    acc = builder.insert_value(acc, total, first + n)
        return acc

    n = types.intp
    return tile(tile, a, n, n, b, n, n), codegen


def load_activation_scale(context: Any, builder: Any, kind: Any, scales: Any, index: Any) -> Any:
    """[scale, sum] of a block of a row of activations, each in all lanes."""
    offsets = [index, builder.add(index, index.type(1))]
    return [
        broadcast(builder, builder.load(element(context, builder, kind, scales, i)))
        for i in offsets
    ]


def load_weight_scales(
    context: Any, builder: Any, kind: Any, scales: Any, index: Any, kind_b: Any
) -> Any:
    """[scales], or for int4 [scales, offsets], of a block of the sixteen columns of a panel."""
    offsets = [index]
    if kind_b.dtype == types.uint8:
        offsets.append(builder.add(index, index.type(LANES)))
    return [load_vector(builder, kind, element(context, builder, kind, scales, i)) for i in offsets]


def add_dequantized(
    builder: Any, value: Any, dot: Any, row: Any, column: Any, added: int = 0
) -> Any:
    """value + the dequantized sum of a block, in this order of operations.

    value + (dot − added · x_sum) · (w_scale · x_scale), and for int4 + (x_scale · x_sum) · w_offset

    dot     sixteen int32, Σ qx · qweight
    row     what load_activation_scale returns; column: what load_weight_scales returns
    added   the constant that was added to every weight
    """
    (x_scale, x_sum), (w_scale, *w_offset) = row, column
    dot = builder.sitofp(dot, V16F)
    if added:
        more = builder.fmul(x_sum, ir.Constant(V16F, [float(added)] * LANES))
        dot = builder.fsub(dot, more)
    value = multiply_add(builder, dot, builder.fmul(w_scale, x_scale), value)
    if w_offset:
        value = multiply_add(builder, builder.fmul(x_scale, x_sum), w_offset[0], value)
    return value


def _integer_sums(context: Any, builder: Any, tile: Any, kinds: Any, values: Any) -> Any:
    """For each vector of a tile of integers: its number, sums, and the scales of row and column.

    kinds, values  of: the tile, xs, ixs, ldxs, b, ws, iws, panel
    """
    _, kind_xs, _, _, kind_b, kind_ws, _, _ = kinds
    acc, xs, ixs, ldxs, _, ws, iws, panel = values
    columns = [
        load_weight_scales(context, builder, kind_ws, ws, at(builder, iws, panel, v), kind_b)
        for v in range(tile.vectors)
    ]
    for r in range(tile.rows):
        row = load_activation_scale(context, builder, kind_xs, xs, at(builder, ixs, ldxs, r))
        for v, column in enumerate(columns):
            cell = r * tile.vectors + v
            first, *rest = (
                builder.extract_value(acc, cell * tile.chains + n) for n in range(tile.chains)
            )
            yield cell, functools.reduce(builder.add, rest, first), row, column


@intrinsic
def _int_tile_add_dequantized(typingctx, total, tile, xs, ixs, ldxs, b, ws, iws, panel):
    """total[r, v] + acc[r, v], dequantized by the activation scales xs and the weight scales ws."""

    def codegen(context, builder, signature, arguments):
        result, *values = arguments
        added = 0 if b.dtype == types.uint8 else _VNNI_OFFSET
        for cell, dot, row, column in _integer_sums(
            context, builder, tile, signature.args[1:], values
        ):
            before = builder.extract_value(result, cell)
            value = add_dequantized(builder, before, dot, row, column, added)
            result = builder.insert_value(result, value, cell)
        return result

    n = types.intp
    return total(total, tile, xs, n, n, b, ws, n, n), codegen


@intrinsic
def _int_tile_accumulate(typingctx, c, ic, ldc, tile, xs, ixs, ldxs, b, ws, iws, panel):
    """As _int_tile_add_dequantized, with the sums in C, rows `ldc` apart."""

    def codegen(context, builder, signature, arguments):
        target, values = arguments[:3], arguments[3:]
        added = 0 if b.dtype == types.uint8 else _VNNI_OFFSET
        for cell, dot, row, column in _integer_sums(
            context, builder, tile, signature.args[3:], values
        ):
            address = tile_address(context, builder, tile, signature.args[0], target, cell)
            before = load_vector(builder, signature.args[0], address)
            value = add_dequantized(builder, before, dot, row, column, added)
            store_vector(builder, signature.args[0], value, address)

    n = types.intp
    return types.void(c, n, n, tile, xs, n, n, b, ws, n, n), codegen


def _constant_by_dtype(int8: int, int4: int) -> Any:
    """A function for compiled code: one of two constants, by the dtype of the panels `qweight`."""

    @intrinsic
    def constant(typingctx, qweight):
        number = int4 if qweight.dtype == types.uint8 else int8

        def codegen(context, builder, signature, arguments):
            return context.get_constant(types.intp, number)

        return types.intp(qweight), codegen

    return constant


k_per_line = _constant_by_dtype(int8=4, int4=8)  # rows of a panel in a line of 64 bytes
scales_per_block = _constant_by_dtype(int8=LANES, int4=2 * LANES)  # of a panel, with offsets


def int_microkernel(rows: int, vectors: int, prefetch_next: bool) -> Any:
    """`microkernel` for quantized operands: make the function that adds A · B to a tile of C.

    Block by block in the order of k, the exact integer sum is converted to float32, multiplied by
    the scales of both operands, and added to C.
    """
    tile = IntTileType(rows, vectors)
    lines_per_step = _constant_by_dtype(*(tile.lines_per_step(int4) for int4 in (False, True)))

    @jit
    def gemm_accumulate(c, ic, ldc, x, m, w, panel, K):
        """Add A · B to a tile of C.

        c  float32 [rows, 16 · vectors] at ic, rows `ldc` apart
        x  QuantizedActivations with K columns; A is its rows from m on
        w  QuantizedMatrix with K rows; B is its panels from number `panel` on
        """
        lines, step = QUANT_BLOCK // k_per_line(w.qweight), scales_per_block(w.qweight)
        lines_together = lines_per_step(w.qweight)
        ld, ldxs, blocks = (
            qx_stride(K),
            activation_scales_stride(K),
            (K + QUANT_BLOCK - 1) // QUANT_BLOCK,
        )
        panel_size, panel_scales = blocks * lines * LINE, blocks * step
        a, ia, xs, ixs = x.qx, m * ld, x.scales_and_sums, m * ldxs
        b, ib, ws, iws = w.qweight, panel * panel_size, w.scales, panel * panel_scales
        check(a, ia, ia + (rows - 1) * ld + blocks * QUANT_BLOCK - 1)
        check(b, ib, ib + vectors * panel_size - 1)
        check(c, ic, ic + (rows - 1) * ldc + vectors * LANES - 1)
        check(xs, ixs, ixs + (rows - 1) * ldxs + 2 * blocks - 1)
        check(ws, iws, iws + vectors * panel_scales - 1)
        total = tile_load(rows, vectors, c, ic, ldc)
        for _ in range(blocks):
            acc = _int_tile_zeros(rows, vectors)
            for _ in range(0, lines, lines_together):
                if prefetch_next:
                    for line in range(lines_together):
                        for v in range(vectors, 2 * vectors):
                            prefetch(b, ib + v * panel_size + line * LINE)
                acc = _int_tile_add_lines(acc, a, ia, ld, b, ib, panel_size)
                ia += lines_together * (QUANT_BLOCK // lines)
                ib += lines_together * LINE
            if _FLOAT_SUMS_IN_REGISTERS:
                total = _int_tile_add_dequantized(
                    total, acc, xs, ixs, ldxs, b, ws, iws, panel_scales
                )
            else:
                _int_tile_accumulate(c, ic, ldc, acc, xs, ixs, ldxs, b, ws, iws, panel_scales)
            ixs += 2
            iws += step
        if _FLOAT_SUMS_IN_REGISTERS:
            tile_store(total, c, ic, ldc)

    return gemm_accumulate
