"""Register tiles for float products: the microkernel, a tile of C that stays in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import models, register_model

from ..jit import jit
from ..layout import LANES
from .llvm import (
    F32,
    V16F,
    V16I,
    V32BF,
    at,
    broadcast,
    call,
    cpu_features,
    element,
    intrinsic,
    literal_intrinsic,
    load_scalar,
    load_vector,
    multiply_add,
    store_vector,
)
from .memory import check, prefetch_row_pair


def _tile_shape() -> tuple[int, int]:
    """(rows, vectors) of the largest tile that fits into registers beside a row of B."""
    features = cpu_features()
    if "avx512f" in features:  # 32 registers of 16 lanes, 24 of them sums
        return 12, 2
    if "avx2" in features:  # 16 registers of 8 lanes, 12 of them sums
        return 6, 1
    if "neon" in features:  # 32 registers of 4 lanes, 24 of them sums
        return 6, 1
    return 2, 1  # 16 registers of 4 lanes, 8 of them sums


TILE_ROWS, TILE_VECTORS = _tile_shape()
# Up to MANY_ROWS rows a product waits for memory: a single row takes four panels at a time, and
# smaller tiles prefetch the next panels. With more rows it waits for arithmetic, and the largest
# tile is fastest.
MANY_ROWS = 16


class TileType(types.Type):
    """A tile of `rows` × `vectors` vectors of the LLVM type `vector`, row by row."""

    def __init__(self, rows: int, vectors: int, vector: ir.Type) -> None:
        self.rows = rows
        self.vectors = vectors
        self.vector = vector
        super().__init__(name=f"Tile{rows}x{vectors} of {vector}")


@register_model(TileType)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: Any) -> None:
        super().__init__(manager, tile, ir.ArrayType(tile.vector, tile.rows * tile.vectors))


@literal_intrinsic
def _tile_zeros(typingctx, rows, vectors):
    tile = TileType(rows.literal_value, vectors.literal_value, V16F)

    def codegen(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(rows, vectors), codegen


def tile_address(context: Any, builder: Any, tile: Any, kind: Any, target: Any, cell: int) -> Any:
    """The address of vector number `cell` of a tile of C; target: c, ic, ldc."""
    c, ic, ldc = target
    row, vector = divmod(cell, tile.vectors)
    start = at(builder, at(builder, ic, ldc, row), ic.type(LANES), vector)
    return element(context, builder, kind, c, start)


@literal_intrinsic
def tile_load(typingctx, rows, vectors, c, ic, ldc):
    """The tile of C, float32, at ic, rows `ldc` apart; rows and vectors are constants."""
    tile = TileType(rows.literal_value, vectors.literal_value, V16F)

    def codegen(context, builder, signature, arguments):
        _, _, *target = arguments
        kind = signature.args[2]
        total = ir.Constant(context.get_value_type(tile), ir.Undefined)
        for cell in range(tile.rows * tile.vectors):
            address = tile_address(context, builder, tile, kind, target, cell)
            total = builder.insert_value(total, load_vector(builder, kind, address), cell)
        return total

    return tile(rows, vectors, c, types.intp, types.intp), codegen


@intrinsic
def tile_store(typingctx, tile, c, ic, ldc):
    """Store a tile to C at ic, rows `ldc` apart."""

    def codegen(context, builder, signature, arguments):
        total, *target = arguments
        kind = signature.args[1]
        for cell in range(tile.rows * tile.vectors):
            address = tile_address(context, builder, tile, kind, target, cell)
            store_vector(builder, kind, builder.extract_value(total, cell), address)

    return types.void(tile, c, types.intp, types.intp), codegen


def _panel_row(context: Any, builder: Any, kind: Any, array: Any, first: Any, odd: int) -> Any:
    """Row k + odd of a panel as float32; k is even, and row k begins at element `first`."""
    if kind.dtype != types.uint16:
        start = builder.add(first, first.type(LANES * odd))
        return load_vector(builder, kind, element(context, builder, kind, array, start))
    # Two bfloat16 in 32 bits: each becomes a float32 by clearing the bits of the other.
    address = builder.bitcast(element(context, builder, kind, array, first), V16I.as_pointer())
    pairs = builder.load(address, align=2)
    if odd:
        bits = builder.and_(pairs, ir.Constant(V16I, [0xFFFF0000] * LANES))
    else:
        bits = builder.shl(pairs, ir.Constant(V16I, [16] * LANES))
    return builder.bitcast(bits, V16F)


def _add_row(context: Any, builder: Any, tile: Any, kinds: Any, values: Any, odd: int) -> Any:
    """acc[r, v] += a[r, k + odd] · b[k + odd, v], for the even k that the offsets point to."""
    acc, a, ia, lda, b, ib, panel = values
    rows = [
        _panel_row(context, builder, kinds[4], b, at(builder, ib, panel, v), odd)
        for v in range(tile.vectors)
    ]
    for r in range(tile.rows):
        index = builder.add(at(builder, ia, lda, r), ia.type(odd))
        address = element(context, builder, kinds[1], a, index)
        a_rk = broadcast(builder, load_scalar(builder, kinds[1], address))
        for v, row in enumerate(rows):
            cell = r * tile.vectors + v
            total = multiply_add(builder, a_rk, row, builder.extract_value(acc, cell))
            acc = builder.insert_value(acc, total, cell)
    return acc


def _compiler_barrier(builder: Any) -> None:
    """No instruction; LLVM reloads from memory after it what it loaded before it.

    Without it LLVM keeps the pairs of an even row in registers for the odd row, and spills sums.
    """
    no_result = ir.FunctionType(ir.VoidType(), [])
    builder.asm(no_result, "", "~{memory}", [], side_effect=True)


def _add_pairs(context: Any, builder: Any, tile: Any, kinds: Any, values: Any) -> Any:
    """acc[r, v] += a[r, k] · b[k, v] + a[r, k + 1] · b[k + 1, v] in bfloat16, by AVX-512 BF16."""
    acc, a, ia, lda, b, ib, panel = values

    def pairs(kind: Any, array: Any, index: Any, to: Any) -> Any:
        address = element(context, builder, kind, array, index)
        return builder.load(builder.bitcast(address, to.as_pointer()), align=2)

    rows = [
        builder.bitcast(pairs(kinds[4], b, at(builder, ib, panel, v), V16I), V32BF)
        for v in range(tile.vectors)
    ]
    for r in range(tile.rows):
        pair = pairs(kinds[1], a, at(builder, ia, lda, r), F32)
        a_rk = builder.bitcast(broadcast(builder, pair), V32BF)
        for v, row in enumerate(rows):
            cell = r * tile.vectors + v
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            total = call(builder, name, V16F, builder.extract_value(acc, cell), a_rk, row)
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
            _compiler_barrier(builder)
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
        acc, *target = arguments
        kind = signature.args[1]
        for cell in range(tile.rows * tile.vectors):
            address = tile_address(context, builder, tile, kind, target, cell)
            before = load_vector(builder, kind, address)
            total = builder.fadd(before, builder.extract_value(acc, cell))
            store_vector(builder, kind, total, address)

    return types.void(tile, c, types.intp, types.intp), codegen


def microkernel(rows: int, vectors: int, prefetch_next: bool) -> Any:
    """Make the function that adds A · B to a tile of C, rows × (16 · vectors) elements.

    C[r, v] += Σ_k A[r, k] · B[k, v]; each sum is one chain of multiply-adds in the order of k that
    starts from 0. With `prefetch_next` it also prefetches the same rows of the panels after b's.
    """

    @jit
    def gemm_accumulate(c, ic, ldc, a, ia, lda, b, ib, panel, K):
        """Add A · B to a tile of C.

        c  float32 [rows, 16 · vectors] at ic, rows `ldc` apart
        a  [rows, K] at ia, rows `lda` apart
        b  [K, 16 · vectors] in panels `panel` elements apart, the first at ib
        """
        check(a, ia, ia + (rows - 1) * lda + K - 1)
        check(b, ib, ib + (vectors - 1) * panel + (K + K % 2 * (4 // b.itemsize - 1)) * LANES - 1)
        check(c, ic, ic + (rows - 1) * ldc + vectors * LANES - 1)
        acc = _tile_zeros(rows, vectors)
        for k in range(0, K - 1, 2):
            if prefetch_next:
                for v in range(vectors, 2 * vectors):
                    prefetch_row_pair(b, ib + v * panel + k * LANES)
            acc = _tile_two(acc, a, ia + k, lda, b, ib + k * LANES, panel)
        if K % 2:
            acc = _tile_one(acc, a, ia + K - 1, lda, b, ib + (K - 1) * LANES, panel)
        _tile_accumulate(acc, c, ic, ldc)

    return gemm_accumulate
