"""An emulator of AMX, bit for bit, so that tests can run code for it on any x86-64 processor.

A processor raises SIGILL for an instruction that it does not have. `install` sets a handler of that
signal, which reads the instruction and the registers of the thread, executes it on tiles in memory,
moves the thread's instruction pointer past it, and returns. The handler must not allocate, wait for
Python, or fail: it is machine code, compiled by Numba from the functions below, which access memory
by addresses only.

AMX has eight tiles of up to 16 rows × 64 bytes. A configuration of 64 bytes contains their sizes:

    byte 0         palette: 1, or 0 for no tiles
    byte 1         the first row after an interruption: here always 0
    byte 16 + 2t   bytes of a row of tile t, in 16 bits
    byte 48 + t    rows of tile t

All other bytes are 0. Each thread has tiles and a configuration of its own. The bytes of an
instruction (registers' bits R, X, B and the number v are stored inverted; L and W are 0):

    C4   R X B 00010   W vvvv L pp   opcode   mod reg rm   [SIB]   [displacement]

    opcode  pp: none      66            F3           F2            operands
    49      LDTILECFG     STTILECFG                                memory of 64 bytes; reg = 0
    49      TILERELEASE                              TILEZERO      mod = 3, rm = 0; tile reg
    4B                    TILELOADDT1   TILESTORED   TILELOADD     tile reg; memory with SIB
    5C                                  TDPBF16PS                  mod = 3; tiles reg += rm · v
    5E      TDPBUUD       TDPBUSD       TDPBSUD      TDPBSSD       mod = 3; tiles reg += rm · v

Facts from: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18,
and the pages of these instructions in volume 2. A bad configuration, or tiles whose sizes do not
match, raise another fault on a processor; here they raise SIGILL.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.core.extending import intrinsic

from minigpt.kernels import amx_permission as amx_permission

TILES, ROWS, ROW_BYTES = 8, 16, 64

# The memory of a thread: configuration, tiles, two rows of sums of TDPBF16PS.
_CONFIG_BYTES = 64
_TILE_BYTES = ROWS * ROW_BYTES
_SUMS = _CONFIG_BYTES + TILES * _TILE_BYTES
_FILE_BYTES = _SUMS + 2 * ROW_BYTES

# The field pp.
_NONE, _66, _F3, _F2 = range(4)

# Linux, x86-64: where ucontext_t holds 23 registers of 8 bytes; which of them is the instruction
# pointer; and which are the registers that instructions number 0 … 15 (rax, rcx, rdx, rbx, rsp,
# rbp, rsi, rdi, r8 … r15).
_REGISTERS_AT, _REGISTERS = 40, 23
_RIP = 16
_NUMBERED = (13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7)

_SIGILL = 4
_SA_SIGINFO = 4

_counter = ctypes.c_int64()
_references: list[Any] = []  # to what the handler's machine code uses, until the process ends


@cache
def install() -> bool:
    """Emulate AMX in this process from now on, and let the kernels use it.

    Call it before the first import of `minigpt.kernels.simd`, which asks whether AMX is allowed,
    and after all other handlers of SIGILL are set; pytest's faulthandler would replace this one
    (`-p no:faulthandler`). NUMBA_CPU_FEATURES must contain the features of AMX.

    Does nothing and returns False if the processor has AMX or is not x86-64, and on systems other
    than Linux.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64" or amx_permission.amx_allowed():
        return False
    libc = ctypes.CDLL(None)
    key = ctypes.c_uint32()
    libc.pthread_key_create(ctypes.byref(key), libc.free)  # free: when a thread ends
    previous = _SigAction()
    handler = _make_handler(key.value, ctypes.addressof(previous))
    action = _SigAction(handler=handler.address, flags=_SA_SIGINFO)
    _references.extend((handler, previous))
    libc.sigaction(_SIGILL, ctypes.byref(action), ctypes.byref(previous))
    amx_permission.amx_allowed = lambda: True  # type: ignore[assignment]
    return True


def count() -> int:
    """The number of instructions emulated so far, in all threads."""
    return _counter.value


