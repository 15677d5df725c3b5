"""What threads that wait for each other need: atomic numbers, pause and sleep."""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba.core import types

from .llvm import call, cpu_features, element, intrinsic


@intrinsic
def atomic_add(typingctx, array, index, value):
    """Add to an element of an int64 array atomically; returns its former value."""

    def codegen(context, builder, signature, arguments):
        address = element(context, builder, signature.args[0], *arguments[:2])
        return builder.atomic_rmw("add", address, arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def atomic_load(typingctx, array, index):
    """Load an element of an int64 array with what other threads stored."""

    def codegen(context, builder, signature, arguments):
        address = element(context, builder, signature.args[0], *arguments)
        return builder.load_atomic(address, "seq_cst", 8)

    return types.int64(array, types.intp), codegen


@intrinsic
def atomic_store(typingctx, array, index, value):
    """Store to an element of an int64 array, visibly to other threads."""

    def codegen(context, builder, signature, arguments):
        address = element(context, builder, signature.args[0], *arguments[:2])
        builder.store_atomic(arguments[2], address, "seq_cst", 8)

    return types.void(array, types.intp, types.int64), codegen


_IS_X86 = "sse2" in cpu_features()


@intrinsic
def pause(typingctx):
    """Hint to the processor that this is a spin loop."""

    def codegen(context, builder, signature, arguments):
        if _IS_X86:
            call(builder, "llvm.x86.sse2.pause", ir.VoidType())

    return types.void(), codegen


# The system's own functions, which C would link; LLVM finds them in the running process.
sleep: Any
if sys.platform == "win32":
    sleep = types.ExternalFunction("Sleep", types.void(types.uint32))
    SLEEP_TIME = 0  # milliseconds: yields to another thread that is ready to run
else:
    sleep = types.ExternalFunction("usleep", types.int32(types.uint32))
    SLEEP_TIME = 5  # microseconds; the system adds some
