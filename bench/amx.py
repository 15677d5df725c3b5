"""The peak of AMX, and the cost of tiles that do not begin with a cache line.

    python bench/amx.py

One thread, bfloat16: first the multiplications alone; then with the loads of four tiles from L1 for
each four multiplications, aligned to cache lines, and 16 bytes off. Needs a processor with AMX.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from minigpt.kernels.jit import entry
from minigpt.kernels.layout import CACHE_LINE, aligned_zeros
from minigpt.kernels.simd import AMX
from minigpt.kernels.simd.amx import (
    AMX_K,
    AMX_ROWS,
    _amx_load_a,
    _amx_load_b,
    _amx_multiply,
    amx_configure_tiles,
    amx_release_tiles,
)

K, ROUNDS = 256, 40_000
FLOPS = 4 * 2 * AMX_ROWS * AMX_ROWS * AMX_K  # of four multiplications
MISALIGNED = 16 // 2  # bfloat16 in 16 bytes, the alignment of NumPy's own arrays


@entry
def multiply_only(a, b, start):
    """Multiply the tiles that are in registers."""
    amx_configure_tiles()
    for _ in range(ROUNDS * K // AMX_K):
        _amx_multiply(0, 0)
        _amx_multiply(0, 1)
        _amx_multiply(1, 0)
        _amx_multiply(1, 1)
    amx_release_tiles()


@entry
def load_and_multiply(a, b, start):
    """Multiply 32 rows of `a`, K + AMX_K apart, by two panels; all of it at most 48 KiB."""
    amx_configure_tiles()
    for _ in range(ROUNDS):
        for k in range(0, K, AMX_K):
            _amx_load_b(0, b, start + k * AMX_ROWS, AMX_K)
            _amx_load_a(0, a, start + k, K + AMX_K)
            _amx_load_b(1, b, start + (K + k) * AMX_ROWS, AMX_K)
            _amx_multiply(0, 0)
            _amx_load_a(1, a, start + AMX_ROWS * (K + AMX_K) + k, K + AMX_K)
            _amx_multiply(0, 1)
            _amx_multiply(1, 0)
            _amx_multiply(1, 1)
    amx_release_tiles()


def flops_per_s(kernel: Callable[..., Any], start: int) -> float:
    """The best rate of five runs."""
    extra = CACHE_LINE // 2
    a = aligned_zeros(2 * AMX_ROWS * (K + AMX_K) + extra, np.uint16)
    b = aligned_zeros(2 * AMX_ROWS * K + extra, np.uint16)
    kernel(a, b, np.int64(start))
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        kernel(a, b, np.int64(start))
        times.append(time.perf_counter() - begin)
    return ROUNDS * K // AMX_K * FLOPS / min(times)


def main() -> None:
    if not AMX:
        sys.exit("bench/amx.py: this processor has no AMX, or the system does not permit it")
    for what, kernel, start in (
        ("multiplications alone", multiply_only, 0),
        ("with aligned loads of tiles", load_and_multiply, 0),
        ("with loads 16 bytes off", load_and_multiply, MISALIGNED),
    ):
        print(f"{what:36}{flops_per_s(kernel, start) / 1e9:8.0f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
