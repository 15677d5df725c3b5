"""Vectors: lanes, partial loads, the checks that NUMBA_BOUNDSCHECK asks for, masked processors."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from minigpt.kernels import layout, reference
from minigpt.kernels.jit import entry
from minigpt.kernels.layout import (
    CACHE_LINE,
    LANES,
    aligned_zeros,
    panels_size,
    thread_scratch,
    unpack_panels,
)
from minigpt.kernels.simd import (
    array_at,
    fma,
    get,
    lane_ids,
    load,
    load_first,
    power_of_two,
    reduce_max,
    reduce_sum,
    select_less,
    splat,
    store,
    store_first,
    transpose_16x16,
    transpose_16x16_to_panel,
    vabs,
    vmax,
    vmin,
    vround,
)

ROOT = Path(__file__).resolve().parents[3]


@entry
def arithmetic(a, b, out):
    x, y = load(a, 0), load(b, 0)
    store(x + y, out, 0)
    store(x - y, out, 16)
    store(x * y, out, 32)
    store(x / y, out, 48)
    store(fma(x, y, x), out, 64)
    store(vmax(x, y), out, 80)
    store(vmin(x, y), out, 96)
    store(vabs(x), out, 112)
    store(vround(x), out, 128)
    store(select_less(x, y, splat(np.float32(1)), lane_ids()), out, 144)
    store(power_of_two(lane_ids() - splat(np.float32(8))), out, 160)


def test_each_operation_in_each_lane(rng):
    a, b = rng.standard_normal((2, 16)).astype(np.float32)
    out = np.empty(176, np.float32)
    arithmetic(a, b, out)
    lanes = np.arange(16, dtype=np.float32)
    expected = [
        a + b, a - b, a * b, a / b, (a.astype(np.float64) * b + a).astype(np.float32),
        np.maximum(a, b), np.minimum(a, b), np.abs(a), np.rint(a),
        np.where(a < b, np.float32(1), lanes), 2.0 ** (lanes - 8),
    ]  # fmt: skip
    np.testing.assert_allclose(out.reshape(-1, 16), expected, rtol=2e-7)


@entry
def reductions(a):
    return reduce_sum(load(a, 0)), reduce_max(load(a, 0))


def test_reductions_have_one_order(rng):
    a = rng.standard_normal(16).astype(np.float32)
    total = a
    while total.size > 1:
        total = total[: total.size // 2] + total[total.size // 2 :]
    assert reductions(a) == (total[0], a.max())


@entry
def copy_first(a, b, count):
    store_first(load_first(a, 0, count), b, 0, count)
    return reduce_sum(load_first(a, 0, count))


@pytest.mark.parametrize("count", range(17))
def test_partial_loads_and_stores_touch_nothing_else(count):
    a, b = np.arange(1, 17, dtype=np.float32), np.zeros(16, np.float32)
    assert copy_first(a, b, count) == a[:count].sum()
    np.testing.assert_array_equal(b, np.where(np.arange(16) < count, a, 0))


@entry
def bf16_to_f32(halves, out):
    store(load(halves, 0), out, 0)
    store_first(load_first(halves, 0, 5), out, 16, 16)
    out[32] = get(halves, 3)


def test_uint16_is_read_as_bfloat16(rng):
    wide = rng.standard_normal(16).astype(np.float32)
    halves = (wide.view(np.uint32) >> 16).astype(np.uint16)
    exact = (halves.astype(np.uint32) << 16).view(np.float32)
    out = np.empty(33, np.float32)
    bf16_to_f32(halves, out)
    np.testing.assert_array_equal(out[:16], exact)
    np.testing.assert_array_equal(out[16:32], np.where(np.arange(16) < 5, exact, 0))
    assert out[32] == exact[3]


@entry
def sum_at(address, size, like):
    total = 0.0
    for value in array_at(address, size, like):
        total += value
    return total


@entry
def turned(x, y, panel):
    transpose_16x16(x, 3, 21, y, 2, 18)
    transpose_16x16_to_panel(x, 3, 21, panel, LANES * LANES)


@pytest.mark.parametrize("to", [np.float32, np.uint16])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_a_square_is_turned(rng, dtype, to):
    """Of rows 21 apart from element 3 on, to rows 18 apart, and to rows 16 … 31 of a panel."""
    x = rng.standard_normal((16, 21)).astype(np.float32)
    held = x if dtype == np.float32 else reference.bfloat16(x)
    flat = np.concatenate([np.zeros(3, dtype), held.ravel()])
    y, panel = np.full(2 + 16 * 18, 7, to), np.full(panels_size(32, 16), 7, to)
    turned(flat, y, panel)
    expected = held[:, :16].T
    if to != dtype:
        wide = x if dtype == np.float32 else layout.bf16_to_f32(held)
        expected = wide[:, :16].T if to == np.float32 else reference.bfloat16(x[:, :16].T)
    rows = y[2:].reshape(16, 18)
    np.testing.assert_array_equal(rows[:, :16], expected)
    assert (y[:2] == 7).all()
    assert (rows[:, 16:] == 7).all()
    written = unpack_panels(panel, 32, 16)
    np.testing.assert_array_equal(written[16:], expected)
    assert (written[:16] == 7).all()


def test_memory_begins_with_a_cache_line():
    for size, kind in ((1, np.float32), (100, np.uint16), (7, np.int8), (1 << 20, np.float32)):
        array = aligned_zeros(size, kind)
        assert (array.size, array.dtype, array.any()) == (size, kind, False)
        assert array.ctypes.data % CACHE_LINE == 0
    rows = thread_scratch(3, 17)
    assert rows.shape == (3, 32)
    assert all(row.ctypes.data % CACHE_LINE == 0 for row in rows)


def test_an_address_is_an_array(rng):
    a = rng.standard_normal(10).astype(np.float32)
    total = sum_at(np.uint64(a.ctypes.data), a.size, np.empty(0, np.float32))
    assert total == pytest.approx(a.sum(dtype=np.float64))


def in_a_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python in the checkout, with no cache of compiled kernels."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "MINIGPT_CACHE": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_vector_that_reaches_outside_is_caught_when_bounds_are_checked():
    code = (
        "import numpy as np\n"
        "from minigpt.kernels.jit import entry\n"
        "from minigpt.kernels.simd import load, reduce_sum\n"
        "@entry\n"
        "def f(a, i): return reduce_sum(load(a, i))\n"
        "a = np.ones(20, np.float32)\n"
        "assert f(a, 4) == 16\n"
        "for i in (-1, 5):\n"
        "    try: f(a, i)\n"
        "    except IndexError: print('caught')\n"
    )
    result = in_a_process("-c", code, NUMBA_BOUNDSCHECK="1")
    assert result.stdout == "caught\ncaught\n", result.stderr


KERNEL_TESTS = [
    f"tests/kernels/{name}.py"
    for name in (
        "test_matmul", "test_attention", "gemm/test_quantized", "gemm/test_quantize",
        "test_layernorm", "test_embedding", "test_activation", "gemm/test_packing",
        "test_memory_read", "test_crossentropy", "test_adamw",
    )
]  # fmt: skip
MODEL_TESTS = ["tests/minigpt/model/test_engine.py", "tests/minigpt/model/test_learner.py"]
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not threads"]


def test_all_kernels_stay_inside_their_arrays():
    result = in_a_process(*PYTEST, *KERNEL_TESTS, NUMBA_BOUNDSCHECK="1")
    assert result.returncode == 0, result.stdout[-2000:]


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="names processors of x86"
)
@pytest.mark.parametrize(
    ("name", "features"),
    [("haswell", "+sse2,+avx,+avx2,+fma"), ("x86-64", "+sse2")],
    ids=["AVX2 and no more", "no AVX at all"],
)
def test_kernels_on_lesser_processors(name, features):
    """As compiled for an older processor, which this one can run."""
    result = in_a_process(*PYTEST, *KERNEL_TESTS, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    assert result.returncode == 0, result.stdout[-2000:]


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="see amx.py")
def test_kernels_with_amx():
    """As compiled for a processor with AMX, emulated where this one has none (see amx.py)."""
    program = (
        "import sys, amx_emulator, pytest\n"
        "emulated = amx_emulator.install()\n"
        "failed = pytest.main(sys.argv[1:])\n"
        "sys.exit(failed or (emulated and not amx_emulator.count()))"
    )
    tests = [*KERNEL_TESTS[:3], *MODEL_TESTS]
    result = in_a_process(
        # faulthandler would put itself in the emulator's place
        *["-c", program, "-q", "-p", "no:faulthandler", "-p", "no:cacheprovider"],
        *["-k", "not threads and not curve and (bf16 or uint16 or int8 or int4)", *tests],
        NUMBA_CPU_FEATURES=llvm.get_host_cpu_features().flatten()
        + ",+amx-tile,+amx-bf16,+amx-int8",
        PYTHONPATH=str(Path(__file__).parent),
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
