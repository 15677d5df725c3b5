"""Vectors and tiles for Numba: the only file that knows about instructions.

`Vector` is sixteen float32 in a row (LLVM's `<16 x float>`). One such value is one AVX-512
register, two AVX2 registers, four of SSE or NEON: LLVM splits it as the processor needs, so a
kernel written once over sixteen lanes runs everywhere. It is also what keeps results the same
everywhere: a sum over lanes has sixteen partial sums on every machine.

A `Tile` is rows × vectors of them that stay in registers while a product of matrices is summed
into them; TILE_ROWS × TILE_VECTORS fill the registers of this processor. Where it has AMX, tiles
of its own kind multiply bfloat16 (the end of this file).

Arrays are one-dimensional here and places in them are given as element numbers. An array of
uint16 is bfloat16, the upper half of a float32: widened when it is read, rounded when it is
written. Kernels need not know how weights and activations are held.

The right factor of a product lies in panels: sixteen columns wide, row below row. In bfloat16 two
rows 2i and 2i + 1 are interleaved, element by element, as the processors' instructions for pairs
want them; row k of a panel begins at element 16 · k for even k in either type.

Weights may also be whole numbers of 8 or 4 bits, with scales (layout.py). What they are multiplied
with is then made whole, too, and products are summed as integers: exactly, so every processor's
way to do it gives the same bits.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.extending import intrinsic, models, overload, register_jitable, register_model
from numba.core.registry import cpu_target

from .jit import inline, jit
from .layout import (
    BLOCK,
    LANES,
    numbers_stride,
    padded,
    panels_size,
    row_stride,
    units_stride,
)
from .permission import amx_allowed

# What NumPy and compiled code count with alike.
for _function in (padded, row_stride, numbers_stride, units_stride, panels_size):
    register_jitable(_function)

_F32 = ir.FloatType()
_I8 = ir.IntType(8)
_I16 = ir.IntType(16)
_I32 = ir.IntType(32)
_V16F = ir.VectorType(_F32, LANES)
_V16I = ir.VectorType(_I32, LANES)
_V16H = ir.VectorType(_I16, LANES)
_V16B = ir.VectorType(_I8, LANES)


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


TILE_ROWS, TILE_VECTORS = _tile_shape()
AMX = "amx-bf16" in cpu_features() and amx_allowed()
AMX_INT8 = "amx-int8" in cpu_features() and amx_allowed()
# Products of two bfloat16 are instructions of their own: what is multiplied is held so, too.
BF16_PRODUCTS = AMX or "avx512bf16" in cpu_features()


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


def _at(builder: Any, start: Any, stride: Any, times: int) -> Any:
    """start + stride · times"""
    return builder.add(start, builder.mul(stride, ir.Constant(stride.type, times)))


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


def _narrow(builder: Any, value: Any) -> Any:
    """float32 to bfloat16 as integers: to the nearest, halves to the even one; NaN stays NaN."""
    wide = isinstance(value.type, ir.VectorType)
    kind, half = (_V16I, _V16H) if wide else (_I32, _I16)

    def number(n: int) -> Any:
        return ir.Constant(kind, [n] * LANES if wide else n)

    bits = builder.bitcast(value, kind)
    odd = builder.and_(builder.lshr(bits, number(16)), number(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, number(0x7FFF))), number(16))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, number(0x7FC0), rounded), half)


def _as_stored(builder: Any, array_type: Any, value: Any) -> Any:
    """float32 in the type of an array's elements."""
    return _narrow(builder, value) if array_type.dtype == types.uint16 else value


def _store_whole(builder: Any, value: Any, address: Any) -> None:
    """Sixteen whole numbers −128 … 127, as float32, to int8."""
    whole = builder.trunc(builder.fptosi(value, _V16I), _V16B)
    builder.store(whole, builder.bitcast(address, _V16B.as_pointer()), align=1)


def _store_vector(builder: Any, array_type: Any, value: Any, address: Any) -> None:
    """Sixteen float32 to any address that an element may have, in the type of the array."""
    value = _as_stored(builder, array_type, value)
    align = 2 if array_type.dtype == types.uint16 else 4
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=align)


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
        _store_vector(builder, signature.args[1], value, address)

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
        narrow = array.dtype == types.uint16
        value = _as_stored(builder, signature.args[1], value)
        pointer = builder.bitcast(address, value.type.as_pointer())
        align, mask = ir.Constant(_I32, 2 if narrow else 4), _first(builder, lanes)
        name = f"llvm.masked.store.{'v16i16' if narrow else 'v16f32'}.p0"
        _call(builder, name, ir.VoidType(), value, pointer, align, mask)

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
def as_bfloat16(typingctx, a):
    """Each lane rounded to what bfloat16 can hold."""

    def codegen(context, builder, signature, arguments):
        return _widen(builder, _narrow(builder, arguments[0]), _V16F)

    return vector_type(a), codegen


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


