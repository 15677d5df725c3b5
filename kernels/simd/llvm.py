"""LLVM types, the processor's features, and helpers that emit instructions for the other files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, cast

from llvmlite import ir
from numba.core import cgutils, extending, types
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


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's type bfloat, which llvmlite does not offer."""

    def _to_string(self) -> str:
        return "bfloat"


V16BF = ir.VectorType(_BFloat(), LANES)
V32BF = ir.VectorType(_BFloat(), 2 * LANES)
_V32H = ir.VectorType(I16, 2 * LANES)
_INTERLEAVED = [half * LANES + lane for lane in range(LANES) for half in (0, 1)]

_Parameters = ParamSpec("_Parameters")
_Typing = Callable[Concatenate[Any, _Parameters], Any]


def intrinsic(typing: _Typing[_Parameters]) -> Callable[_Parameters, Any]:
    """Numba's decorator for a function of compiled code that is written in LLVM's instructions.

    `typing` takes the typing context and the Numba types of the arguments; it returns the
    signature and a function that emits the instructions. The parameters after the context are
    those of the function that compiled code calls.
    """
    return cast(Callable[_Parameters, Any], extending.intrinsic(typing))


def literal_intrinsic(typing: _Typing[_Parameters]) -> Callable[_Parameters, Any]:
    """As `intrinsic`; constants among the arguments arrive as literal types, with their values."""
    return cast(Callable[_Parameters, Any], extending.intrinsic(prefer_literal=True)(typing))


def cpu_features() -> frozenset[str]:
    """The processor features that Numba compiles for, in LLVM's names: `avx2`, `fma`, `avx512f`, ….

    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES override those of this processor.
    """
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


AMX = "amx-bf16" in cpu_features() and amx_allowed()
AMX_INT8 = "amx-int8" in cpu_features() and amx_allowed()
# Whether the processor multiplies bfloat16 itself. Then A operands are stored as bfloat16, too.
BF16_PRODUCTS = AMX or "avx512bf16" in cpu_features()


class VectorType(types.Type):
    """The Numba type of a vector of sixteen float32."""

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
    """start + stride · times, for offsets and strides known at run time."""
    return builder.add(start, builder.mul(stride, ir.Constant(stride.type, times)))


def widen(builder: Any, halves: Any, to: Any) -> Any:
    """bfloat16 to float32, exactly: its bits are the upper half of a float32."""
    wide = V16I if isinstance(to, ir.VectorType) else I32
    shift = ir.Constant(wide, [16] * LANES if wide is V16I else 16)
    return builder.bitcast(builder.shl(builder.zext(halves, wide), shift), to)


def load_vector(builder: Any, array_type: Any, address: Any) -> Any:
    """Load sixteen elements as float32; aligned like an element, not like a vector."""
    narrow = array_type.dtype == types.uint16
    pointer = builder.bitcast(address, (V16H if narrow else V16F).as_pointer())
    value = builder.load(pointer, align=2 if narrow else 4)
    return widen(builder, value, V16F) if narrow else value


def load_scalar(builder: Any, array_type: Any, address: Any) -> Any:
    """Load one element as float32."""
    value = builder.load(address)
    return widen(builder, value, F32) if array_type.dtype == types.uint16 else value


def narrow(builder: Any, value: Any) -> Any:
    """float32 to the bits of bfloat16, rounded to nearest, ties to even; NaN stays NaN."""
    wide = isinstance(value.type, ir.VectorType)
    kind, half = (V16I, V16H) if wide else (I32, I16)

    def number(n: int) -> Any:
        return ir.Constant(kind, [n] * LANES if wide else n)

    bits = builder.bitcast(value, kind)
    odd = builder.and_(builder.lshr(bits, number(16)), number(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, number(0x7FFF))), number(16))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, number(0x7FC0), rounded), half)


def _rounds_bfloat16() -> bool:
    """Whether the processor rounds to bfloat16 in one instruction, AVX-512 BF16's."""
    return "avx512bf16" in cpu_features()


def narrow_operand(builder: Any, value: Any) -> Any:
    """As `narrow`, for operands of products: vectors by the processor's instruction, if it has one.

    That reads denormals as 0, as its products do, and keeps the sign and some bits of a NaN.
    """
    if not (isinstance(value.type, ir.VectorType) and _rounds_bfloat16()):
        return narrow(builder, value)
    rounded = call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", V16BF, value)
    return builder.bitcast(rounded, V16H)


def narrow_pair(builder: Any, first: Any, second: Any) -> Any:
    """Two vectors rounded as narrow_operand does, their elements side by side: 16 × 32 bits."""
    if _rounds_bfloat16():
        name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
        halves = builder.bitcast(call(builder, name, V32BF, second, first), _V32H)
        order = ir.Constant(ir.VectorType(I32, 2 * LANES), _INTERLEAVED)
        return builder.bitcast(builder.shuffle_vector(halves, halves, order), V16I)
    low, high = (builder.zext(narrow(builder, v), V16I) for v in (first, second))
    return builder.or_(low, builder.shl(high, ir.Constant(V16I, [16] * LANES)))


def as_stored(builder: Any, array_type: Any, value: Any) -> Any:
    """float32 converted to the dtype of an array."""
    return narrow_operand(builder, value) if array_type.dtype == types.uint16 else value


def emit_store_int8(builder: Any, value: Any, address: Any) -> None:
    """Store sixteen float32 with integral values −128 … 127 as int8."""
    integers = builder.trunc(builder.fptosi(value, V16I), V16B)
    builder.store(integers, builder.bitcast(address, V16B.as_pointer()), align=1)


def store_vector(builder: Any, array_type: Any, value: Any, address: Any) -> None:
    """Store sixteen float32 in the dtype of an array; aligned like an element."""
    value = as_stored(builder, array_type, value)
    align = 2 if array_type.dtype == types.uint16 else 4
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=align)


def broadcast(builder: Any, scalar: Any) -> Any:
    """A vector with a float32 in every lane."""
    one = builder.insert_element(ir.Constant(V16F, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(V16I, [0] * LANES))


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call the LLVM intrinsic `name`."""
    signature = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c: fused, rounded once, if the processor has the instruction, else two operations."""
    kind = "v16f32" if isinstance(a.type, ir.VectorType) else "f32"
    return call(builder, f"llvm.fmuladd.{kind}", a.type, a, b, c)


def first_lanes(builder: Any, count: Any) -> Any:
    """A mask with the first `count` lanes set."""
    lanes = ir.Constant(V16I, list(range(LANES)))
    limit = builder.trunc(count, I32)
    wide = builder.insert_element(ir.Constant(V16I, ir.Undefined), limit, ir.Constant(I32, 0))
    wide = builder.shuffle_vector(wide, wide, ir.Constant(V16I, [0] * LANES))
    return builder.icmp_signed("<", lanes, wide)


def load_lanes(builder: Any, array_type: Any, address: Any, count: Any) -> Any:
    """Load the first `count` of sixteen elements; the other lanes are 0 and are not read."""
    narrow = array_type.dtype == types.uint16
    kind = V16H if narrow else V16F
    pointer = builder.bitcast(address, kind.as_pointer())
    mask, zeros = first_lanes(builder, count), ir.Constant(kind, None)
    align = ir.Constant(I32, 2 if narrow else 4)
    name = f"llvm.masked.load.{'v16i16' if narrow else 'v16f32'}.p0"
    value = call(builder, name, kind, pointer, align, mask, zeros)
    return widen(builder, value, V16F) if narrow else value
