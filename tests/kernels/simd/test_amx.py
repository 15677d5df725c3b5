"""The emulator of AMX against the arithmetic of Intel's manual, written with NumPy.

Functions named check_… are the tests. They run in a process of their own, in which Numba compiles
for a processor with AMX. On a processor that has AMX they test the processor.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import pytest
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic

from minigpt.kernels.amx_permission import amx_allowed

HERE = Path(__file__).resolve()
ROOT = HERE.parents[3]
TINY = np.finfo(np.float32).smallest_normal
CHECKS = 29  # check_… functions with their parameters, at least


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="signals and registers as Linux on x86-64 has them",
)
@pytest.mark.slow
def test_amx_instructions():
    """All check_… functions of this file pass, in a process that compiles for AMX."""
    features = llvm.get_host_cpu_features().flatten() + ",+amx-tile,+amx-bf16,+amx-int8"
    pytest_quietly = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    process = subprocess.run(
        [*pytest_quietly, "-o", "python_functions=check", str(HERE)],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CPU_FEATURES": features, "MINIGPT_CACHE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-1000:]
    (passed,) = re.findall(r"(\d+) passed", process.stdout.splitlines()[-1])
    assert int(passed) >= CHECKS


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """AMX for one check, which must execute AMX instructions; True if they are emulated."""
    monkeypatch.syspath_prepend(HERE.parent)
    import amx_emulator

    emulated = amx_emulator.install()
    assert emulated or amx_allowed()
    before = amx_emulator.count()
    yield emulated
    assert not emulated or amx_emulator.count() > before


# ---- instructions ---------------------------------------------------------------------------


def call(builder: Any, name: str, *arguments: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}")
    builder.call(function, arguments)


def start(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """The address of an array as LLVM's i8*."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(data, ir.IntType(8).as_pointer())


def configuration(name: str) -> Any:
    """f(memory): an instruction that reads or writes the 64 bytes of a configuration."""

    @intrinsic
    def function(typingctx, memory):
        def codegen(context, builder, signature, arguments):
            call(builder, name, start(context, builder, memory, arguments[0]))

        return types.void(memory), codegen

    return function


def transfer(name: str) -> Any:
    """f(tile, memory): moves a tile from or to the rows of a matrix."""

    @intrinsic(prefer_literal=True)
    def function(typingctx, tile, memory):
        number = ir.IntType(8)(tile.literal_value)

        def codegen(context, builder, signature, arguments):
            array = context.make_array(memory)(context, builder, arguments[1])
            stride = builder.extract_value(array.strides, 0)
            call(builder, name, number, start(context, builder, memory, arguments[1]), stride)

        return types.void(tile, memory), codegen

    return function


def product(name: str) -> Any:
    """f(c, a, b): tile c += tile a · tile b."""

    @intrinsic(prefer_literal=True)
    def function(typingctx, c, a, b):
        numbers = [ir.IntType(8)(tile.literal_value) for tile in (c, a, b)]

        def codegen(context, builder, signature, arguments):
            call(builder, name, *numbers)

        return types.void(c, a, b), codegen

    return function


@intrinsic(prefer_literal=True)
def zero(typingctx, tile):
    def codegen(context, builder, signature, arguments):
        call(builder, "tilezero", ir.IntType(8)(tile.literal_value))

    return types.void(tile), codegen


@intrinsic
def release(typingctx):
    def codegen(context, builder, signature, arguments):
        call(builder, "tilerelease")

    return types.void(), codegen


def assembly(text: str, *registers: str) -> Any:
    """f(address, stride): assembly that finds its operands in the `registers`."""
    llvm.initialize_native_asmparser()
    constraints = ",".join([*(f"{{{register}}}" for register in registers), "~{memory}"])

    @intrinsic
    def function(typingctx, address, stride):
        def codegen(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * len(registers))
            line = ir.InlineAsm(kind, text, constraints, side_effect=True)
            builder.call(line, arguments[: len(registers)])

        return types.void(types.int64, types.int64), codegen

    return function


load_config, store_config = configuration("ldtilecfg"), configuration("sttilecfg")
load, load_once = transfer("tileloadd64"), transfer("tileloaddt164")
store = transfer("tilestored64")
multiply_bf16 = product("tdpbf16ps")


