"""What the threads of a team share: numbers that change in one step."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from .llvm import call, cpu_features, element


@intrinsic
def atomic_add(typingctx, array, index, value):
    """Add to an element of an int64 array in one step; returns what was there before."""

    def codegen(context, builder, signature, arguments):
        address = element(context, builder, signature.args[0], *arguments[:2])
        return builder.atomic_rmw("add", address, arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def atomic_load(typingctx, array, index):
    """An element of an int64 array as the other threads last left it."""

    def codegen(context, builder, signature, arguments):
        address = element(context, builder, signature.args[0], *arguments)
        return builder.load_atomic(address, "seq_cst", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def atomic_store(typingctx, array, index, value):
    """Write an element of an int64 array for the other threads to see."""

    def codegen(context, builder, signature, arguments):
        address = element(context, builder, signature.args[0], *arguments[:2])
        builder.store_atomic(arguments[2], address, "seq_cst", 8)

    return types.void(array, types.intp, types.int64), codegen


_IS_X86 = "sse2" in cpu_features()


@intrinsic
def pause(typingctx):
    """Tell the processor that this loop only waits."""

    def codegen(context, builder, signature, arguments):
        if _IS_X86:
            call(builder, "llvm.x86.sse2.pause", ir.VoidType())

    return types.void(), codegen