class _SigAction(ctypes.Structure):
    """The C library's struct sigaction."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


# ---- intrinsics and functions of the C library ----------------------------------------------


# A division must not raise, nor an index, whatever NUMBA_BOUNDSCHECK is.
_FLAGS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}


def _part(function: Callable[..., Any]) -> Any:
    """Compile `function` as a part of the handler."""
    return numba.njit(**_FLAGS)(function)


@intrinsic
def _pointer(typingctx, address, dtype):
    """The memory at `address` as a pointer to elements of the type `dtype`."""
    result = types.CPointer(dtype.dtype)

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(result))

    return result(types.int64, dtype), codegen


@intrinsic
def _as_float(typingctx, bits):
    """The float32 with these 32 bits."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def _fma(typingctx, a, b, c):
    """a · b + c, rounded once."""

    def codegen(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def _flush_denormals(typingctx):
    """Round to nearest even, read and write denormals as 0, mask all exceptions.

    The system gives the interrupted thread its own MXCSR back when the handler returns.
    """

    def codegen(context, builder, signature, arguments):
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [word.as_pointer()])
        load = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
        offset = cgutils.alloca_once_value(builder, word(0x9FC0))
        builder.call(load, [offset])

    return types.void(), codegen


@intrinsic
def _count_one(typingctx, address):
    """Add 1 to the int64 at `address`, atomically."""

    def codegen(context, builder, signature, arguments):
        number = ir.IntType(64)
        offset = builder.inttoptr(arguments[0], number.as_pointer())
        builder.atomic_rmw("add", offset, number(1), "monotonic")

    return types.void(types.int64), codegen


_calloc = types.ExternalFunction("calloc", types.int64(types.int64, types.int64))
_memcpy = types.ExternalFunction("memcpy", types.int64(types.int64, types.int64, types.int64))
_memset = types.ExternalFunction("memset", types.int64(types.int64, types.int32, types.int64))
_sigaction = types.ExternalFunction("sigaction", types.int32(types.int32, types.int64, types.int64))
_get_own = types.ExternalFunction("pthread_getspecific", types.int64(types.uint32))
_set_own = types.ExternalFunction("pthread_setspecific", types.int32(types.uint32, types.int64))


# ---- the handler ----------------------------------------------------------------------------


def _make_handler(key: int, previous: int) -> Any:
    """The handler of SIGILL; `key` is the thread-specific key of a thread's tiles.

    At an instruction that is not AMX's it restores the `previous` action, which then handles it.
    """
    counter = ctypes.addressof(_counter)

    @numba.cfunc(types.void(types.int32, types.int64, types.int64), **_FLAGS)
    def handler(number, information, context):
        registers = carray(_pointer(context + _REGISTERS_AT, np.int64), (_REGISTERS,))
        length = _execute(registers, _own_file(key))
        if length:
            registers[_RIP] += length
            _count_one(counter)
        else:
            _sigaction(_SIGILL, previous, 0)

    return handler


@_part
def _own_file(key):
    """The address of this thread's configuration and tiles."""
    file = _get_own(key)
    if file == 0:
        # Allowed in this handler: the thread was stopped at an instruction, not in the allocator.
        file = _calloc(1, _FILE_BYTES)
        _set_own(key, file)
    return file


@_part
def _execute(registers, file):
    """Execute the instruction at which the thread stopped.

    Returns its length in bytes; 0 if it is not AMX's or is invalid.
    """
    code = registers[_RIP]
    if _byte(code) != 0xC4 or _byte(code + 1) & 0x9F != 0x82 or _byte(code + 2) & 0x84 != 0:
        return 0
    if _byte(code + 4) >> 6 == 3:
        return 5 if _work_on_tiles(file, code) else 0
    address, stride, length = _memory_operand(registers, code)
    return length if _work_with_memory(file, code, address, stride) else 0


