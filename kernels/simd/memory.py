"""Loads and stores between arrays and vectors, with bounds checks if NUMBA_BOUNDSCHECK is set."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from ..jit import BOUNDS_CHECK, inline, python_too
from ..layout import LANES, activation_scales_stride, padded, panels_size, qx_stride, row_stride
from .llvm import (
    I32,
    V16F,
    V16I,
    as_stored,
    at,
    call,
    element,
    emit_store_int8,
    first_lanes,
    intrinsic,
    load_lanes,
    load_scalar,
    load_vector,
    narrow,
    narrow_pair,
    store_vector,
    vector_type,
)

# Sizes and strides that Python and compiled code compute alike.
for _function in (padded, row_stride, qx_stride, activation_scales_stride, panels_size):
    python_too(_function)


if BOUNDS_CHECK:

    @inline
    def check(array, first, last):
        """Raise IndexError unless elements first … last are inside the array."""
        if first < 0 or last >= array.size:
            raise IndexError("a vector reaches outside its array")

else:

    @inline
    def check(array, first, last):
        """Do nothing: bounds are not checked."""


@intrinsic
def _load(typingctx, array, index):
    def codegen(context, builder, signature, arguments):
        address = element(context, builder, signature.args[0], *arguments)
        return load_vector(builder, signature.args[0], address)

    return vector_type(array, types.intp), codegen


@intrinsic
def _store(typingctx, vector, array, index):
    def codegen(context, builder, signature, arguments):
        value, target, offset = arguments
        address = element(context, builder, signature.args[1], target, offset)
        store_vector(builder, signature.args[1], value, address)

    return types.void(vector, array, types.intp), codegen


@intrinsic
def _store_exact(typingctx, vector, array, index):
    def codegen(context, builder, signature, arguments):
        value, target, offset = arguments
        address = element(context, builder, signature.args[1], target, offset)
        if array.dtype == types.uint16:
            value = narrow(builder, value)
        align = 2 if array.dtype == types.uint16 else 4
        builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=align)

    return types.void(vector, array, types.intp), codegen


@intrinsic
def _load_first(typingctx, array, index, count):
    def codegen(context, builder, signature, arguments):
        source, offset, count = arguments
        address = element(context, builder, signature.args[0], source, offset)
        return load_lanes(builder, signature.args[0], address, count)

    return vector_type(array, types.intp, types.intp), codegen


@intrinsic
def _store_first(typingctx, vector, array, index, count):
    def codegen(context, builder, signature, arguments):
        value, target, offset, lanes = arguments
        address = element(context, builder, signature.args[1], target, offset)
        narrow = array.dtype == types.uint16
        value = as_stored(builder, signature.args[1], value)
        pointer = builder.bitcast(address, value.type.as_pointer())
        align, mask = ir.Constant(I32, 2 if narrow else 4), first_lanes(builder, lanes)
        name = f"llvm.masked.store.{'v16i16' if narrow else 'v16f32'}.p0"
        call(builder, name, ir.VoidType(), value, pointer, align, mask)

    return types.void(vector, array, types.intp, types.intp), codegen


@inline
def load(array, index):
    """Load elements index … index + 15 as a vector."""
    check(array, index, index + LANES - 1)
    return _load(array, index)


@inline
def store(vector, array, index):
    """Store the lanes to elements index … index + 15."""
    check(array, index, index + LANES - 1)
    _store(vector, array, index)


@inline
def store_exact(vector, array, index):
    """As `store`, with the same bits on every processor: for files."""
    check(array, index, index + LANES - 1)
    _store_exact(vector, array, index)


@inline
def load_first(array, index, count):
    """Load `count` ≤ 16 elements; the other lanes are 0 and their memory is not read."""
    check(array, index, index + count - 1)
    return _load_first(array, index, count)


@inline
def store_first(vector, array, index, count):
    """Store the first `count` ≤ 16 lanes."""
    check(array, index, index + count - 1)
    _store_first(vector, array, index, count)


@intrinsic
def _get(typingctx, array, index):
    def codegen(context, builder, signature, arguments):
        address = element(context, builder, signature.args[0], *arguments)
        return load_scalar(builder, signature.args[0], address)

    return types.float32(array, types.intp), codegen


@intrinsic
def _put(typingctx, value, array, index):
    def codegen(context, builder, signature, arguments):
        value, target, offset = arguments
        address = element(context, builder, signature.args[1], target, offset)
        builder.store(as_stored(builder, signature.args[1], value), address)

    return types.void(types.float32, array, types.intp), codegen


@inline
def get(array, index):
    """Load one element as float32."""
    check(array, index, index)
    return _get(array, index)


@inline
def put(value, array, index):
    """Store a float32 to one element."""
    check(array, index, index)
    _put(value, array, index)


@inline
def panel_offset(array, k, lane):
    """The offset of row k and column `lane` in a panel of the dtype of `array`."""
    if array.itemsize == 2:
        return (k - k % 2) * LANES + 2 * lane + k % 2
    return k * LANES + lane


def emit_store_row_pair(
    context: Any, builder: Any, kind: Any, first: Any, second: Any, panel: Any, start: Any
) -> None:
    """Store two vectors to rows k and k + 1 of a panel of Numba type `kind`; k is even and row k
    begins at `start`."""
    address = element(context, builder, kind, panel, start)
    if kind.dtype == types.uint16:
        pairs = narrow_pair(builder, first, second)
        builder.store(pairs, builder.bitcast(address, V16I.as_pointer()), align=2)
        return
    store_vector(builder, kind, first, address)
    below = element(context, builder, kind, panel, builder.add(start, start.type(LANES)))
    store_vector(builder, kind, second, below)


@intrinsic
def _store_row_pair(typingctx, first, second, array, index):
    def codegen(context, builder, signature, arguments):
        emit_store_row_pair(context, builder, signature.args[2], *arguments)

    return types.void(first, second, array, types.intp), codegen


@inline
def store_row_pair(first, second, array, index):
    """Store two vectors to rows k and k + 1 of a panel; k is even and row k begins at `index`."""
    check(array, index, index + 2 * LANES - 1)
    _store_row_pair(first, second, array, index)


@intrinsic
def _store_int8(typingctx, vector, array, index):
    def codegen(context, builder, signature, arguments):
        value, target, offset = arguments
        address = element(context, builder, signature.args[1], target, offset)
        emit_store_int8(builder, value, address)

    return types.void(vector, array, types.intp), codegen


@inline
def store_int8(vector, array, index):
    """Store lanes with integral values −128 … 127 to elements index … index + 15 of int8."""
    check(array, index, index + LANES - 1)
    _store_int8(vector, array, index)


@intrinsic
def _store_bytes(typingctx, a, b, c, d, array, index):
    def codegen(context, builder, signature, arguments):
        *vectors, target, offset = arguments
        packed = ir.Constant(V16I, [0] * LANES)
        for byte, vector in enumerate(vectors):
            bits = builder.and_(builder.fptosi(vector, V16I), ir.Constant(V16I, [255] * LANES))
            packed = builder.or_(packed, builder.shl(bits, ir.Constant(V16I, [8 * byte] * LANES)))
        address = element(context, builder, signature.args[4], target, offset)
        builder.store(packed, builder.bitcast(address, V16I.as_pointer()), align=1)

    return types.void(a, b, c, d, array, types.intp), codegen


@inline
def store_bytes(a, b, c, d, array, index):
    """Store four vectors with integral values −128 … 255 as bytes: a[0] b[0] c[0] d[0] a[1] …"""
    check(array, index, index + 4 * LANES - 1)
    _store_bytes(a, b, c, d, array, index)


@intrinsic
def _load_strided(typingctx, array, index, stride):
    def codegen(context, builder, signature, arguments):
        source, start, stride = arguments
        vector = ir.Constant(V16F, ir.Undefined)
        for lane in range(LANES):
            address = element(
                context, builder, signature.args[0], source, at(builder, start, stride, lane)
            )
            value = load_scalar(builder, signature.args[0], address)
            vector = builder.insert_element(vector, value, ir.Constant(I32, lane))
        return vector

    return vector_type(array, types.intp, types.intp), codegen


@inline
def load_strided(array, index, stride):
    """Load sixteen elements `stride` apart as a vector."""
    check(array, index, index + (LANES - 1) * stride)
    return _load_strided(array, index, stride)


@intrinsic
def prefetch(typingctx, array, index):
    """Prefetch the cache line of element `index` to L2; it may lie outside the array."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        read, locality, is_data = (ir.Constant(I32, number) for number in (0, 2, 1))
        call(builder, "llvm.prefetch.p0", ir.VoidType(), address, read, locality, is_data)

    return types.void(array, types.intp), codegen


