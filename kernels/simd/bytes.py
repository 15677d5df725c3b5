"""Text as bytes: 64 of them compared at once, words of eight, and the bits that come of it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from ..jit import inline
from .llvm import I8, I32, V64B, call, element, intrinsic
from .memory import check

BLOCK = 64  # bytes compared at once, and bits of a mask

_I1, _I64, _I128 = ir.IntType(1), ir.IntType(64), ir.IntType(128)


def _pointer(context: Any, builder: Any, array_type: Any, arguments: Any, to: Any) -> Any:
    """A pointer to the element that (array, index) name, as one to the type `to`."""
    address = element(context, builder, array_type, *arguments)
    return builder.bitcast(address, to.as_pointer())


@intrinsic
def _bytes_between(typingctx, array, index, first, last):
    def codegen(context, builder, signature, arguments):
        source, offset, first, last = arguments
        address = _pointer(context, builder, signature.args[0], (source, offset), V64B)
        low, span = (
            _splat(builder, builder.trunc(value, I8)) for value in (first, builder.sub(last, first))
        )
        distance = builder.sub(builder.load(address, align=1), low)  # from 256 down where below
        return builder.bitcast(builder.icmp_unsigned("<=", distance, span), _I64)

    return types.uint64(array, types.intp, types.intp, types.intp), codegen


def _splat(builder: Any, byte: Any) -> Any:
    zeros = ir.Constant(ir.VectorType(I32, BLOCK), [0] * BLOCK)
    one = builder.insert_element(ir.Constant(V64B, ir.Undefined), byte, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, zeros)


@inline
def bytes_between(array, index, first, last):
    """A uint64 whose bit k says whether first ≤ array[index + k] ≤ last; k from 0 to 63."""
    check(array, index, index + BLOCK - 1)
    return _bytes_between(array, index, first, last)


@intrinsic
def _load_word(typingctx, array, index):
    def codegen(context, builder, signature, arguments):
        address = _pointer(context, builder, signature.args[0], arguments, _I64)
        return builder.load(address, align=1)

    return types.uint64(array, types.intp), codegen


@inline
def load_word(array, index):
    """Bytes index … index + 7 of a uint8 array as a uint64."""
    check(array, index, index + 7)
    return _load_word(array, index)


@intrinsic
def trailing_zeros(typingctx, word):
    """The number of the lowest bit that is set in a uint64; 64 for 0."""

    def codegen(context, builder, signature, arguments):
        return call(builder, "llvm.cttz.i64", _I64, arguments[0], ir.Constant(_I1, 0))

    return types.int64(types.uint64), codegen


@intrinsic
def folded_product(typingctx, a, b):
    """The upper half of the product of two uint64, xor the lower half: it mixes all their bits."""

    def codegen(context, builder, signature, arguments):
        product = builder.mul(*(builder.zext(argument, _I128) for argument in arguments))
        upper = builder.lshr(product, ir.Constant(_I128, 64))
        return builder.trunc(builder.xor(upper, product), _I64)

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def prefetch_word(typingctx, array, index):
    """Prefetch the cache line of element `index` of a uint64 array to L1."""

    def codegen(context, builder, signature, arguments):
        address = _pointer(context, builder, signature.args[0], arguments, I8)
        read, locality, is_data = (ir.Constant(I32, number) for number in (0, 3, 1))
        call(builder, "llvm.prefetch.p0", ir.VoidType(), address, read, locality, is_data)

    return types.void(array, types.uint64), codegen
