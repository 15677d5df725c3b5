"""The kernel tests again: with bounds checks, compiled for older processors, and with AMX; and
which processors give the same bits.

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
import numpy as np
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


# ---- the bits of a whole model ----

_AVX2 = "+sse2,+ssse3,+sse4.1,+avx,+avx2,+fma,+f16c"
_AVX512 = f"{_AVX2},+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
_PROCESSORS = {  # path → NUMBA_CPU_NAME, NUMBA_CPU_FEATURES
    "AVX2": ("haswell", _AVX2),
    "AVX-512": ("skylake-avx512", _AVX512),
    "VNNI": ("cascadelake", f"{_AVX512},+avx512vnni"),
    "AVX-512 BF16": ("cooperlake", f"{_AVX512},+avx512vnni,+avx512bf16"),
}

# The bundled model's logits of forty tokens and of the first alone, by the path that is asserted.
LOGITS_PROGRAM = """
import sys
path, asserted, *dtypes = sys.argv[1:]
if asserted == "AMX":
    import amx_emulator
    amx_emulator.install()
import numpy as np
from minigpt import GPTModel
from minigpt.kernels.simd import AMX
from minigpt.kernels.simd.llvm import cpu_features
assert eval(asserted), sorted(cpu_features())
ids = np.arange(100, 140)[None]
logits = {}
for dtype in dtypes:
    model = GPTModel.from_pretrained(dtype=dtype, threads=1)
    logits[dtype], logits[f"{dtype}, first"] = model(ids).logits, model(ids[:, :1]).logits
np.savez(path, **logits)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="see amx_emulator.py"
)
def test_which_processors_give_the_same_bits(run_python, tmp_path):
    """What README says of them; paths that this processor cannot run are left out, but for AMX."""
    host = llvm.get_host_cpu_features()

    def logits(asserted: str, dtypes: list[str], **environment: str) -> dict[str, np.ndarray]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        arguments = [str(path), asserted, *dtypes]
        process = run_python("-c", LOGITS_PROGRAM, *arguments, **environment)
        assert process.returncode == 0, process.stderr[-2000:]
        with np.load(path) as stored:
            return dict(stored)

    found = {}
    for name, (cpu, features) in _PROCESSORS.items():
        wanted = {feature.removeprefix("+") for feature in features.split(",")}
        if all(host.get(feature) for feature in wanted):
            found[name] = logits(
                f"not AMX and {wanted!r} == cpu_features()",
                ["int8", "f32"] if name in ("AVX2", "AVX-512 BF16") else ["int8"],
                NUMBA_CPU_NAME=cpu,
                NUMBA_CPU_FEATURES=features,
            )
    found["AMX"] = logits(
        "AMX",
        ["int8"],
        NUMBA_CPU_FEATURES=host.flatten() + ",+amx-tile,+amx-bf16,+amx-int8",
        PYTHONPATH=str(Path(__file__).parent / "simd"),
    )
    assert len(found) > 1
    first = found["AVX2"]
    for name, other in found.items():
        # a token alone attends to itself with weight 1, which bfloat16 holds exactly
        assert np.array_equal(other["int8, first"], first["int8, first"]), name
        if name in ("AVX-512", "VNNI"):
            assert np.array_equal(other["int8"], first["int8"]), name
        if "f32" in other:
            assert np.array_equal(other["f32"], first["f32"]), name
        error = abs(other["int8"] - first["int8"]).max() / abs(first["int8"]).max()
        assert error < 0.02, name