@inline
def prefetch_row_pair(b, index):
    """Prefetch rows k and k + 1 of a panel; k is even and row k begins at `index`."""
    prefetch(b, index)
    if b.itemsize == 4:
        prefetch(b, index + LANES)


@intrinsic
def reinterpret(typingctx, array, like):
    """The memory of a 1-D array as an array of the dtype of `like`.

    As array.view(like.dtype), which takes Numba ten times as long to compile.
    """

    def codegen(context, builder, signature, arguments):
        source = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = context.get_value_type(types.CPointer(like.dtype))
        before, after = (
            context.get_constant(types.intp, kind.dtype.bitwidth // 8) for kind in (array, like)
        )
        size = builder.udiv(builder.mul(source.nitems, before), after)
        view = context.make_array(like)(context, builder)
        context.populate_array(
            view,
            data=builder.bitcast(source.data, pointer),
            shape=cgutils.pack_array(builder, [size]),
            strides=cgutils.pack_array(builder, [after]),
            itemsize=after,
            meminfo=None,
        )
        return view._getvalue()

    return like(array, like), codegen


@intrinsic
def array_at(typingctx, address, size, like):
    """The `size` elements at `address` as a 1-D array of the dtype of `like`.

    Weights reach compiled code as a table of addresses, whose type is the same for any number of
    layers. The caller keeps the memory alive.
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