@numba.njit(nogil=True)
def bf16_product(config, a, b, c):
    load_config(config)
    load(7, c)
    load_once(1, a)
    load(6, b)
    multiply_bf16(7, 1, 6)
    store(7, c)
    release()


# ---- expected results -----------------------------------------------------------------------


def configured(sizes: dict[int, tuple[int, int]]) -> np.ndarray:
    """The configuration of tiles, by number, of (rows, bytes of a row)."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    for tile, (rows, row_bytes) in sizes.items():
        config[48 + tile], config[16 + 2 * tile] = rows, row_bytes
    return config


FULL = configured(dict.fromkeys(range(8), (16, 64)))


def flushed(x: np.ndarray) -> np.ndarray:
    """float32 with denormals flushed to 0."""
    x = x.astype(np.float32)
    return np.where(abs(x) < TINY, np.copysign(np.float32(0), x), x)


def bf16_to_f32(halves: np.ndarray) -> np.ndarray:
    return flushed((halves.astype(np.uint32) << 16).view(np.float32)).astype(np.float64)


def expected_bf16(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c [M, N] + a [M, 2K] · b [K, 2N], whose rows 2k and 2k + 1 are interleaved.

    A product of two bfloat16 and its sum with a float32 are exact in float64, so the only rounding
    is that to float32.
    """
    even, odd = np.zeros_like(c), np.zeros_like(c)
    for k in range(len(b)):
        x, y = bf16_to_f32(a[:, 2 * k : 2 * k + 2]), bf16_to_f32(b[k])
        even = flushed(np.outer(x[:, 0], y[0::2]) + even)
        odd = flushed(np.outer(x[:, 1], y[1::2]) + odd)
    return flushed(flushed(c) + flushed(even + odd))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.astype(a.dtype).tobytes()


def random_bf16(rng: np.random.Generator, *shape: int, scale: float = 1) -> np.ndarray:
    wide = (scale * rng.standard_normal(shape)).astype(np.float32)
    return (wide.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    ("scale_a", "scale_b", "scale_c"),
    [(1, 1, 1), (1e-19, 1e-19, 1e-37), (1e-38, 1, 1e-38), (1e30, 1e30, 1e30)],
    ids=["ordinary", "denormal products", "denormal operands", "infinite"],
)
def check_bf16(tiles, rng, scale_a, scale_b, scale_c):
    a, b = random_bf16(rng, 16, 32, scale=scale_a), random_bf16(rng, 16, 32, scale=scale_b)
    c = (scale_c * rng.standard_normal((16, 16))).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = expected_bf16(a, b, c)
    bf16_product(FULL, a, b, c)
    np.testing.assert_array_equal(c, expected)
    assert same_bits(np.nan_to_num(c), np.nan_to_num(expected))


@pytest.mark.parametrize(
    ("name", "a_dtype", "b_dtype"),
    [
        ("tdpbssd", np.int8, np.int8),
        ("tdpbsud", np.int8, np.uint8),
        ("tdpbusd", np.uint8, np.int8),
        ("tdpbuud", np.uint8, np.uint8),
    ],
)
def check_int8(tiles, rng, name, a_dtype, b_dtype):
    multiply = product(name)

    @numba.njit
    def int8_product(config, a, b, c):
        load_config(config)
        load(0, c)
        load(1, a)
        load(2, b)
        multiply(0, 1, 2)
        store(0, c)
        release()

    a, b = (
        rng.integers(0, 256, (16, 64)).astype(np.uint8).view(dtype) for dtype in (a_dtype, b_dtype)
    )
    c = rng.integers(-(2**31), 2**31, (16, 16)).astype(np.int32)
    rows = b.reshape(16, 16, 4).swapaxes(1, 2).reshape(64, 16)
    expected = (c + a.astype(np.int64) @ rows.astype(np.int64)).astype(np.int32)
    int8_product(FULL, a, b, c)
    np.testing.assert_array_equal(c, expected)


