"""The matmul kernels against their limits: NumPy's OpenBLAS, and a plain read of memory.

    python bench/kernels.py [--threads 2] [--pairs 9]

needs minigpt and, to give NumPy the same number of threads, threadpoolctl. Ours and theirs take
turns and the medians, and the median of the ratios of the pairs, are printed. Between the two the
program sleeps: OpenBLAS' threads spin for a while after their work, and would be in our way.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from minigpt.kernels.jit import entry
from minigpt.kernels.matmul import (
    MATMUL_SCRATCH,
    NO_ACTIVATION,
    SET,
    matmul_forward,
    matmul_transposed_forward,
)
from minigpt.kernels.simd import load, splat, vsum
from minigpt.kernels.team import Team, barrier, claim

PAUSE = 0.1
Calls = tuple[Callable[[], Any], Callable[[], Any]]  # ours, theirs
# (rows, K, N) of Cerebras-GPT's layers: c_attn, c_proj, c_fc and c_proj of the MLP, and some rows
SHAPES = [
    (512, 768, 3072),
    (512, 768, 2304),
    (512, 768, 768),
    (512, 3072, 768),
    (64, 768, 3072),
    (2048, 768, 3072),
    (512, 1088, 4352),
    (512, 2048, 8192),
]
HEADS = [(512, 768, 50257), (64, 768, 50257)]
READ_BYTES = 1 << 28
READ_BLOCK = 1 << 15


@entry
def matmul(team, y, x, w, bias, M, K, N):
    matmul_forward(team, y, x, w, bias, M, K, N, SET, NO_ACTIVATION)


@entry
def transposed(team, y, x, w, M, K, N):
    matmul_transposed_forward(team, y, x, w, M, K, N, np.float32(1))


@entry
def matmul_each(team, y, x, memory, bias, K, N):
    """One row times each of the matrices that lie in memory one behind the other."""
    for i in range(memory.size // (K * N)):
        w = memory[i * K * N : (i + 1) * K * N]
        matmul_forward(team, y, x, w, bias, 1, K, N, SET, NO_ACTIVATION)


@entry
def read(team, x, sums):
    """Every element of x, and nothing else: the most that any kernel can read."""
    block = claim(team)
    while block < sums.size:
        a = b = c = d = splat(np.float32(0))
        for i in range(block * READ_BLOCK, (block + 1) * READ_BLOCK, 64):
            a, b = a + load(x, i), b + load(x, i + 16)
            c, d = c + load(x, i + 32), d + load(x, i + 48)
        sums[block] = vsum(a + b + c + d)
        block = claim(team)
    barrier(team)


def seconds(call: Callable[[], Any], repetitions: int = 1) -> float:
    """The time of one call, the shortest of a few."""
    time.sleep(PAUSE)
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def pairs(ours: Callable[[], Any], theirs: Callable[[], Any], count: int) -> list[tuple]:
    """(our seconds, their seconds), in turns."""
    seconds(ours), seconds(theirs)
    return [(seconds(ours, 3), seconds(theirs, 3)) for _ in range(count)]


class Bench:
    """A team, its working memory, and random numbers to work on."""

    def __init__(self, threads: int) -> None:
        self.team = Team(threads)
        self.scratch = np.zeros((threads, MATMUL_SCRATCH), np.float32)
        self.rng = np.random.default_rng(0)
        self.memory = self.random(READ_BYTES // 4)
        self.sums = np.zeros(self.memory.size // READ_BLOCK, np.float32)

    def random(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32)

    def run(self, kernel: Any, *arguments: Any) -> None:
        self.team.run(kernel, self.scratch, *arguments)

    def read_all(self) -> None:
        self.run(read, self.memory, self.sums)

    def many_rows(self, M: int, K: int, N: int) -> tuple[Calls, str]:
        """y = x · w, and NumPy's."""
        x, w, bias, y = self.random(M, K), self.random(K, N), self.random(N), self.random(M, N)
        flat = y.reshape(-1), x.reshape(-1), w.reshape(-1)
        ours = partial(self.run, matmul, *flat, bias, M, K, N)
        return (ours, partial(np.matmul, x, w, out=y)), ""

    def many_rows_transposed(self, M: int, K: int, N: int) -> tuple[Calls, str]:
        """y = x · wᵀ, and NumPy's."""
        x, w, y = self.random(M, K), self.random(N, K), self.random(M, N)
        flat = y.reshape(-1), x.reshape(-1), w.reshape(-1)
        ours = partial(self.run, transposed, *flat, M, K, N)
        return (ours, partial(np.matmul, x, w.T, out=y)), "  (transposed)"

    def one_row(self, K: int, N: int) -> Callable[[], None]:
        """One row times every matrix that fits in the memory."""
        x, bias, y = self.random(K), self.random(N), self.random(N)
        return partial(self.run, matmul_each, y, x, self.memory, bias, K, N)

    def one_row_transposed(self, K: int, N: int) -> Callable[[], None]:
        """One row times the transposed matrix at the memory's begin."""
        x, y = self.random(K), self.random(N)
        return partial(self.run, transposed, y, x, self.memory[: K * N], 1, K, N)


def arithmetic(bench: Bench, count: int) -> None:
    """The table of many rows: GFLOP/s."""
    blas = next(info for info in threadpool_info() if info["user_api"] == "blas")
    print(f"NumPy {np.__version__}, {blas['internal_api']} for {blas.get('architecture')}")
    print(f"{'M':>6}{'K':>6}{'N':>7}{'ours':>8}{'NumPy':>8}  GFLOP/s, ratio")
    cases = [(bench.many_rows, shape) for shape in SHAPES]
    for make, (M, K, N) in cases + [(bench.many_rows_transposed, shape) for shape in HEADS]:
        calls, kind = make(M, K, N)
        times = pairs(*calls, count)
        ours, theirs = (2e-9 * M * K * N / statistics.median(t) for t in zip(*times, strict=True))
        ratio = statistics.median(b / a for a, b in times)
        print(f"{M:>6}{K:>6}{N:>7}{ours:>8.0f}{theirs:>8.0f}  {ratio:.2f}{kind}")


def memory(bench: Bench, count: int) -> None:
    """The table of one row: GB/s of weights, against a plain read."""
    print(f"\n{'':>6}{'K':>6}{'N':>7}{'ours':>8}{'read':>8}  GB/s, ratio")
    total = bench.memory.nbytes
    cases = [(bench.one_row(K, N), K, N, total // (4 * K * N), "") for _, K, N in SHAPES[:4]]
    _, K, N = HEADS[0]
    cases.append((bench.one_row_transposed(K, N), K, N, 1, "  (transposed)"))
    for call, K, N, copies, kind in cases:
        size = 4 * K * N * copies
        times = pairs(call, bench.read_all, count)
        ours, plain = (statistics.median(t) for t in zip(*times, strict=True))
        ratio = statistics.median(size / a * b / total for a, b in times)
        speeds = f"{size / ours / 1e9:>8.1f}{total / plain / 1e9:>8.1f}"
        print(f"{'':>6}{K:>6}{N:>7}{speeds}  {ratio:.2f}{kind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    bench = Bench(options.threads)
    with threadpool_limits(options.threads):
        arithmetic(bench, options.pairs)
    memory(bench, options.pairs)


if __name__ == "__main__":
    main()
