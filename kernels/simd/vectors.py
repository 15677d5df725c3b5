"""Vectors of sixteen float32: arithmetic, comparisons, reductions."""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import lower_builtin, type_callable

from ..layout import LANES
from .llvm import (
    I32,
    V16F,
    V16I,
    broadcast,
    call,
    intrinsic,
    multiply_add,
    narrow,
    vector_type,
    widen,
)


@intrinsic
def splat(typingctx, scalar):
    """A vector with the same float32 in every lane."""

    def codegen(context, builder, signature, arguments):
        return broadcast(builder, arguments[0])

    return vector_type(types.float32), codegen


@intrinsic
def lane_ids(typingctx):
    """The vector 0, 1, …, 15."""

    def codegen(context, builder, signature, arguments):
        return ir.Constant(V16F, [float(lane) for lane in range(LANES)])

    return vector_type(), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a · b + c of three vectors or three float32, fused where the processor can."""

    def codegen(context, builder, signature, arguments):
        return multiply_add(builder, *arguments)

    return a(a, a, a), codegen


@intrinsic
def vmax(typingctx, a, b):
    """The maximum, lane by lane; of NaN and a number, the number."""

    def codegen(context, builder, signature, arguments):
        return call(builder, "llvm.maxnum.v16f32", V16F, *arguments)

    return vector_type(a, b), codegen


@intrinsic
def vmin(typingctx, a, b):
    """The minimum, lane by lane; of NaN and a number, the number."""

    def codegen(context, builder, signature, arguments):
        return call(builder, "llvm.minnum.v16f32", V16F, *arguments)

    return vector_type(a, b), codegen


@intrinsic
def vabs(typingctx, a):
    """The absolute value of each lane."""

    def codegen(context, builder, signature, arguments):
        return call(builder, "llvm.fabs.v16f32", V16F, *arguments)

    return vector_type(a), codegen


@intrinsic
def vround(typingctx, a):
    """Each lane rounded to the nearest integer, ties to even."""

    def codegen(context, builder, signature, arguments):
        return call(builder, "llvm.rint.v16f32", V16F, *arguments)

    return vector_type(a), codegen


@intrinsic
def vsqrt(typingctx, a):
    """The square root of each lane, correctly rounded."""

    def codegen(context, builder, signature, arguments):
        return call(builder, "llvm.sqrt.v16f32", V16F, *arguments)

    return vector_type(a), codegen


@intrinsic
def select_less(typingctx, a, b, then, otherwise):
    """`then` where a < b, else `otherwise`, lane by lane; `otherwise` if a or b is NaN."""

    def codegen(context, builder, signature, arguments):
        a, b, then, otherwise = arguments
        return builder.select(builder.fcmp_ordered("<", a, b), then, otherwise)

    return vector_type(a, b, then, otherwise), codegen


@intrinsic
def as_bfloat16(typingctx, a):
    """Each lane rounded to bfloat16 and converted back to float32."""

    def codegen(context, builder, signature, arguments):
        return widen(builder, narrow(builder, arguments[0]), V16F)

    return vector_type(a), codegen


@intrinsic
def power_of_two(typingctx, exponent):
    """2 ** exponent for integral values −126 … 127, written into the exponent bits."""

    def codegen(context, builder, signature, arguments):
        integers = builder.fptosi(arguments[0], V16I)
        biased = builder.add(integers, ir.Constant(V16I, [127] * LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(V16I, [23] * LANES)), V16F)

    return vector_type(exponent), codegen


def _reduce(builder: Any, value: Any, combine: Any) -> Any:
    """Combine sixteen lanes to one, in a fixed order: lower with upper half, four times."""
    width = LANES
    while width > 1:
        width //= 2
        lower = ir.Constant(ir.VectorType(I32, width), list(range(width)))
        upper = ir.Constant(ir.VectorType(I32, width), list(range(width, 2 * width)))
        value = combine(
            builder.shuffle_vector(value, value, lower), builder.shuffle_vector(value, value, upper)
        )
    return builder.extract_element(value, ir.Constant(I32, 0))


@intrinsic
def reduce_sum(typingctx, a):
    """The sum of the sixteen lanes, a float32."""

    def codegen(context, builder, signature, arguments):
        return _reduce(builder, arguments[0], builder.fadd)

    return types.float32(a), codegen


@intrinsic
def reduce_max(typingctx, a):
    """The maximum of the sixteen lanes, a float32."""

    def codegen(context, builder, signature, arguments):
        def maximum(x, y):
            return call(builder, f"llvm.maxnum.v{x.type.count}f32", x.type, x, y)

        return _reduce(builder, arguments[0], maximum)

    return types.float32(a), codegen


def _arithmetic(operation: Any, method: str) -> None:
    """Define the operator `operation` for vectors in compiled code, by a method of the builder."""

    @type_callable(operation)
    def typing(context):
        def typed(a, b):
            return vector_type if a == vector_type and b == vector_type else None

        return typed

    @lower_builtin(operation, vector_type, vector_type)
    def codegen(context, builder, signature, arguments):
        return getattr(builder, method)(*arguments)


for _operation, _method in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_operation, _method)
