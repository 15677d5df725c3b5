"""Tiles of sums in registers: the inside of every product of floats."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic, models, register_model

from ..jit import jit
from ..layout import LANES
from .llvm import (
    F32,
    V16F,
    V16I,
    at,
    broadcast,
    call,
    cpu_features,
    element,
    load_scalar,
    load_vector,
    multiply_add,
    store_vector,
)
from .memory import check, prefetch_two


def _tile_shape() -> tuple[int, int]:
    """(rows, vectors) of the largest tile that fits in registers with a row of b."""
    features = cpu_features()
    if "avx512f" in features:  # 32 registers of 16 lanes: 24 sums
        return 12, 2
    if "avx2" in features:  # 16 registers of 8 lanes: 12 sums
        return 6, 1
    if "neon" in features:  # 32 registers of 4 lanes: 24 sums
        return 6, 1
    return 2, 1  # 16 registers of 4 lanes: 8 sums


TILE_ROWS, TILE_VECTORS = _tile_shape()


class TileType(types.Type):
    """`rows` × `vectors` vectors of LLVM's type `vector`, row by row."""

    def __init__(self, rows: int, vectors: int, vector: ir.Type) -> None:
        self.rows = rows
        self.vectors = vectors
        self.vector = vector
        super().__init__(name=f"Tile{rows}x{vectors} of {vector}")


@register_model(TileType)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: Any) -> None:
        super().__init__(manager, tile, ir.ArrayType(tile.vector, tile.rows * tile.vectors))


def zeros_of(vector: ir.Type) -> Any:
    """A function for compiled code: a tile of zeros; its arguments are literal numbers."""

    @intrinsic(prefer_literal=True)
    def zeros(typingctx, rows, vectors):
        tile = TileType(rows.literal_value, vectors.literal_value, vector)

        def codegen(context, builder, signature, arguments):
            return ir.Constant(context.get_value_type(tile), None)

        return tile(rows, vectors), codegen

    return zeros


_tile_zeros = zeros_of(V16F)


def _row_of_panel(context: Any, builder: Any, kind: Any, array: Any, first: Any, odd: int) -> Any:
    """Row k or k + 1 (`odd`) of a panel, k even, whose row k begins at element `first`."""
    if kind.dtype != types.uint16:
        start = builder.add(first, first.type(LANES * odd))
        return load_vector(builder, kind, element(context, builder, kind, array, start))
    # Two bfloat16 in 32 bits: either is a float32 once the other's bits are gone.
    address = builder.bitcast(element(context, builder, kind, array, first), V16I.as_pointer())
    pairs = builder.load(address, align=2)
    if odd:
        bits = builder.and_(pairs, ir.Constant(V16I, [0xFFFF0000] * LANES))
    else:
        bits = builder.shl(pairs, ir.Constant(V16I, [16] * LANES))
    return builder.bitcast(bits, V16F)


def _add_row(context: Any, builder: Any, tile: Any, kinds: Any, values: Any, odd: int) -> Any:
    """acc[r, v] += a[r, k] · b[k, v] for the even k at the given places, or for k + 1 (`odd`)."""
    acc, a, ia, lda, b, ib, panel = values
    rows = [
        _row_of_panel(context, builder, kinds[4], b, at(builder, ib, panel, v), odd)
        for v in range(tile.vectors)
    ]
    for r in range(tile.rows):
        index = builder.add(at(builder, ia, lda, r), ia.type(odd))
        address = element(context, builder, kinds[1], a, index)
        factor = broadcast(builder, load_scalar(builder, kinds[1], address))
        for v, row in enumerate(rows):
            cell = r * tile.vectors + v
            total = multiply_add(builder, factor, row, builder.extract_value(acc, cell))
            acc = builder.insert_value(acc, total, cell)
    return acc


def _read_again(builder: Any) -> None:
    """No instruction, but LLVM keeps nothing in registers over it that it can read again.

    Else it would keep the pairs of an even row for the odd one, and write sums to memory instead.
    """
    nothing = ir.FunctionType(ir.VoidType(), [])
    builder.asm(nothing, "", "~{memory}", [], side_effect=True)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


_V32B = ir.VectorType(_BFloat(), 2 * LANES)