def check_sizes_of_tiles(tiles, rng):
    """Tiles below the maximal size read, multiply and write no more than their size."""
    config = configured({7: (5, 12), 1: (5, 28), 6: (7, 12)})
    a, b = random_bf16(rng, 5, 40), random_bf16(rng, 7, 30)
    c = rng.standard_normal((16, 16)).astype(np.float32)
    expected = c.copy()
    expected[:5, :3] = expected_bf16(a[:, :14], b[:, :6], c[:5, :3])
    bf16_product(config, a, b, c)
    assert same_bits(c, expected)


@numba.njit
def smaller_then_larger(small, large, a, out):
    load_config(large)
    load(0, a)
    load_config(small)
    load(0, a)
    load_config(large)
    store(0, out)
    load(0, a)
    zero(0)
    store(0, out[16:])
    release()


def check_ldtilecfg_and_tilezero_clear_tiles(tiles):
    a, out = np.ones((16, 64), np.uint8), np.ones((32, 64), np.uint8)
    smaller_then_larger(configured({0: (3, 8)}), FULL, a, out)
    assert not out.any()


@numba.njit
def configurations(config, before, during, after):
    store_config(before)
    load_config(config)
    store_config(during)
    release()
    store_config(after)


def check_sttilecfg_stores_the_configuration(tiles):
    stored = np.ones((3, 64), np.uint8)
    configurations(FULL, *stored)
    np.testing.assert_array_equal(stored, [0 * FULL, FULL, 0 * FULL])


@numba.njit(nogil=True)
def many_products(config, a, b, c, times, before):
    store_config(before)
    load_config(config)
    load(0, c)
    load(1, a)
    load(2, b)
    for _ in range(times):
        multiply_bf16(0, 1, 2)
    store(0, c)


