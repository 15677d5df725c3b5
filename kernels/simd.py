"""Vectors and tiles for Numba: the only file that knows about instructions.

`Vector` is sixteen float32 in a row (LLVM's `<16 x float>`). One such value is one AVX-512
register, two AVX2 registers, four of SSE or NEON: LLVM splits it as the processor needs, so a
kernel written once over sixteen lanes runs everywhere. It is also what keeps results the same
everywhere: a sum over lanes has sixteen partial sums on every machine.

A `Tile` is ROWS × VECTORS vectors that stay in registers while a product of matrices is summed
into them; `TILE_ROWS` and `TILE_VECTORS` are chosen to fill the register file of this processor.

    acc = tile_zeros(rows, vectors)
    for k in range(K):                                # acc[r, :] += a[r, k] · b[k, :]
        acc = _tile_fma(acc, a, ia + k, lda, b, ib + k * ldb, 16)
    write(acc, c, ic, ldc)

Arrays are one-dimensional here and places in them are given as element numbers. An array of
uint16 is read as bfloat16, the upper half of a float32, and widened: kernels need not know how
weights are held.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import carray
from numba.core import cgutils, config, types
from numba.core.extending import intrinsic, models, overload, register_model
from numba.core.registry import cpu_target

from .jit import inline, jit
from .layout import LANES

_F32 = ir.FloatType()
_I16 = ir.IntType(16)
_I32 = ir.IntType(32)
_V16F = ir.VectorType(_F32, LANES)
_V16I = ir.VectorType(_I32, LANES)
_V16H = ir.VectorType(_I16, LANES)


def cpu_features() -> frozenset[str]:
    """The features that code is compiled for, as LLVM names them: `avx2`, `fma`, `avx512f`, ….

    They are Numba's, so NUMBA_CPU_NAME and NUMBA_CPU_FEATURES mask them.
    """
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


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


def _dot_shape() -> tuple[int, int]:
    """(rows, columns) of the largest tile of unsummed dot products that fits in registers."""
    features = cpu_features()
    if "avx512f" in features:
        return 4, 6
    if "avx2" in features or "neon" in features:
        return 3, 2
    return 1, 2


TILE_ROWS, TILE_VECTORS = _tile_shape()
DOT_ROWS, DOT_COLUMNS = _dot_shape()


# ---- types ----------------------------------------------------------------------------------


class VectorType(types.Type):
    """Sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name="Vector16f")


class TileType(types.Type):
    """`rows` × `vectors` vectors, row by row."""

    def __init__(self, rows: int, vectors: int) -> None:
        self.rows = rows
        self.vectors = vectors
        super().__init__(name=f"Tile{rows}x{vectors}")


vector_type = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _V16F)


@register_model(TileType)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        size = numba_type.rows * numba_type.vectors
        super().__init__(manager, numba_type, ir.ArrayType(_V16F, size))


