"""What threads that wait for each other need: atomic numbers, pause, sleep and a clock."""

from __future__ import annotations

import sys
import time
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from .llvm import I32, call, cpu_features, element, intrinsic


@intrinsic
def atomic_add(typingctx, array, index, value):
    """Add to an element of an int64 array atomically; returns its former value."""

    def codegen(context, builder, signature, arguments):
        address = element(context, builder, signature.args[0], *arguments[:2])
        return builder.atomic_rmw("add", address, arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), codegen


@intrinsic
def atomic_compare_exchange(typingctx, array, index, expected, value):
    """Store `value` to an element of an int64 array if that is `expected`; return the former."""

    def codegen(context, builder, signature, arguments):
        address = element(context, builder, signature.args[0], *arguments[:2])
        pair = builder.cmpxchg(address, arguments[2], arguments[3], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 0)

    return types.int64(array, types.intp, types.int64, types.int64), codegen


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


@intrinsic
def clock(typingctx):
    """The time on a clock that only goes forward, in units of CLOCK_UNIT seconds."""

    def codegen(context, builder, signature, arguments):
        i64 = ir.IntType(64)
        timespec = cgutils.alloca_once(builder, ir.ArrayType(i64, 2))
        fields = [builder.gep(timespec, [ir.Constant(I32, 0), ir.Constant(I32, i)]) for i in (0, 1)]
        if sys.platform == "win32":
            call(builder, "QueryPerformanceCounter", I32, fields[0])
            return builder.load(fields[0])
        call(builder, "clock_gettime", I32, ir.Constant(I32, _MONOTONIC), fields[0])
        seconds, nanoseconds = map(builder.load, fields)
        return builder.add(builder.mul(seconds, ir.Constant(i64, 1_000_000_000)), nanoseconds)

    return types.int64(), codegen


# The system's own functions, which C would link; LLVM finds them in the running process.
sleep: Any
if sys.platform == "win32":
    CLOCK_UNIT = time.get_clock_info("perf_counter").resolution
    sleep = types.ExternalFunction("Sleep", types.void(types.uint32))
    SLEEP_TIME = 0  # milliseconds: yields to another thread that is ready to run
else:
    _MONOTONIC = time.CLOCK_MONOTONIC
    CLOCK_UNIT = 1e-9
    sleep = types.ExternalFunction("usleep", types.int32(types.uint32))
    SLEEP_TIME = 5  # microseconds; the system adds some
