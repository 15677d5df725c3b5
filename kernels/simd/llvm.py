"""What LLVM is asked for: types, processors, and the instructions that the others are made of."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import models, register_model
from numba.core.registry import cpu_target

from ..amx_permission import amx_allowed
from ..layout import LANES

F32 = ir.FloatType()
I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
V16F = ir.VectorType(F32, LANES)
V16I = ir.VectorType(I32, LANES)
V16H = ir.VectorType(I16, LANES)
V16B = ir.VectorType(I8, LANES)
V64B = ir.VectorType(I8, 4 * LANES)


def cpu_features() -> frozenset[str]:
    """The features that code is compiled for, as LLVM names them: `avx2`, `fma`, `avx512f`, ….

    They are Numba's, so NUMBA_CPU_NAME and NUMBA_CPU_FEATURES mask them.
    """
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


AMX = "amx-bf16" in cpu_features() and amx_allowed()
AMX_INT8 = "amx-int8" in cpu_features() and amx_allowed()
# Products of two bfloat16 are instructions of their own: what is multiplied is held so, too.
BF16_PRODUCTS = AMX or "avx512bf16" in cpu_features()


class VectorType(types.Type):
    """Sixteen float32."""

    def __init__(self) -> None:
        super().__init__(name="Vector16f")


vector_type = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, V16F)


def element(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """The address of element `index` of a one-dimensional contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index], inbounds=True)


def at(builder: Any, start: Any, stride: Any, times: int) -> Any:
    """start + stride · times"""
    return builder.add(start, builder.mul(stride, ir.Constant(stride.type, times)))


def widen(builder: Any, halves: Any, to: Any) -> Any:
    """bfloat16 to float32: the bits, moved to the upper half."""
    whole = V16I if isinstance(to, ir.VectorType) else I32
    shift = ir.Constant(whole, [16] * LANES if whole is V16I else 16)
    return builder.bitcast(builder.shl(builder.zext(halves, whole), shift), to)


def load_vector(builder: Any, array_type: Any, address: Any) -> Any:
    """Sixteen elements from any address that an element may have."""
    narrow = array_type.dtype == types.uint16
    pointer = builder.bitcast(address, (V16H if narrow else V16F).as_pointer())
    value = builder.load(pointer, align=2 if narrow else 4)
    return widen(builder, value, V16F) if narrow else value


def load_scalar(builder: Any, array_type: Any, address: Any) -> Any:
    value = builder.load(address)
    return widen(builder, value, F32) if array_type.dtype == types.uint16 else value


def narrow(builder: Any, value: Any) -> Any:
    """float32 to bfloat16 as integers: to the nearest, halves to the even one; NaN stays NaN."""
    wide = isinstance(value.type, ir.VectorType)
    kind, half = (V16I, V16H) if wide else (I32, I16)

    def number(n: int) -> Any:
        return ir.Constant(kind, [n] * LANES if wide else n)

    bits = builder.bitcast(value, kind)
    odd = builder.and_(builder.lshr(bits, number(16)), number(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, number(0x7FFF))), number(16))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, number(0x7FC0), rounded), half)


def as_stored(builder: Any, array_type: Any, value: Any) -> Any:
    """float32 in the type of an array's elements."""
    return narrow(builder, value) if array_type.dtype == types.uint16 else value


def store_int8(builder: Any, value: Any, address: Any) -> None:
    """Sixteen whole numbers −128 … 127, as float32, to int8."""
    whole = builder.trunc(builder.fptosi(value, V16I), V16B)
    builder.store(whole, builder.bitcast(address, V16B.as_pointer()), align=1)


def store_vector(builder: Any, array_type: Any, value: Any, address: Any) -> None:
    """Sixteen float32 to any address that an element may have, in the type of the array."""
    value = as_stored(builder, array_type, value)
    align = 2 if array_type.dtype == types.uint16 else 4
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=align)


def broadcast(builder: Any, scalar: Any) -> Any:
    one = builder.insert_element(ir.Constant(V16F, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(V16I, [0] * LANES))


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call the LLVM intrinsic `name`."""
    signature = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, rounded once where the processor can, as two operations where it can not."""
    kind = "v16f32" if isinstance(a.type, ir.VectorType) else "f32"
    return call(builder, f"llvm.fmuladd.{kind}", a.type, a, b, c)


def first_lanes(builder: Any, count: Any) -> Any:
    """A mask of the first `count` lanes."""
    lanes = ir.Constant(V16I, list(range(LANES)))
    limit = builder.trunc(count, I32)
    wide = builder.insert_element(ir.Constant(V16I, ir.Undefined), limit, ir.Constant(I32, 0))
    wide = builder.shuffle_vector(wide, wide, ir.Constant(V16I, [0] * LANES))
    return builder.icmp_signed("<", lanes, wide)


def load_lanes(builder: Any, array_type: Any, address: Any, count: Any) -> Any:
    """The first `count` of sixteen elements; the other lanes are 0 and are not read."""
    narrow = array_type.dtype == types.uint16
    kind = V16H if narrow else V16F
    pointer = builder.bitcast(address, kind.as_pointer())
    mask, zeros = first_lanes(builder, count), ir.Constant(kind, None)
    align = ir.Constant(I32, 2 if narrow else 4)
    name = f"llvm.masked.load.{'v16i16' if narrow else 'v16f32'}.p0"
    value = call(builder, name, kind, pointer, align, mask, zeros)
    return widen(builder, value, V16F) if narrow else value