# ---- what LLVM is asked for -----------------------------------------------------------------


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """The address of element `index` of a one-dimensional contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index], inbounds=True)


def _widen(builder: Any, halves: Any, to: Any) -> Any:
    """bfloat16 to float32: the bits, moved to the upper half."""
    whole = _V16I if isinstance(to, ir.VectorType) else _I32
    shift = ir.Constant(whole, [16] * LANES if whole is _V16I else 16)
    return builder.bitcast(builder.shl(builder.zext(halves, whole), shift), to)


def _load_vector(builder: Any, array_type: Any, address: Any) -> Any:
    """Sixteen elements from any address that an element may have."""
    narrow = array_type.dtype == types.uint16
    pointer = builder.bitcast(address, (_V16H if narrow else _V16F).as_pointer())
    value = builder.load(pointer, align=2 if narrow else 4)
    return _widen(builder, value, _V16F) if narrow else value


def _load_scalar(builder: Any, array_type: Any, address: Any) -> Any:
    value = builder.load(address)
    return _widen(builder, value, _F32) if array_type.dtype == types.uint16 else value


def _broadcast(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(_V16F, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_V16I, [0] * LANES))


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call the LLVM intrinsic `name`."""
    signature = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, rounded once where the processor can, as two operations where it can not."""
    kind = "v16f32" if isinstance(a.type, ir.VectorType) else "f32"
    return _call(builder, f"llvm.fmuladd.{kind}", a.type, a, b, c)


def _first(builder: Any, count: Any) -> Any:
    """A mask of the first `count` lanes."""
    lanes = ir.Constant(_V16I, list(range(LANES)))
    limit = builder.trunc(count, _I32)
    wide = builder.insert_element(ir.Constant(_V16I, ir.Undefined), limit, ir.Constant(_I32, 0))
    wide = builder.shuffle_vector(wide, wide, ir.Constant(_V16I, [0] * LANES))
    return builder.icmp_signed("<", lanes, wide)


def _load_lanes(builder: Any, array_type: Any, address: Any, count: Any) -> Any:
    """The first `count` of sixteen elements; the other lanes are 0 and are not read."""
    narrow = array_type.dtype == types.uint16
    kind = _V16H if narrow else _V16F
    pointer = builder.bitcast(address, kind.as_pointer())
    mask, zeros = _first(builder, count), ir.Constant(kind, None)
    align = ir.Constant(_I32, 2 if narrow else 4)
    name = f"llvm.masked.load.{'v16i16' if narrow else 'v16f32'}.p0"
    value = _call(builder, name, kind, pointer, align, mask, zeros)
    return _widen(builder, value, _V16F) if narrow else value


# ---- vectors --------------------------------------------------------------------------------


@intrinsic
def _load(typingctx, array, index):
    def codegen(context, builder, signature, arguments):
        address = _element(context, builder, signature.args[0], *arguments)
        return _load_vector(builder, signature.args[0], address)

    return vector_type(array, types.intp), codegen


@intrinsic
def _store(typingctx, vector, array, index):
    def codegen(context, builder, signature, arguments):
        value, target, place = arguments
        address = _element(context, builder, signature.args[1], target, place)
        builder.store(value, builder.bitcast(address, _V16F.as_pointer()), align=4)

    return types.void(vector, array, types.intp), codegen


@intrinsic
def _load_first(typingctx, array, index, count):
    def codegen(context, builder, signature, arguments):
        source, place, count = arguments
        address = _element(context, builder, signature.args[0], source, place)
        return _load_lanes(builder, signature.args[0], address, count)

    return vector_type(array, types.intp, types.intp), codegen


@intrinsic
def _store_first(typingctx, vector, array, index, count):
    def codegen(context, builder, signature, arguments):
        value, target, place, lanes = arguments
        address = _element(context, builder, signature.args[1], target, place)
        pointer = builder.bitcast(address, _V16F.as_pointer())
        align, mask = ir.Constant(_I32, 4), _first(builder, lanes)
        _call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), value, pointer, align, mask)

    return types.void(vector, array, types.intp, types.intp), codegen


@intrinsic
def splat(typingctx, scalar):
    """Sixteen times the same float32."""

    def codegen(context, builder, signature, arguments):
        return _broadcast(builder, arguments[0])

    return vector_type(types.float32), codegen


@intrinsic
def lane_numbers(typingctx):
    """0, 1, …, 15."""

    def codegen(context, builder, signature, arguments):
        return ir.Constant(_V16F, [float(lane) for lane in range(LANES)])

    return vector_type(), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a · b + c, for three vectors or three float32."""

    def codegen(context, builder, signature, arguments):
        return _multiply_add(builder, *arguments)

    return a(a, a, a), codegen


@intrinsic
def vmax(typingctx, a, b):
    """The greater of each pair of lanes; of a NaN and a number, the number."""

    def codegen(context, builder, signature, arguments):
        return _call(builder, "llvm.maxnum.v16f32", _V16F, *arguments)

    return vector_type(a, b), codegen


@intrinsic
def vmin(typingctx, a, b):
    """The smaller of each pair of lanes; of a NaN and a number, the number."""

    def codegen(context, builder, signature, arguments):
        return _call(builder, "llvm.minnum.v16f32", _V16F, *arguments)

    return vector_type(a, b), codegen


@intrinsic
def vabs(typingctx, a):
    """The absolute value of each lane."""

    def codegen(context, builder, signature, arguments):
        return _call(builder, "llvm.fabs.v16f32", _V16F, *arguments)

    return vector_type(a), codegen


@intrinsic
def vround(typingctx, a):
    """Each lane to the nearest whole number, halves to the even one."""

    def codegen(context, builder, signature, arguments):
        return _call(builder, "llvm.rint.v16f32", _V16F, *arguments)

    return vector_type(a), codegen


@intrinsic
def select_less(typingctx, a, b, then, otherwise):
    """Lane by lane: `then` where a < b, else `otherwise` (also where either is NaN)."""

    def codegen(context, builder, signature, arguments):
        a, b, then, otherwise = arguments
        return builder.select(builder.fcmp_ordered("<", a, b), then, otherwise)

    return vector_type(a, b, then, otherwise), codegen