def _add_pairs(context: Any, builder: Any, tile: Any, kinds: Any, values: Any) -> Any:
    """The same for k and k + 1 at once, of a and b in bfloat16, by AVX-512's instruction for it."""
    acc, a, ia, lda, b, ib, panel = values

    def pairs(kind: Any, array: Any, index: Any, to: Any) -> Any:
        address = element(context, builder, kind, array, index)
        return builder.load(builder.bitcast(address, to.as_pointer()), align=2)

    rows = [
        builder.bitcast(pairs(kinds[4], b, at(builder, ib, panel, v), V16I), _V32B)
        for v in range(tile.vectors)
    ]
    for r in range(tile.rows):
        pair = pairs(kinds[1], a, at(builder, ia, lda, r), F32)
        factor = builder.bitcast(broadcast(builder, pair), _V32B)
        for v, row in enumerate(rows):
            cell = r * tile.vectors + v
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            total = call(builder, name, V16F, builder.extract_value(acc, cell), factor, row)
            acc = builder.insert_value(acc, total, cell)
    return acc


@intrinsic
def _tile_two(typingctx, tile, a, ia, lda, b, ib, panel):
    paired = "avx512bf16" in cpu_features() and a.dtype == b.dtype == types.uint16

    def codegen(context, builder, signature, arguments):
        if paired:
            return _add_pairs(context, builder, tile, signature.args, arguments)
        _, *offsets = arguments
        acc = _add_row(context, builder, tile, signature.args, arguments, 0)
        if b.dtype == types.uint16:
            _read_again(builder)
        return _add_row(context, builder, tile, signature.args, [acc, *offsets], 1)

    n = types.intp
    return tile(tile, a, n, n, b, n, n), codegen


@intrinsic
def _tile_one(typingctx, tile, a, ia, lda, b, ib, panel):
    def codegen(context, builder, signature, arguments):
        return _add_row(context, builder, tile, signature.args, arguments, 0)

    n = types.intp
    return tile(tile, a, n, n, b, n, n), codegen


@intrinsic
def _tile_accumulate(typingctx, tile, c, ic, ldc):
    def codegen(context, builder, signature, arguments):
        acc, c, ic, ldc = arguments
        kind = signature.args[1]
        for cell in range(tile.rows * tile.vectors):
            row, vector = divmod(cell, tile.vectors)
            start = at(builder, at(builder, ic, ldc, row), ic.type(LANES), vector)
            address = element(context, builder, kind, c, start)
            before = load_vector(builder, kind, address)
            total = builder.fadd(before, builder.extract_value(acc, cell))
            store_vector(builder, kind, total, address)

    return types.void(tile, c, types.intp, types.intp), codegen


def microkernel(rows: int, vectors: int, ahead: bool) -> Any:
    """c[r, v] += Σ_k a[r, k] · b[k, v]: a function for tiles of rows × (16 · vectors) elements.

    Each sum is one chain of multiply-adds in the order of k, begun with 0. With `ahead`, the
    same rows of the panels that follow are asked for meanwhile.
    """

    @jit
    def gemm_accumulate(c, ic, ldc, a, ia, lda, b, ib, panel, K):
        """
        c  float32 [rows, vectors · 16] at ic, rows `ldc` apart
        a  [rows, K] at ia, rows `lda` apart
        b  [K, vectors · 16] in panels `panel` elements apart, the first at ib
        """
        check(a, ia, ia + (rows - 1) * lda + K - 1)
        check(b, ib, ib + (vectors - 1) * panel + (K + K % 2 * (4 // b.itemsize - 1)) * LANES - 1)
        check(c, ic, ic + (rows - 1) * ldc + vectors * LANES - 1)
        acc = _tile_zeros(rows, vectors)
        for k in range(0, K - 1, 2):
            if ahead:
                for v in range(vectors, 2 * vectors):
                    prefetch_two(b, ib + v * panel + k * LANES)
            acc = _tile_two(acc, a, ia + k, lda, b, ib + k * LANES, panel)
        if K % 2:
            acc = _tile_one(acc, a, ia + K - 1, lda, b, ib + (K - 1) * LANES, panel)
        _tile_accumulate(acc, c, ic, ldc)

    return gemm_accumulate