@_part
def _work_on_tiles(file, code):
    """Execute an instruction without a memory operand; False if it is invalid."""
    opcode, pp = _byte(code + 3), _byte(code + 2) & 3
    c, a, b = _byte(code + 4) >> 3 & 7, _byte(code + 4) & 7, (_byte(code + 2) ^ 0x78) >> 3 & 15
    if opcode == 0x49 and pp == _NONE and c == 0 and a == 0:
        return _release(file)
    if opcode == 0x49 and pp == _F2 and a == 0:
        return _zero(file, c)
    if opcode == 0x5C and pp == _F3:
        return _fit(file, c, a, b) and _multiply_bf16(file, c, a, b)
    if opcode == 0x5E:
        return _fit(file, c, a, b) and _multiply_int8(file, c, a, b, pp & 2, pp & 1)
    return False


@_part
def _work_with_memory(file, code, address, stride):
    """Execute an instruction with a memory operand; False if it is invalid."""
    opcode, pp = _byte(code + 3), _byte(code + 2) & 3
    tile, sib = _byte(code + 4) >> 3 & 7, _byte(code + 4) & 7 == 4
    if opcode == 0x49 and pp == _NONE and tile == 0:
        return _load_config(file, address + stride)
    if opcode == 0x49 and pp == _66 and tile == 0:
        return _store_config(file, address + stride)
    if opcode == 0x4B and pp in (_66, _F2) and sib:
        return _load(file, tile, address, stride)
    if opcode == 0x4B and pp == _F3 and sib:
        return _store(file, tile, address, stride)
    return False


@_part
def _memory_operand(registers, code):
    """(base + displacement, index · scale, length of the instruction)"""
    mod, base, index, scale, length = _byte(code + 4) >> 6, _byte(code + 4) & 7, 4, 0, 5
    has_sib = base == 4
    if has_sib:
        base, index, scale = _byte(code + 5) & 7, _byte(code + 5) >> 3 & 7, _byte(code + 5) >> 6
        length += 1
    displacement = 0
    if mod == 1:
        displacement = np.int64(np.int8(_byte(code + length)))
        length += 1
    elif mod == 2 or base == 5:
        displacement = np.int64(carray(_pointer(code + length, np.int32), (1,))[0])
        length += 4
    # Two encodings mean no register: base 5 if mod is 0, and index 4 without X.
    index += 8 if _byte(code + 1) & 0x40 == 0 else 0
    stride = registers[_NUMBERED[index]] << scale if index != 4 else 0
    if mod == 0 and base == 5:
        start = 0 if has_sib else code + length
    else:
        start = registers[_NUMBERED[base + (8 if _byte(code + 1) & 0x20 == 0 else 0)]]
    return start + displacement, stride, length


# ---- the instructions: each returns whether it is valid -------------------------------------


@_part
def _byte(address):
    return np.int64(carray(_pointer(address, np.uint8), (1,))[0])


@_part
def _row_bytes(file, tile):
    return _byte(file + 16 + 2 * tile)


@_part
def _rows(file, tile):
    return _byte(file + 48 + tile)


@_part
def _row(file, tile, row):
    """The address of a row of a tile."""
    return file + _CONFIG_BYTES + tile * _TILE_BYTES + row * ROW_BYTES