@intrinsic
def power_of_two(typingctx, exponent):
    """2 ** exponent for whole numbers −126 … 127, by writing them into the exponent's bits."""

    def codegen(context, builder, signature, arguments):
        whole = builder.fptosi(arguments[0], _V16I)
        biased = builder.add(whole, ir.Constant(_V16I, [127] * LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(_V16I, [23] * LANES)), _V16F)

    return vector_type(exponent), codegen


def _halving(builder: Any, value: Any, combine: Any) -> Any:
    """Combine sixteen lanes to one: upper half with lower half, four times. Always this order."""
    width = LANES
    while width > 1:
        width //= 2
        lower = ir.Constant(ir.VectorType(_I32, width), list(range(width)))
        upper = ir.Constant(ir.VectorType(_I32, width), list(range(width, 2 * width)))
        value = combine(
            builder.shuffle_vector(value, value, lower), builder.shuffle_vector(value, value, upper)
        )
    return builder.extract_element(value, ir.Constant(_I32, 0))


@intrinsic
def vsum(typingctx, a):
    """The sum of the sixteen lanes, a float32."""

    def codegen(context, builder, signature, arguments):
        return _halving(builder, arguments[0], builder.fadd)

    return types.float32(a), codegen


@intrinsic
def vgreatest(typingctx, a):
    """The greatest of the sixteen lanes, a float32."""

    def codegen(context, builder, signature, arguments):
        def greater(x, y):
            return _call(builder, f"llvm.maxnum.v{x.type.count}f32", x.type, x, y)

        return _halving(builder, arguments[0], greater)

    return types.float32(a), codegen


def _arithmetic(operation: Any, method: str) -> None:
    """Let compiled code write `a + b` for vectors."""

    @intrinsic
    def compute(typingctx, a, b):
        def codegen(context, builder, signature, arguments):
            return getattr(builder, method)(*arguments)

        return vector_type(a, b), codegen

    @overload(operation)
    def typed(a, b):
        if a == vector_type and b == vector_type:
            return lambda a, b: compute(a, b)
        return None


for _operation, _method in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_operation, _method)


# ---- memory, with the bounds checks that NUMBA_BOUNDSCHECK asks for -------------------------


@inline
def _check(array, first, last):
    """Raise where elements first … last are not all inside; compiled away without the flag."""
    if config.BOUNDSCHECK and (first < 0 or last >= array.size):
        raise IndexError("a vector reaches outside its array")


@inline
def load(array, index):
    """Elements index … index + 15 as a vector."""
    _check(array, index, index + LANES - 1)
    return _load(array, index)


@inline
def store(vector, array, index):
    """Write the lanes to elements index … index + 15."""
    _check(array, index, index + LANES - 1)
    _store(vector, array, index)


@inline
def load_first(array, index, count):
    """As `load`, of `count` ≤ 16 elements; the other lanes are 0 and their memory is not read."""
    _check(array, index, index + count - 1)
    return _load_first(array, index, count)


@inline
def store_first(vector, array, index, count):
    """As `store`, of the first `count` ≤ 16 lanes."""
    _check(array, index, index + count - 1)
    _store_first(vector, array, index, count)


@intrinsic
def widen(typingctx, value):
    """One element as float32: itself, or the bfloat16 whose bits a uint16 holds."""

    def codegen(context, builder, signature, arguments):
        return _widen(builder, arguments[0], _F32) if value == types.uint16 else arguments[0]

    return types.float32(value), codegen


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of element `index`, which may lie outside: nothing is read."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        read, keep, is_data = (ir.Constant(_I32, number) for number in (0, 2, 1))
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), address, read, keep, is_data)

    return types.void(array, types.intp), codegen


# ---- what threads share ---------------------------------------------------------------------


@intrinsic
def atomic_add(typingctx, array, index, value):
    """Add to an element of an int64 array in one step; returns what was there before."""

    def codegen(context, builder, signature, arguments):
        address = _element(context, builder, signature.args[0], *arguments[:2])
        return builder.atomic_rmw("add", address, arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def atomic_load(typingctx, array, index):
    """An element of an int64 array as the other threads last left it."""

    def codegen(context, builder, signature, arguments):
        address = _element(context, builder, signature.args[0], *arguments)
        return builder.load_atomic(address, "seq_cst", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def atomic_store(typingctx, array, index, value):
    """Write an element of an int64 array for the other threads to see."""

    def codegen(context, builder, signature, arguments):
        address = _element(context, builder, signature.args[0], *arguments[:2])
        builder.store_atomic(arguments[2], address, "seq_cst", 8)

    return types.void(array, types.intp, types.int64), codegen


_IS_X86 = "sse2" in cpu_features()


@intrinsic
def pause(typingctx):
    """Tell the processor that this loop only waits."""

    def codegen(context, builder, signature, arguments):
        if _IS_X86:
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())

    return types.void(), codegen


@intrinsic
def _pointer(typingctx, address, like):
    """The memory at `address` as a pointer to elements of the type of the array `like`."""
    result = types.CPointer(like.dtype)

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(result))

    return result(types.uint64, like), codegen