if config.BOUNDSCHECK:

    @inline
    def _check(array, first, last):
        """Raise where elements first … last are not all inside."""
        if first < 0 or last >= array.size:
            raise IndexError("a vector reaches outside its array")

else:

    @inline
    def _check(array, first, last):
        """Nothing, without the flag."""


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
def _get(typingctx, array, index):
    def codegen(context, builder, signature, arguments):
        address = _element(context, builder, signature.args[0], *arguments)
        return _load_scalar(builder, signature.args[0], address)

    return types.float32(array, types.intp), codegen


@intrinsic
def _put(typingctx, value, array, index):
    def codegen(context, builder, signature, arguments):
        value, target, place = arguments
        address = _element(context, builder, signature.args[1], target, place)
        builder.store(_as_stored(builder, signature.args[1], value), address)

    return types.void(types.float32, array, types.intp), codegen


@inline
def get(array, index):
    """One element as float32."""
    _check(array, index, index)
    return _get(array, index)


@inline
def put(value, array, index):
    """Write a float32 to one element."""
    _check(array, index, index)
    _put(value, array, index)


@inline
def place(array, k, lane):
    """Where in a panel of the array's type the element in row k and column `lane` lies."""
    if array.itemsize == 2:
        return (k - k % 2) * LANES + 2 * lane + k % 2
    return k * LANES + lane


@intrinsic
def _store_two(typingctx, first, second, array, index):
    def codegen(context, builder, signature, arguments):
        first, second, target, start = arguments
        kind = signature.args[2]
        address = _element(context, builder, kind, target, start)
        if kind.dtype == types.uint16:
            low, high = (builder.zext(_narrow(builder, v), _V16I) for v in (first, second))
            pairs = builder.or_(low, builder.shl(high, ir.Constant(_V16I, [16] * LANES)))
            builder.store(pairs, builder.bitcast(address, _V16I.as_pointer()), align=2)
            return
        _store_vector(builder, kind, first, address)
        below = _element(context, builder, kind, target, builder.add(start, start.type(LANES)))
        _store_vector(builder, kind, second, below)

    return types.void(first, second, array, types.intp), codegen


@inline
def store_two(first, second, array, index):
    """Write rows k and k + 1 of a panel, k even, the first of them at `index`."""
    _check(array, index, index + 2 * LANES - 1)
    _store_two(first, second, array, index)


@intrinsic
def _store_numbers(typingctx, vector, array, index):
    def codegen(context, builder, signature, arguments):
        value, target, place = arguments
        address = _element(context, builder, signature.args[1], target, place)
        _store_whole(builder, value, address)

    return types.void(vector, array, types.intp), codegen


@inline
def store_numbers(vector, array, index):
    """Write whole numbers −128 … 127 to elements index … index + 15 of an int8 array."""
    _check(array, index, index + LANES - 1)
    _store_numbers(vector, array, index)


@intrinsic
def _store_bytes(typingctx, a, b, c, d, array, index):
    def codegen(context, builder, signature, arguments):
        *vectors, target, place = arguments
        whole = ir.Constant(_V16I, [0] * LANES)
        for byte, vector in enumerate(vectors):
            bits = builder.and_(builder.fptosi(vector, _V16I), ir.Constant(_V16I, [255] * LANES))
            whole = builder.or_(whole, builder.shl(bits, ir.Constant(_V16I, [8 * byte] * LANES)))
        address = _element(context, builder, signature.args[4], target, place)
        builder.store(whole, builder.bitcast(address, _V16I.as_pointer()), align=1)

    return types.void(a, b, c, d, array, types.intp), codegen


@inline
def store_bytes(a, b, c, d, array, index):
    """Write the lanes of four vectors of whole numbers −128 … 255, as bytes, lane by lane."""
    _check(array, index, index + 4 * LANES - 1)
    _store_bytes(a, b, c, d, array, index)


@intrinsic
def _load_strided(typingctx, array, index, stride):
    def codegen(context, builder, signature, arguments):
        source, start, stride = arguments
        vector = ir.Constant(_V16F, ir.Undefined)
        for lane in range(LANES):
            address = _element(
                context, builder, signature.args[0], source, _at(builder, start, stride, lane)
            )
            value = _load_scalar(builder, signature.args[0], address)
            vector = builder.insert_element(vector, value, ir.Constant(_I32, lane))
        return vector

    return vector_type(array, types.intp, types.intp), codegen