def check_threads(tiles, rng):
    """Concurrent threads have tiles of their own."""
    n, times = 4, 100
    a, b = random_bf16(rng, n, 16, 32), random_bf16(rng, n, 16, 32)
    c, before = np.zeros((n, 16, 16), np.float32), np.ones((n, 64), np.uint8)
    expected = c.copy()
    for i in range(n):
        for _ in range(times):
            expected[i] = expected_bf16(a[i], b[i], expected[i])
    many_products(FULL, a[0], b[0], c[0], 0, before[0])  # compiles, and leaves tiles in this thread
    for _ in range(2):  # the second round may reuse memory of the first round's threads
        c[:], before[:] = 0, 1
        threads = [
            Thread(target=many_products, args=(FULL, a[i], b[i], c[i], times, before[i]))
            for i in range(n)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # On a processor a thread inherits the sizes, not the contents, of its parent's tiles.
        assert not (tiles and before.any())
        assert same_bits(c, expected)


def check_tiles_that_llvm_spills(tiles, rng):
    """With more tiles than registers LLVM spills some, and the configuration, to the stack."""
    n = 10
    lines = [
        "declare x86_amx @llvm.x86.tileloadd64.internal(i16, i16, ptr, i64)",
        "declare void @llvm.x86.tilestored64.internal(i16, i16, ptr, i64, x86_amx)",
        "define void @copy(ptr %from, ptr %to) {",
    ]
    for t in range(n):
        load_tile = "call x86_amx @llvm.x86.tileloadd64.internal(i16 16, i16 64"
        lines += [f"%from{t} = getelementptr i8, ptr %from, i64 {1024 * t}"]
        lines += [f"%tile{t} = {load_tile}, ptr %from{t}, i64 64)"]
    for t in range(n):
        store_tile = "call void @llvm.x86.tilestored64.internal(i16 16, i16 64"
        lines += [f"%to{t} = getelementptr i8, ptr %to, i64 {1024 * t}"]
        lines += [f"{store_tile}, ptr %to{t}, i64 64, x86_amx %tile{t})"]
    lines += ["ret void }"]
    machine = llvm.Target.from_default_triple().create_target_machine(
        features=os.environ["NUMBA_CPU_FEATURES"], jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly("\n".join(lines)), machine)
    engine.finalize_object()
    copy = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(
        engine.get_function_address("copy")
    )
    source = rng.integers(0, 256, (n, 16, 64)).astype(np.uint8)
    target = np.zeros_like(source)
    copy(source.ctypes.data, target.ctypes.data)
    np.testing.assert_array_equal(target, source)


@pytest.mark.parametrize(
    ("operand", "registers", "first", "step"),
    [
        ("($0,$1)", ("rax", "rcx"), 0, 1),
        ("64($0,$1)", ("rsi", "rdi"), 1, 1),
        ("-64($0,$1)", ("r8", "rbx"), -1, 1),
        ("1024($0,$1,2)", ("r12", "r9"), 16, 2),
        ("($0,$1,4)", ("r13", "r12"), 0, 4),
        ("($0,$1,8)", ("rbp", "r13"), 0, 8),
        ("($0,$1)", ("r11", "r14"), 0, 1),
        ("($0)", ("r12",), 0, 0),
        ("-2048($0)", ("rdx",), -32, 0),
    ],
)
def check_addresses_of_rows(tiles, rng, operand, registers, first, step):
    """Base, index, scale and displacement, in low and high registers; rows are 64 bytes."""
    load_here = assembly(f"tileloadd {operand}, %tmm3", *registers)

    @numba.njit
    def read(config, address, out):
        load_config(config)
        load_here(address, 64)
        store(3, out)
        release()

    memory = rng.integers(0, 256, (256, 64)).astype(np.uint8)
    out = np.zeros((16, 64), np.uint8)
    read(FULL, memory[100:].ctypes.data, out)
    np.testing.assert_array_equal(out, memory[100 + first + step * np.arange(16)])


RIP_RELATIVE = """ldtilecfg 1f(%rip)
    jmp 2f
    1: .byte 1
    .zero 15
    .fill 8, 2, 64
    .zero 16
    .fill 8, 1, 16
    .zero 8
    2:"""


@pytest.mark.parametrize(
    ("line", "register"),
    [
        ("ldtilecfg ($0)", "rdi"),
        ("ldtilecfg 0($0)", "r13"),
        ("ldtilecfg (,$0,1)", "r15"),
        ("leaq -640($0), $0\n ldtilecfg 640($0)", "r10"),
        (RIP_RELATIVE, "rax"),
    ],
)
def check_addresses_of_configurations(tiles, line, register):
    """With and without base and index, and relative to the instruction pointer."""
    load_here = assembly(line, register)

    @numba.njit
    def read(address, out):
        load_here(address, 0)
        store_config(out)
        release()

    out = np.zeros(64, np.uint8)
    read(FULL.ctypes.data, out)
    np.testing.assert_array_equal(out, FULL)


def death(action: Callable[[], Any]) -> int:
    """The signal that ends a child process that runs `action`; 0 if it exits."""
    import resource  # POSIX only, as is os.fork

    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        action()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def check_invalid_instructions(tiles):
    """Undefined instructions, and tiles with no size or a wrong one, raise SIGILL."""
    a, c = np.zeros((16, 32), np.uint16), np.zeros((16, 16), np.float32)
    ud2 = assembly("ud2")
    undefined = numba.njit(lambda: ud2(0, 0))
    wrong = FULL.copy()
    wrong[48 + 6] = 15
    bf16_product(FULL, a, a, c)
    assert death(undefined) == signal.SIGILL
    assert death(lambda: bf16_product(0 * FULL, a, a, c)) == signal.SIGILL
    assert death(lambda: bf16_product(wrong, a, a, c)) == signal.SIGILL
    assert death(lambda: bf16_product(FULL, a, a, c)) == 0


# ---- the ladder -----------------------------------------------------------------------------


def check_the_ladders_step(tiles, monkeypatch):
    """`amx_tiles` of bench/ladder.py computes the product of bfloat16; tiles end beyond M and K."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import ladder

    from minigpt.kernels.layout import bf16_to_f32, unpack_panels

    monkeypatch.setattr(ladder, "AMX", True)
    problem = ladder.Problem(33, 70, 70)
    step = next(step for step in ladder.MANY_ROWS if step.kernel is ladder.amx_tiles)
    (run,) = ladder.runs([step], problem, {})
    run.call()
    K, N = problem.K, problem.N
    x = bf16_to_f32(problem.x_bf16).reshape(len(problem.x) // K, -1)[:33, :K]
    w = bf16_to_f32(unpack_panels(problem.w["bf16"], K, N))
    expected = x.astype(np.float64) @ w
    y = problem.y.reshape(-1, N)[:33]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
