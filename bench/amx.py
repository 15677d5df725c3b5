"""What AMX can do, and what it costs when its tiles do not begin with a cache line.

    python bench/amx.py

One thread, bfloat16: the instruction that multiplies alone, then with the four tiles that each four
products need, read from L1, from where a cache line begins and from 16 bytes further on. Needs a
processor with AMX.
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
FLOPS = 4 * 2 * AMX_ROWS * AMX_ROWS * AMX_K  # of the four products of a step
SHIFT = 16 // 2  # bfloat16 in 16 bytes, which is how NumPy's own arrays lie


@entry
def products_alone(a, b, start):
    amx_configure_tiles()
    for _ in range(ROUNDS * K // AMX_K):
        _amx_multiply(0, 0)
        _amx_multiply(0, 1)
        _amx_multiply(1, 0)
        _amx_multiply(1, 1)
    amx_release_tiles()


@entry
def products_of_tiles(a, b, start):
    """32 rows of `a`, K apart, times two panels: all of it 48 KiB or less."""
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
    """The best of a few."""
    room = CACHE_LINE // 2
    a = aligned_zeros(2 * AMX_ROWS * (K + AMX_K) + room, np.uint16)
    b = aligned_zeros(2 * AMX_ROWS * K + room, np.uint16)
    kernel(a, b, np.int64(start))
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        kernel(a, b, np.int64(start))
        times.append(time.perf_counter() - begin)
    return ROUNDS * K // AMX_K * FLOPS / min(times)


def main() -> None:
    if not AMX:
        sys.exit("this processor has no AMX, or the system does not give it")
    for what, kernel, start in (
        ("products alone", products_alone, 0),
        ("with tiles that begin with a line", products_of_tiles, 0),
        ("with tiles 16 bytes off", products_of_tiles, SHIFT),
    ):
        print(f"{what:36}{flops_per_s(kernel, start) / 1e9:8.0f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