@inline
def load_strided(array, index, stride):
    """Sixteen elements `stride` apart as a vector."""
    _check(array, index, index + (LANES - 1) * stride)
    return _load_strided(array, index, stride)


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of element `index`, to L2; it may lie outside: nothing is read."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        read, keep, is_data = (ir.Constant(_I32, number) for number in (0, 2, 1))
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), address, read, keep, is_data)

    return types.void(array, types.intp), codegen


@inline
def _prefetch_two(b, index):
    """Ask for rows k and k + 1 of a panel."""
    prefetch(b, index)
    if b.itemsize == 4:
        prefetch(b, index + LANES)


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
def array_at(typingctx, address, size, like):
    """The `size` elements at `address` as an array of the type of the array `like`.

    A table of addresses is how weights reach compiled code: its type is the same for every number
    of layers. The caller keeps the memory alive.
    """

    def codegen(context, builder, signature, arguments):
        address, size, _ = arguments
        pointer = context.get_value_type(types.CPointer(like.dtype))
        itemsize = context.get_constant(types.intp, like.dtype.bitwidth // 8)
        array = context.make_array(like)(context, builder)
        context.populate_array(
            array,
            data=builder.inttoptr(address, pointer),
            shape=cgutils.pack_array(builder, [size]),
            strides=cgutils.pack_array(builder, [itemsize]),
            itemsize=itemsize,
            meminfo=None,
        )
        return array._getvalue()

    return like(types.uint64, types.intp, like), codegen


# ---- tiles ----------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def tile_zeros(typingctx, rows, vectors):
    """A tile of zeros; both sizes are literal numbers."""
    tile = TileType(rows.literal_value, vectors.literal_value)

    def codegen(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(rows, vectors), codegen


def _row_of_panel(context: Any, builder: Any, kind: Any, array: Any, first: Any, odd: int) -> Any:
    """Row k or k + 1 (`odd`) of a panel, k even, whose row k begins at element `first`."""
    if kind.dtype != types.uint16:
        start = builder.add(first, first.type(LANES * odd))
        return _load_vector(builder, kind, _element(context, builder, kind, array, start))
    # Two bfloat16 in 32 bits: either is a float32 once the other's bits are gone.
    address = builder.bitcast(_element(context, builder, kind, array, first), _V16I.as_pointer())
    pairs = builder.load(address, align=2)
    if odd:
        bits = builder.and_(pairs, ir.Constant(_V16I, [0xFFFF0000] * LANES))
    else:
        bits = builder.shl(pairs, ir.Constant(_V16I, [16] * LANES))
    return builder.bitcast(bits, _V16F)


def _add_row(context: Any, builder: Any, tile: Any, kinds: Any, values: Any, odd: int) -> Any:
    """acc[r, v] += a[r, k] · b[k, v] for the even k at the given places, or for k + 1 (`odd`)."""
    acc, a, ia, lda, b, ib, panel = values
    rows = [
        _row_of_panel(context, builder, kinds[4], b, _at(builder, ib, panel, v), odd)
        for v in range(tile.vectors)
    ]
    for r in range(tile.rows):
        index = builder.add(_at(builder, ia, lda, r), ia.type(odd))
        address = _element(context, builder, kinds[1], a, index)
        factor = _broadcast(builder, _load_scalar(builder, kinds[1], address))
        for v, row in enumerate(rows):
            cell = r * tile.vectors + v
            total = _multiply_add(builder, factor, row, builder.extract_value(acc, cell))
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
        address = _element(context, builder, kind, array, index)
        return builder.load(builder.bitcast(address, to.as_pointer()), align=2)

    rows = [
        builder.bitcast(pairs(kinds[4], b, _at(builder, ib, panel, v), _V16I), _V32B)
        for v in range(tile.vectors)
    ]
    for r in range(tile.rows):
        pair = pairs(kinds[1], a, _at(builder, ia, lda, r), _F32)
        factor = builder.bitcast(_broadcast(builder, pair), _V32B)
        for v, row in enumerate(rows):
            cell = r * tile.vectors + v
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            total = _call(builder, name, _V16F, builder.extract_value(acc, cell), factor, row)
            acc = builder.insert_value(acc, total, cell)
    return acc


@intrinsic
def _tile_two(typingctx, tile, a, ia, lda, b, ib, panel):
    paired = "avx512bf16" in cpu_features() and a.dtype == b.dtype == types.uint16

    def codegen(context, builder, signature, arguments):
        if paired:
            return _add_pairs(context, builder, tile, signature.args, arguments)
        _, *places = arguments
        acc = _add_row(context, builder, tile, signature.args, arguments, 0)
        if b.dtype == types.uint16:
            _read_again(builder)
        return _add_row(context, builder, tile, signature.args, [acc, *places], 1)

    n = types.intp
    return tile(tile, a, n, n, b, n, n), codegen


@intrinsic
def _tile_one(typingctx, tile, a, ia, lda, b, ib, panel):
    def codegen(context, builder, signature, arguments):
        return _add_row(context, builder, tile, signature.args, arguments, 0)

    n = types.intp
    return tile(tile, a, n, n, b, n, n), codegen


@intrinsic
def _tile_add_to(typingctx, tile, c, ic, ldc):
    def codegen(context, builder, signature, arguments):
        acc, c, ic, ldc = arguments
        kind = signature.args[1]
        for cell in range(tile.rows * tile.vectors):
            row, vector = divmod(cell, tile.vectors)
            start = _at(builder, _at(builder, ic, ldc, row), ic.type(LANES), vector)
            address = _element(context, builder, kind, c, start)
            before = _load_vector(builder, kind, address)
            total = builder.fadd(before, builder.extract_value(acc, cell))
            _store_vector(builder, kind, total, address)

    return types.void(tile, c, types.intp, types.intp), codegen


def sum_of_products(rows: int, vectors: int, ahead: bool) -> Any:
    """c[r, v] += Σ_k a[r, k] · b[k, v]: a function for tiles of rows × (16 · vectors) elements.

    Each sum is one chain of multiply-adds in the order of k, begun with 0. With `ahead`, the
    same rows of the panels that follow are asked for meanwhile.
    """

    @jit
    def add_products(c, ic, ldc, a, ia, lda, b, ib, panel, K):
        """
        c  float32 [rows, vectors · 16] at ic, rows `ldc` apart
        a  [rows, K] at ia, rows `lda` apart
        b  [K, vectors · 16] in panels `panel` elements apart, the first at ib
        """
        _check(a, ia, ia + (rows - 1) * lda + K - 1)
        _check(b, ib, ib + (vectors - 1) * panel + (K + K % 2 * (4 // b.itemsize - 1)) * LANES - 1)
        _check(c, ic, ic + (rows - 1) * ldc + vectors * LANES - 1)
        acc = tile_zeros(rows, vectors)
        for k in range(0, K - 1, 2):
            if ahead:
                for v in range(vectors, 2 * vectors):
                    _prefetch_two(b, ib + v * panel + k * LANES)
            acc = _tile_two(acc, a, ia + k, lda, b, ib + k * LANES, panel)
        if K % 2:
            acc = _tile_one(acc, a, ia + K - 1, lda, b, ib + (K - 1) * LANES, panel)
        _tile_add_to(acc, c, ic, ldc)

    return add_products


# ---- tiles of products of whole numbers -----------------------------------------------------

_V64B = ir.VectorType(_I8, 4 * LANES)
_LINE = 4 * LANES  # bytes of a panel that are read together: 4 rows of int8, 8 of int4

_VNNI = "avx512vnni" in cpu_features()
_AVX2 = "avx2" in cpu_features()
# VNNI multiplies unsigned by signed bytes: weights of int8 are then taken with this much added.
_ADDED = 128 if _VNNI else 0


class WholeTileType(types.Type):
    """`rows` × `vectors` vectors of sixteen int32, row by row."""

    def __init__(self, rows: int, vectors: int) -> None:
        self.rows = rows
        self.vectors = vectors
        super().__init__(name=f"WholeTile{rows}x{vectors}")


@register_model(WholeTileType)
class _WholeTileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        size = numba_type.rows * numba_type.vectors
        super().__init__(manager, numba_type, ir.ArrayType(_V16I, size))


def _whole_tile_shape() -> tuple[int, int]:
    """(rows, vectors) of the largest tile of whole numbers, as `_tile_shape`."""
    if _VNNI:
        return 12, 2
    return (4, 1) if _AVX2 else (2, 1)


WHOLE_TILE_ROWS, WHOLE_TILE_VECTORS = _whole_tile_shape()


@intrinsic(prefer_literal=True)
def _whole_tile_zeros(typingctx, rows, vectors):
    tile = WholeTileType(rows.literal_value, vectors.literal_value)

    def codegen(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(tile), None)

    return tile(rows, vectors), codegen


def _all(kind: Any, number: int) -> Any:
    return ir.Constant(kind, [number] * kind.count)


def _part(builder: Any, vector: Any, start: int, step: int, count: int) -> Any:
    """Every `step`-th lane from `start` on, `count` of them."""
    lanes = [start + step * lane for lane in range(count)]
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_I32, count), lanes))


def _joined(builder: Any, low: Any, high: Any) -> Any:
    lanes = list(range(low.type.count * 2))
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


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
                _call(
                    builder, "llvm.abs.v32i8", second.type, second, ir.Constant(ir.IntType(1), 0)
                ),
                _call(builder, "llvm.x86.avx2.psign.b", first.type, first, second),
            )
        kind = ir.VectorType(_I16, 16)
        halves.append(_call(builder, "llvm.x86.avx2.pmadd.ub.sw", kind, first, second))
    return halves


def _add_pairs_avx2(builder: Any, total: Any, pairs: Any) -> Any:
    """total + the sums of two neighbours of `pairs`."""
    ones = _all(ir.VectorType(_I16, 16), 1)
    kind = ir.VectorType(_I32, 8)
    low, high = (_call(builder, "llvm.x86.avx2.pmadd.wd", kind, half, ones) for half in pairs)
    return builder.add(total, _joined(builder, low, high))


def _add_fours(builder: Any, total: Any, w: Any, x: Any, signed: bool) -> Any:
    """total + the sums of four products each, of 64 bytes of w and x; w may be unsigned."""
    wide = ir.VectorType(_I16, 64)
    w = builder.sext(w, wide) if signed else builder.zext(w, wide)
    x = builder.sext(x, wide)
    for byte in range(4):
        a, b = (builder.sext(_part(builder, v, byte, 4, LANES), _V16I) for v in (w, x))
        total = builder.add(total, builder.mul(a, b))
    return total


def _add_line(builder: Any, total: Any, line: Any, xs: list[Any]) -> Any:
    """One vector's sums and the products of a line of its panel.

    line  <64 x i8>: 4 rows of int8, or 8 of int4
    xs    for each 4 rows, <64 x i8>: their four factors, sixteen times
    """
    signed = len(xs) == 1
    if signed:
        ws = [builder.xor(line, _all(_V64B, -128)) if _VNNI else line]
    else:
        low_half = _all(_V64B, 15)
        high = builder.lshr(builder.bitcast(line, _V16I), _all(_V16I, 4))
        ws = [builder.and_(v, low_half) for v in (line, builder.bitcast(high, _V64B))]
    if _VNNI:
        for w, x in zip(ws, xs, strict=True):
            total = _call(builder, "llvm.x86.avx512.vpdpbusd.512", _V16I, total, w, x)
        return total
    if not _AVX2:
        for w, x in zip(ws, xs, strict=True):
            total = _add_fours(builder, total, w, x, signed)
        return total
    pairs = _pairs_avx2(builder, ws[0], xs[0], signed)
    for w, x in zip(ws[1:], xs[1:], strict=True):  # 4 · 127 · 15 fit into 16 bits
        more = _pairs_avx2(builder, w, x, signed)
        pairs = [builder.add(a, b) for a, b in zip(pairs, more, strict=True)]
    return _add_pairs_avx2(builder, total, pairs)


@intrinsic
def _whole_tile_line(typingctx, tile, a, ia, lda, b, ib, panel):
    """acc[r, v] += Σ_k a[r, k] · b[k, v] over the rows of a line: 4 of int8, 8 of uint8 (int4)."""

    def codegen(context, builder, signature, arguments):
        acc, a, ia, lda, b, ib, panel = arguments
        _, kind_a, _, _, kind_b, _, _ = signature.args
        fours = 2 if kind_b.dtype == types.uint8 else 1
        factors = []
        for r in range(tile.rows):
            row = []
            for four in range(fours):
                index = builder.add(_at(builder, ia, lda, r), ia.type(4 * four))
                address = _element(context, builder, kind_a, a, index)
                bits = builder.load(builder.bitcast(address, _I32.as_pointer()), align=1)
                one = builder.insert_element(
                    ir.Constant(_V16I, ir.Undefined), bits, ir.Constant(_I32, 0)
                )
                same = builder.shuffle_vector(one, one, ir.Constant(_V16I, [0] * LANES))
                row.append(builder.bitcast(same, _V64B))
            factors.append(row)
        for v in range(tile.vectors):
            address = _element(context, builder, kind_b, b, _at(builder, ib, panel, v))
            line = builder.load(builder.bitcast(address, _V64B.as_pointer()), align=1)
            for r in range(tile.rows):
                cell = r * tile.vectors + v
                total = _add_line(builder, builder.extract_value(acc, cell), line, factors[r])
                acc = builder.insert_value(acc, total, cell)
        return acc

    n = types.intp
    return tile(tile, a, n, n, b, n, n), codegen


def _units_of_row(context: Any, builder: Any, kind: Any, units: Any, index: Any) -> Any:
    """What 1 is worth in a block of a row, and the sum of the block, each sixteen times."""
    places = [index, builder.add(index, index.type(1))]
    return [
        _broadcast(builder, builder.load(_element(context, builder, kind, units, place)))
        for place in places
    ]


def _scales_of_panel(
    context: Any, builder: Any, kind: Any, scales: Any, index: Any, kind_b: Any
) -> Any:
    """The scales of a block of a panel, and for int4 the offsets."""
    places = [index]
    if kind_b.dtype == types.uint8:
        places.append(builder.add(index, index.type(LANES)))
    return [
        _load_vector(builder, kind, _element(context, builder, kind, scales, place))
        for place in places
    ]


def _worth(builder: Any, whole: Any, row: Any, column: Any, value: Any, added: int = 0) -> Any:
    """value + scale · unit · whole, and for int4 offset · unit · total; all in this order.

    added  what was added to every weight
    """
    (unit, total), (scale, *offset) = row, column
    products = builder.sitofp(whole, _V16F)
    if added:
        more = builder.fmul(total, ir.Constant(_V16F, [float(added)] * LANES))
        products = builder.fsub(products, more)
    value = _multiply_add(builder, products, builder.fmul(scale, unit), value)
    if offset:
        value = _multiply_add(builder, builder.fmul(unit, total), offset[0], value)
    return value


@intrinsic
def _whole_tile_add_to(typingctx, tile, c, ic, ldc, units, iu, ldu, b, scales, isc, panel):
    """c[r, v] += what acc[r, v] is worth."""

    def codegen(context, builder, signature, arguments):
        acc, c, ic, ldc, units, iu, ldu, _, scales, isc, panel = arguments
        _, kind_c, _, _, kind_u, _, _, kind_b, kind_s, _, _ = signature.args
        added = 0 if kind_b.dtype == types.uint8 else _ADDED
        columns = [
            _scales_of_panel(context, builder, kind_s, scales, _at(builder, isc, panel, v), kind_b)
            for v in range(tile.vectors)
        ]
        for r in range(tile.rows):
            row = _units_of_row(context, builder, kind_u, units, _at(builder, iu, ldu, r))
            for v, column in enumerate(columns):
                place = _at(builder, _at(builder, ic, ldc, r), ic.type(LANES), v)
                address = _element(context, builder, kind_c, c, place)
                whole = builder.extract_value(acc, r * tile.vectors + v)
                before = _load_vector(builder, kind_c, address)
                value = _worth(builder, whole, row, column, before, added)
                _store_vector(builder, kind_c, value, address)

    n = types.intp
    return types.void(tile, c, n, n, units, n, n, b, scales, n, n), codegen


def rows_of_line(b: Any) -> Any:
    """The rows of a line of 64 bytes of a panel of whole numbers: 4 of int8, 8 of int4."""
    raise NotImplementedError("for compiled code")


@overload(rows_of_line)
def _rows_of_line(b):
    rows = 8 if b.dtype == types.uint8 else 4
    return lambda b: rows


def scales_of_block(b: Any) -> Any:
    """The scales and offsets of a block of 16 columns of whole numbers."""
    raise NotImplementedError("for compiled code")


@overload(scales_of_block)
def _scales_of_block(b):
    numbers = 2 * LANES if b.dtype == types.uint8 else LANES
    return lambda b: numbers


def sum_of_whole_products(rows: int, vectors: int, ahead: bool) -> Any:
    """c[r, v] += Σ_k a[r, k] · b[k, v]: `sum_of_products` for whole numbers with scales.

    Block by block in the order of k, the exact integer is turned to float32, multiplied with the
    scales of both factors, and added to c.
    """

    @jit
    def add_products(c, ic, ldc, x, m, w, panel, K):
        """
        c  float32 [rows, vectors · 16] at ic, rows `ldc` apart
        x  Rows of K numbers, of which those from m on are taken
        w  Codes of K rows, of which the panels from number `panel` on are
        """
        lines, step = BLOCK // rows_of_line(w.numbers), scales_of_block(w.numbers)
        ld, ldu, blocks = numbers_stride(K), units_stride(K), (K + BLOCK - 1) // BLOCK
        size, size_of_scales = blocks * lines * _LINE, blocks * step
        a, ia, units, iu = x.numbers, m * ld, x.units, m * ldu
        b, ib, scales, isc = w.numbers, panel * size, w.scales, panel * size_of_scales
        _check(a, ia, ia + (rows - 1) * ld + blocks * BLOCK - 1)
        _check(b, ib, ib + vectors * size - 1)
        _check(c, ic, ic + (rows - 1) * ldc + vectors * LANES - 1)
        _check(units, iu, iu + (rows - 1) * ldu + 2 * blocks - 1)
        _check(scales, isc, isc + vectors * size_of_scales - 1)
        for _ in range(blocks):
            acc = _whole_tile_zeros(rows, vectors)
            for _ in range(lines):
                if ahead:
                    for v in range(vectors, 2 * vectors):
                        prefetch(b, ib + v * size)
                acc = _whole_tile_line(acc, a, ia, ld, b, ib, size)
                ia += BLOCK // lines
                ib += _LINE
            _whole_tile_add_to(acc, c, ic, ldc, units, iu, ldu, b, scales, isc, size_of_scales)
            iu += 2
            isc += step

    return add_products


# ---- the tiles of AMX -----------------------------------------------------------------------

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
    address = builder.bitcast(_element(context, builder, kind, array, index), byte)
    return address, builder.mul(stride, stride.type(kind.dtype.bitwidth // 8))


@intrinsic
def amx_begin(typingctx):
    """Set up this thread's tiles; `amx_end` gives them back."""

    def codegen(context, builder, signature, arguments):
        shapes = cgutils.global_constant(builder, "amx_shapes", cgutils.make_bytearray(_AMX_SHAPES))
        pointer = builder.bitcast(shapes, ir.IntType(8).as_pointer())
        _call(builder, "llvm.x86.ldtilecfg", ir.VoidType(), pointer)

    return types.void(), codegen


@intrinsic
def amx_end(typingctx):
    def codegen(context, builder, signature, arguments):
        _call(builder, "llvm.x86.tilerelease", ir.VoidType())

    return types.void(), codegen


def _amx_move(name: str, first: int) -> Any:
    """A function that moves tile `first` + number from or to memory."""

    @intrinsic(prefer_literal=True)
    def move(typingctx, number, array, index, stride):
        tile = first + number.literal_value

        def codegen(context, builder, signature, arguments):
            _, *place = arguments
            address, step = _tile_memory(context, builder, signature.args[1], *place)
            _call(builder, name, ir.VoidType(), _tile_number(tile), address, step)

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
        _call(builder, "llvm.x86.tdpbf16ps", ir.VoidType(), *tiles)

    return types.void(row, column), codegen


@jit
def amx_add_products_32(c, ic, ldc, a, ia, lda, b, ib, panel, K):
    """As the function of `sum_of_products`, for 32 rows × 2 panels of bfloat16; K % 32 = 0."""
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
def amx_add_products_16(c, ic, ldc, a, ia, lda, b, ib, panel, K):
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
    _check(a, ia, ia + (rows - 1) * lda + K - 1)
    _check(b, ib, ib + panel + K * LANES - 1)
    _check(c, ic, ic + (rows - 1) * ldc + 2 * LANES - 1)


def _amx_multiply_whole(name: str) -> Any:
    """As _amx_multiply, for bytes; sums are int32."""

    @intrinsic(prefer_literal=True)
    def multiply(typingctx, row, column):
        r, c = row.literal_value, column.literal_value

        def codegen(context, builder, signature, arguments):
            tiles = (_tile_number(number) for number in (_C + 2 * r + c, _A + r, _B + c))
            _call(builder, name, ir.VoidType(), *tiles)

        return types.void(row, column), codegen

    return multiply


_amx_multiply_signed = _amx_multiply_whole("llvm.x86.tdpbssd")
_amx_multiply_unsigned = _amx_multiply_whole("llvm.x86.tdpbsud")  # A signed, B not


@intrinsic(prefer_literal=True)
def _amx_zero(typingctx, number):
    tile = _C + number.literal_value

    def codegen(context, builder, signature, arguments):
        _call(builder, "llvm.x86.tilezero", ir.VoidType(), _tile_number(tile))

    return types.void(number), codegen


@intrinsic
def _halves_of_bytes(typingctx, source, index, target, place):
    """64 bytes of pairs to 128: the low halves of all, then the high halves."""

    def codegen(context, builder, signature, arguments):
        source, index, target, place = arguments
        address = _element(context, builder, signature.args[0], source, index)
        line = builder.load(builder.bitcast(address, _V64B.as_pointer()), align=1)
        high = builder.lshr(builder.bitcast(line, _V16I), _all(_V16I, 4))
        for n, half in enumerate((line, builder.bitcast(high, _V64B))):
            start = builder.add(place, place.type(n * _LINE))
            address = _element(context, builder, signature.args[2], target, start)
            value = builder.and_(half, _all(_V64B, 15))
            builder.store(value, builder.bitcast(address, _V64B.as_pointer()), align=1)

    n = types.intp
    return types.void(source, n, target, n), codegen


@intrinsic
def _add_whole(typingctx, sums, index, c, ic, units, iu, b, scales, isc):
    """c[16] += what sixteen int32 of `sums` are worth, as _whole_tile_add_to does it."""

    def codegen(context, builder, signature, arguments):
        sums, index, c, ic, units, iu, _, scales, isc = arguments
        kind, _, kind_c, _, kind_u, _, kind_b, kind_s, _ = signature.args
        address = _element(context, builder, kind, sums, index)
        whole = builder.load(builder.bitcast(address, _V16I.as_pointer()), align=4)
        row = _units_of_row(context, builder, kind_u, units, iu)
        column = _scales_of_panel(context, builder, kind_s, scales, isc, kind_b)
        target = _element(context, builder, kind_c, c, ic)
        value = _worth(builder, whole, row, column, _load_vector(builder, kind_c, target))
        _store_vector(builder, kind_c, value, target)

    n = types.intp
    return types.void(sums, n, c, n, units, n, b, scales, n), codegen


AMX_WHOLE_SCRATCH = (2 * BLOCK * LANES + 4 * 4 * AMX_ROWS * LANES) // 4  # float32


def _amx_whole_products(multiply: Any, pairs: bool) -> Any:
    """c [rows, 32] += x[m : m + rows, :] · two panels of w, from number `panel` on.

    pairs  w is int4: each block of a panel is first spread to bytes
    """

    @jit
    def add_products(c, ic, ldc, x, m, w, panel, rows, K, scratch):
        """
        c        float32 at ic, rows `ldc` apart
        x, w     Rows and Codes of K terms; x has room for whole tiles of rows
        scratch  float32 [AMX_WHOLE_SCRATCH]
        """
        lines, step = BLOCK // rows_of_line(w.numbers), scales_of_block(w.numbers)
        ld, ldu, blocks = numbers_stride(K), units_stride(K), (K + BLOCK - 1) // BLOCK
        size, size_of_scales = blocks * lines * _LINE, blocks * step
        whole = BLOCK * LANES
        spread = scratch[: 2 * whole // 4].view(w.numbers.dtype)
        sums = scratch[2 * whole // 4 : AMX_WHOLE_SCRATCH].view(np.int32)
        _check(x.numbers, m * ld, (m + padded(rows, AMX_ROWS) - 1) * ld + blocks * BLOCK - 1)
        _check(w.numbers, panel * size, (panel + 2) * size - 1)
        _check(w.scales, panel * size_of_scales, (panel + 2) * size_of_scales - 1)
        _check(c, ic, ic + (rows - 1) * ldc + 2 * LANES - 1)
        for block in range(blocks):
            ib = panel * size + block * lines * _LINE
            if pairs:
                for line in range(lines):
                    here = ib + line * _LINE
                    _halves_of_bytes(w.numbers, here, spread, 2 * line * _LINE)
                    _halves_of_bytes(w.numbers, here + size, spread, whole + 2 * line * _LINE)
                _amx_load_b(0, spread, 0, BLOCK)
                _amx_load_b(1, spread, whole, BLOCK)
            else:
                _amx_load_b(0, w.numbers, ib, BLOCK)
                _amx_load_b(1, w.numbers, ib + size, BLOCK)
            isc = panel * size_of_scales + block * step
            row = 0
            while row < rows:
                ia = (m + row) * ld + block * BLOCK
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
                    _add_whole(sums, at, c, here, x.units, iu, w.numbers, w.scales, isc)
                    _add_whole(
                        sums, at + LANES, c, here + LANES, x.units, iu,
                        w.numbers, w.scales, isc + size_of_scales,
                    )  # fmt: skip
                row += 2 * AMX_ROWS

    return add_products


amx_add_products_of_int8 = _amx_whole_products(_amx_multiply_signed, pairs=False)
amx_add_products_of_int4 = _amx_whole_products(_amx_multiply_unsigned, pairs=True)