@inline
def array_at(address, size, like):
    """The `size` elements at `address` as an array of the type of the array `like`.

    A table of addresses is how weights that lie scattered in mapped files reach compiled code:
    its type is the same for every number of layers. The caller keeps the memory alive.
    """
    return carray(_pointer(address, like), (size,))


# ---- tiles ----------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def tile_zeros(typingctx, rows, vectors):
    """A tile of zeros; both sizes are literal numbers."""
    tile = TileType(rows.literal_value, vectors.literal_value)

    def codegen(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(rows, vectors), codegen


def _at(builder: Any, start: Any, stride: Any, times: int) -> Any:
    """start + stride · times"""
    return builder.add(start, builder.mul(stride, ir.Constant(stride.type, times)))


def _vector_at(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return _load_vector(builder, array_type, _element(context, builder, array_type, array, index))


def _accumulate(builder: Any, tile: Any, acc: Any, rows: Any, columns: Any) -> Any:
    """acc[r, c] += rows[r] · columns[c], lane by lane. `rows` is asked for one at a time."""
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            cell = r * tile.vectors + c
            total = _multiply_add(builder, row, column, builder.extract_value(acc, cell))
            acc = builder.insert_value(acc, total, cell)
    return acc


@intrinsic
def _tile_fma(typingctx, tile, a, ia, lda, b, ib, ldv):
    def codegen(context, builder, signature, arguments):
        acc, a, ia, lda, b, ib, ldv = arguments
        a_type, b_type = signature.args[1], signature.args[4]

        def factor(row):
            address = _element(context, builder, a_type, a, _at(builder, ia, lda, row))
            return _broadcast(builder, _load_scalar(builder, a_type, address))

        columns = [
            _vector_at(context, builder, b_type, b, _at(builder, ib, ldv, v))
            for v in range(tile.vectors)
        ]
        return _accumulate(builder, tile, acc, map(factor, range(tile.rows)), columns)

    n = types.intp
    return tile(tile, a, n, n, b, n, n), codegen


@intrinsic
def _tile_dot(typingctx, tile, a, ia, lda, b, ib, ldb):
    def codegen(context, builder, signature, arguments):
        acc, *rest = arguments
        return _dot_step(context, builder, tile, signature.args, acc, rest, None)

    n = types.intp
    return tile(tile, a, n, n, b, n, n), codegen


@intrinsic
def _tile_dot_first(typingctx, tile, a, ia, lda, b, ib, ldb, count):
    def codegen(context, builder, signature, arguments):
        acc, *rest, count = arguments
        return _dot_step(context, builder, tile, signature.args, acc, rest, count)

    n = types.intp
    return tile(tile, a, n, n, b, n, n, n), codegen


def _dot_step(context, builder, tile, kinds, acc, places, count) -> Any:
    """One step of sixteen k (of `count` where it is given) for all cells of a tile."""
    a, ia, lda, b, ib, ldb = places

    def line(kind, array, first, stride, number):
        address = _element(context, builder, kind, array, _at(builder, first, stride, number))
        if count is None:
            return _load_vector(builder, kind, address)
        return _load_lanes(builder, kind, address, count)

    rows = (line(kinds[1], a, ia, lda, row) for row in range(tile.rows))
    columns = [line(kinds[4], b, ib, ldb, column) for column in range(tile.vectors)]
    return _accumulate(builder, tile, acc, rows, columns)


def _tile_writer(add: bool) -> Any:
    """write(tile, c, ic, ldc): a tile's rows to places `ldc` apart, or added to what is there."""

    @intrinsic
    def write(typingctx, tile, c, ic, ldc):
        def codegen(context, builder, signature, arguments):
            acc, c, ic, ldc = arguments
            c_type = signature.args[1]
            for cell in range(tile.rows * tile.vectors):
                row, vector = divmod(cell, tile.vectors)
                place = _at(builder, _at(builder, ic, ldc, row), ic.type(LANES), vector)
                address = _element(context, builder, c_type, c, place)
                value = builder.extract_value(acc, cell)
                if add:
                    value = builder.fadd(_load_vector(builder, c_type, address), value)
                builder.store(value, builder.bitcast(address, _V16F.as_pointer()), align=4)

        return types.void(tile, c, types.intp, types.intp), codegen

    return write


@intrinsic
def _tile_store_sums(typingctx, tile, c, ic, ldc):
    """The sum of each cell's lanes to c, rows `ldc` apart."""

    def codegen(context, builder, signature, arguments):
        acc, c, ic, ldc = arguments
        for cell in range(tile.rows * tile.vectors):
            row, column = divmod(cell, tile.vectors)
            place = builder.add(_at(builder, ic, ldc, row), ic.type(column))
            total = _halving(builder, builder.extract_value(acc, cell), builder.fadd)
            builder.store(total, _element(context, builder, signature.args[1], c, place))

    return types.void(tile, c, types.intp, types.intp), codegen


@intrinsic
def _chain_of_eight(typingctx, acc, x, ix, w, iw, ldw):
    def codegen(context, builder, signature, arguments):
        total, x, ix, w, iw, ldw = arguments
        x_type, w_type = signature.args[1], signature.args[3]
        for r in range(8):
            address = _element(context, builder, x_type, x, builder.add(ix, ix.type(r)))
            factor = _broadcast(builder, _load_scalar(builder, x_type, address))
            line = _vector_at(context, builder, w_type, w, _at(builder, iw, ldw, r))
            total = _multiply_add(builder, factor, line, total)
        return total

    n = types.intp
    return vector_type(acc, x, n, w, n, n), codegen


@inline
def chain_of_eight(acc, x, ix, w, iw, ldw):
    """acc + Σ_r x[ix + r] · w[iw + r · ldw …], r = 0 … 7: eight rows of w, one after the other."""
    _check(x, ix, ix + 7)
    _check(w, iw, iw + 7 * ldw + LANES - 1)
    return _chain_of_eight(acc, x, ix, w, iw, ldw)


# The loops around a tile. Each returns a function for tiles of `rows` × `columns` that checks
# the corners of what it reads once and then runs without checks.


def sum_of_products(rows: int, vectors: int, add: bool) -> Any:
    """c[r, v] = Σ_k a[r, k] · b[k, v]: a function for tiles of rows × (16 · vectors) elements.

    Each element is one chain of multiply-adds in the order of k.
    """

    write = _tile_writer(add)

    @jit
    def multiply(c, ic, ldc, a, ia, lda, b, ib, ldb, ldv, K):
        """
        c   [rows, vectors × 16] at ic, rows `ldc` apart; with `add`, added to what is there
        a   [rows, K] at ia, rows `lda` apart
        b   [K, vectors × 16] at ib, rows `ldb` apart, vectors of a row `ldv` apart
        """
        _check(a, ia, ia + (rows - 1) * lda + K - 1)
        _check(b, ib, ib + (K - 1) * ldb + (vectors - 1) * ldv + LANES - 1)
        _check(c, ic, ic + (rows - 1) * ldc + vectors * LANES - 1)
        acc = tile_zeros(rows, vectors)
        for k in range(K):
            acc = _tile_fma(acc, a, ia + k, lda, b, ib + k * ldb, ldv)
        write(acc, c, ic, ldc)

    return multiply


def sum_of_dots(rows: int, columns: int) -> Any:
    """c[r, s] = Σ_k a[r, k] · b[s, k]: a function for tiles of rows × columns dot products.

    Each is sixteen chains of multiply-adds, lane l of the terms k ≡ l (mod 16), then `vsum`.
    """

    @jit
    def multiply(c, ic, ldc, a, ia, lda, b, ib, ldb, K):
        """
        c   [rows, columns] at ic, rows `ldc` apart
        a   [rows, K] at ia, rows `lda` apart
        b   [columns, K] at ib, rows `ldb` apart
        """
        _check(a, ia, ia + (rows - 1) * lda + K - 1)
        _check(b, ib, ib + (columns - 1) * ldb + K - 1)
        _check(c, ic, ic + (rows - 1) * ldc + columns - 1)
        acc = tile_zeros(rows, columns)
        whole = K - K % LANES
        for k in range(0, whole, LANES):
            acc = _tile_dot(acc, a, ia + k, lda, b, ib + k, ldb)
        if whole < K:
            acc = _tile_dot_first(acc, a, ia + whole, lda, b, ib + whole, ldb, K - whole)
        _tile_store_sums(acc, c, ic, ldc)

    return multiply
