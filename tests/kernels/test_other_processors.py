"""The kernel tests again: with bounds checks, compiled for older processors, and with AMX.

Each test starts a process that selects tests by marker (pyproject.toml) and compiles all their
kernels. The process first asserts that it runs with these settings. It must pass at least as many
tests as when the numbers below were written, so that a lost marker is noticed.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

pytestmark = pytest.mark.slow

KERNEL_TESTS, AMX_TESTS = 375, 125
QUIET = ["-q", "-p", "no:cacheprovider"]
KERNELS = ["-m", "kernel and not threads", "tests/kernels"]

# Lets an assertion about the process, its first argument, hold before pytest runs the rest.
ASSERT_THEN_TEST = """
import sys
import pytest
from minigpt.kernels.jit import BOUNDS_CHECK
from minigpt.kernels.simd import TILE_ROWS, TILE_VECTORS
from minigpt.kernels.simd.llvm import cpu_features
assert eval(sys.argv[1]), (BOUNDS_CHECK, TILE_ROWS, TILE_VECTORS, sorted(cpu_features()))
sys.exit(pytest.main(sys.argv[2:]))
"""


def assert_passed(process: subprocess.CompletedProcess[str], count: int) -> None:
    """The process passed at least `count` tests and failed none."""
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    (passed,) = re.findall(r"(\d+) passed", process.stdout.splitlines()[-1])
    assert int(passed) >= count


def test_kernels_stay_inside_their_arrays(run_python):
    process = run_python(
        "-c", ASSERT_THEN_TEST, "BOUNDS_CHECK == 1", *QUIET, *KERNELS, NUMBA_BOUNDSCHECK="1"
    )
    assert_passed(process, KERNEL_TESTS)


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the processors are x86's"
)
@pytest.mark.parametrize(
    ("name", "features", "tile", "absent"),
    [
        ("haswell", "+sse2,+avx,+avx2,+fma", (6, 1), {"avx512f", "avx512bf16", "amx-bf16"}),
        ("x86-64", "+sse2", (2, 1), {"avx", "avx2", "fma", "avx512f", "amx-bf16"}),
    ],
    ids=["AVX2", "SSE2"],
)
def test_kernels_on_older_processors(run_python, name, features, tile, absent):
    """The features are masked, and with them this processor's larger tiles."""
    present = {feature.removeprefix("+") for feature in features.split(",")}
    masked = (
        f"{present!r} <= cpu_features() and not {absent!r} & cpu_features()"
        f" and (TILE_ROWS, TILE_VECTORS) == {tile!r}"
    )
    process = run_python(
        *["-c", ASSERT_THEN_TEST, masked, *QUIET, *KERNELS],
        NUMBA_CPU_NAME=name,
        NUMBA_CPU_FEATURES=features,
    )
    assert_passed(process, KERNEL_TESTS)


# Tests of the engine in which nothing depends on AMX: checks of arguments, and the KV cache's slots
WITHOUT_AMX = "not (unchecked or refused or capacity or fails or truncated or damaged or forks)"

# The emulator must be installed before simd/ asks whether AMX is allowed.
AMX_PROGRAM = """
import sys
import amx_emulator
import pytest
emulated = amx_emulator.install()
from minigpt.kernels.simd import AMX, AMX_INT8
assert AMX and AMX_INT8
failed = pytest.main(sys.argv[1:])
assert not emulated or amx_emulator.count(), "no AMX instruction was executed"
sys.exit(failed)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="see amx_emulator.py"
)
def test_kernels_with_amx(run_python):
    """Compiled for a processor with AMX, which is emulated if this one has none."""
    process = run_python(
        # faulthandler would replace the emulator's signal handler
        *["-c", AMX_PROGRAM, *QUIET, "-p", "no:faulthandler", "-m", "amx and not threads"],
        *["-k", WITHOUT_AMX, "tests/kernels", "tests/minigpt/model"],
        NUMBA_CPU_FEATURES=llvm.get_host_cpu_features().flatten()
        + ",+amx-tile,+amx-bf16,+amx-int8",
        PYTHONPATH=str(Path(__file__).parent / "simd"),
    )
    assert_passed(process, AMX_TESTS)