@_part
def _words(file, tile, dtype):
    """A tile as rows of 32-bit words."""
    return carray(_pointer(_row(file, tile, 0), dtype), (ROWS, ROW_BYTES // 4))


@_part
def _release(file):
    """TILERELEASE: clear the configuration and all tiles."""
    _memset(file, 0, _FILE_BYTES)
    return True


@_part
def _load_config(file, address):
    """LDTILECFG: load the configuration, if it is valid, and zero all tiles."""
    palette = _byte(address)
    valid = palette <= 1
    for i in range(1, 16):
        valid &= _byte(address + i) == 0
    for tile in range(16):
        row_bytes = _row_bytes(address, tile) + 256 * _byte(address + 17 + 2 * tile)
        rows = _rows(address, tile)
        valid &= row_bytes <= ROW_BYTES and rows <= ROWS and (row_bytes == 0) == (rows == 0)
        valid &= tile < TILES or rows == 0
    if valid:
        _release(file)
        _memcpy(file, address, _CONFIG_BYTES if palette else 0)
    return valid


@_part
def _store_config(file, address):
    """STTILECFG: store the configuration."""
    _memcpy(address, file, _CONFIG_BYTES)
    return True


@_part
def _zero(file, tile):
    """TILEZERO: zero a tile."""
    _memset(_row(file, tile, 0), 0, _TILE_BYTES)
    return _rows(file, tile) > 0


@_part
def _load(file, tile, address, stride):
    """TILELOADD: load rows `stride` bytes apart; bytes outside the tile's size become 0."""
    _zero(file, tile)
    for row in range(_rows(file, tile)):
        _memcpy(_row(file, tile, row), address + row * stride, _row_bytes(file, tile))
    return _rows(file, tile) > 0


@_part
def _store(file, tile, address, stride):
    """TILESTORED: store rows `stride` bytes apart."""
    for row in range(_rows(file, tile)):
        _memcpy(address + row * stride, _row(file, tile, row), _row_bytes(file, tile))
    return _rows(file, tile) > 0


@_part
def _fit(file, c, a, b):
    """Whether the three tiles are distinct and their sizes match for a product.

    C [rows, columns], A [rows, depth], B [depth, columns], in words of 4 bytes.
    """
    if b >= TILES or c in (a, b) or a == b:
        return False
    rows, depth, row_bytes = _rows(file, a), _rows(file, b), _row_bytes(file, b)
    return (
        rows > 0
        and depth > 0
        and row_bytes % 4 == 0
        and _rows(file, c) == rows
        and _row_bytes(file, c) == row_bytes
        and _row_bytes(file, a) == 4 * depth
    )


@_part
def _low(word):
    """The low bfloat16 of a word, as float32."""
    return _as_float(np.uint32(word << 16))


@_part
def _high(word):
    """The high bfloat16 of a word, as float32."""
    return _as_float(np.uint32(word & 0xFFFF0000))


@_part
def _multiply_bf16(file, c, a, b):
    """TDPBF16PS: a word is two bfloat16; c[m, n] += Σ_k a[m, k].low · b[k, n].low + Σ_k … high.

    Two sums of fused multiply-adds in the order of k, from 0; then their sum is added to c.
    """
    _flush_denormals()
    total = _words(file, c, np.float32)
    left, right = _words(file, a, np.uint32), _words(file, b, np.uint32)
    sums = carray(_pointer(file + _SUMS, np.float32), (2, ROWS))
    depth, columns = _rows(file, b), _row_bytes(file, c) // 4
    for m in range(_rows(file, c)):
        sums[:] = 0
        for k in range(depth):
            low, high = _low(left[m, k]), _high(left[m, k])
            for n in range(columns):
                sums[0, n] = _fma(low, _low(right[k, n]), sums[0, n])
                sums[1, n] = _fma(high, _high(right[k, n]), sums[1, n])
        for n in range(columns):
            total[m, n] += sums[0, n] + sums[1, n]
    return True


@_part
def _multiply_int8(file, c, a, b, a_signed, b_signed):
    """TDPB[SU][SU]D: a word is four int8 or uint8; c[m, n] += Σ_k Σ_i a[m, k][i] · b[k, n][i].

    c is int32, and wraps around.
    """
    # (byte ^ 128) − 128 reads a byte as signed, (byte ^ 0) − 0 as unsigned.
    flip_a, flip_b = 128 if a_signed else 0, 128 if b_signed else 0
    total = _words(file, c, np.int32)
    shape = (ROWS, ROW_BYTES)
    left = carray(_pointer(_row(file, a, 0), np.uint8), shape)
    right = carray(_pointer(_row(file, b, 0), np.uint8), shape)
    depth, columns = _rows(file, b), _row_bytes(file, c) // 4
    for m in range(_rows(file, c)):
        for k in range(depth):
            for n in range(columns):
                for i in range(4):
                    x = (left[m, 4 * k + i] ^ flip_a) - flip_a
                    y = (right[k, 4 * n + i] ^ flip_b) - flip_b
                    total[m, n] += np.int32(x * y)
    return True
