"""From three nested loops to the kernels of this package, one step at a time: docs/kernels.md.

    python bench/ladder.py [--threads 2] [--rounds 5] [--json] [--chart docs/kernels.svg]

Each step is a kernel that runs. There are two ladders: many rows, y[M, N] = x[M, K] · w[K, N],
bound by arithmetic; and one row times a large w, bound by memory. In each round every step runs
once. Its fastest round counts, because disturbances only make a measurement slower. A chart needs
matplotlib.

Arrays are 1-D. N is a multiple of N_BLOCK, and x and y are padded to a multiple of every tile's
rows, so that the loops of a step need no special case at the end; those of minigpt.kernels do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from chart import STYLE
from machine import machine

from minigpt.kernels import reference
from minigpt.kernels.activation import GELU, activate
from minigpt.kernels.gemm.quantized import QuantizedMatrix, make_quantized_activations
from minigpt.kernels.jit import I64_1, entry, jit
from minigpt.kernels.layout import (
    LANES,
    N_BLOCK,
    aligned_zeros,
    f32_to_bf16,
    padded,
    thread_scratch,
)
from minigpt.kernels.matmul import (
    MATMUL_SCRATCH,
    NO_ACTIVATION,
    SET,
    PackedLinear,
    linear,
    matmul_forward,
)
from minigpt.kernels.memory_read import CHUNK, read_forward
from minigpt.kernels.simd import (
    AMX,
    TILE_ROWS,
    TILE_VECTORS,
    fma,
    get,
    load,
    microkernel,
    splat,
    store,
)
from minigpt.kernels.simd.amx import (
    AMX_K,
    AMX_ROWS,
    _amx_load_a,
    _amx_load_b,
    _amx_multiply,
    _amx_store_c,
    _amx_zero,
    amx_configure_tiles,
    amx_release_tiles,
)
from minigpt.kernels.team import Team, barrier, next_task
from minigpt.kernels.view import View

PROMPT = 512, 768, 3072  # M, K, N: a prompt through the first matrix of the MLP, in the 111M model
TOKEN = 1, 768, 50304  # a token through the head: 155 MB, more than any cache holds
ROW_UNIT = 96  # a multiple of every tile's rows
ROWS = 192  # rows of a task
K_BLOCK = 384  # rows of a panel that fit into an L1 cache of 32 KiB
ZERO, ONE = np.float32([0, 1])  # in compiled code a Python 0.0 would be float64
MAX_THREADS = 64
SLOW = 0.5  # seconds: a step that takes longer is measured once
PAUSE = 0.02  # seconds between measurements
REGISTERS, READ = "multiply-adds on registers", "a plain read"
GREY, BLUE, DARK = "#a9b1bb", "#2563a8", "#123a66"


# ---- many rows ------------------------------------------------------------------------------


@entry
def three_loops(y, x, w, M, K, N):
    for m in range(M):
        for n in range(N):
            total = ZERO
            for k in range(K):
                total += x[m * K + k] * w[k * N + n]
            y[m * N + n] = total


@entry
def along_rows(y, x, w, M, K, N):
    y[:] = 0
    for m in range(M):
        for k in range(K):
            x_mk = x[m * K + k]
            for n in range(N):
                y[m * N + n] += x_mk * w[k * N + n]


@entry
def one_vector(y, x, w, M, K, N):
    for n in range(0, N, LANES):
        for m in range(M):
            total = splat(ZERO)
            for k in range(K):
                total = fma(splat(get(x, m * K + k)), load(w, k * N + n), total)
            store(total, y, m * N + n)


@entry
def four_vectors(y, x, w, M, K, N):
    for n in range(0, N, 4 * LANES):
        for m in range(M):
            s0 = s1 = s2 = s3 = splat(ZERO)
            for k in range(K):
                x_mk, i = splat(get(x, m * K + k)), k * N + n
                s0 = fma(x_mk, load(w, i), s0)
                s1 = fma(x_mk, load(w, i + LANES), s1)
                s2 = fma(x_mk, load(w, i + 2 * LANES), s2)
                s3 = fma(x_mk, load(w, i + 3 * LANES), s3)
            for v, total in enumerate((s0, s1, s2, s3)):
                store(total, y, m * N + n + v * LANES)


@entry
def six_rows(y, x, w, M, K, N):
    for n in range(0, N, LANES):
        for m in range(0, M, 6):
            s0 = s1 = s2 = s3 = s4 = s5 = splat(ZERO)
            for k in range(K):
                row, i = load(w, k * N + n), m * K + k
                s0 = fma(splat(get(x, i)), row, s0)
                s1 = fma(splat(get(x, i + K)), row, s1)
                s2 = fma(splat(get(x, i + 2 * K)), row, s2)
                s3 = fma(splat(get(x, i + 3 * K)), row, s3)
                s4 = fma(splat(get(x, i + 4 * K)), row, s4)
                s5 = fma(splat(get(x, i + 5 * K)), row, s5)
            for r, total in enumerate((s0, s1, s2, s3, s4, s5)):
                store(total, y, (m + r) * N + n)


tile = microkernel(TILE_ROWS, TILE_VECTORS, prefetch_next=False)
WIDTH = TILE_VECTORS * LANES


@entry
def panels(y, x, w, M, K, N):
    y[:] = 0
    depth = padded(K)
    for n in range(0, N, WIDTH):
        for m in range(0, M, TILE_ROWS):
            tile(y, m * N + n, N, x, m * K, K, w, n * depth, depth * LANES, K)


@entry
def k_blocks(y, x, w, M, K, N):
    y[:] = 0
    depth = padded(K)
    for n in range(0, N, WIDTH):
        for k in range(0, K, K_BLOCK):
            terms, block = min(K_BLOCK, K - k), n * depth + k * LANES
            for m in range(0, M, TILE_ROWS):
                tile(y, m * N + n, N, x, m * K + k, K, w, block, depth * LANES, terms)


@jit
def one_task(y, x, w, first, rows, n, K, N):
    for m in range(first, first + rows):
        y[m * N + n : m * N + n + N_BLOCK] = 0
    depth = padded(K)
    for k in range(0, K, K_BLOCK):
        for p in range(n, n + N_BLOCK, WIDTH):
            terms, block = min(K_BLOCK, K - k), p * depth + k * LANES
            for m in range(first, first + rows, TILE_ROWS):
                tile(y, m * N + p, N, x, m * K + k, K, w, block, depth * LANES, terms)


@entry
def chunks(y, x, w, M, K, N):
    for first in range(0, M, ROWS):
        for n in range(0, N, N_BLOCK):
            one_task(y, x, w, first, min(ROWS, M - first), n, K, N)


@entry
def dynamic_tasks(team, y, x, w, M, K, N):
    column_blocks = N // N_BLOCK
    tasks = column_blocks * ((M + ROWS - 1) // ROWS)
    task = next_task(team)
    while task < tasks:
        first, n = task // column_blocks * ROWS, task % column_blocks * N_BLOCK
        one_task(y, x, w, first, min(ROWS, M - first), n, K, N)
        task = next_task(team)
    barrier(team)


@entry
def many_rows(team, y, x, w, M, K, N):
    matmul_forward(
        team, View(y, M, N, N), View(x, M, K, K), w, y[:0], SET, NO_ACTIVATION, ONE
    )  # fmt: skip


@entry
def amx_tiles(y, x, w, M, K, N):
    amx_configure_tiles()
    depth = padded(K)  # of rows of x, too: both are bfloat16
    for n in range(0, N, 2 * LANES):
        for m in range(0, M, 2 * AMX_ROWS):
            _amx_zero(0)
            _amx_zero(1)
            _amx_zero(2)
            _amx_zero(3)
            for k in range(0, depth, AMX_K):
                _amx_load_a(0, x, m * depth + k, depth)
                _amx_load_a(1, x, (m + AMX_ROWS) * depth + k, depth)
                _amx_load_b(0, w, n * depth + k * LANES, AMX_K)
                _amx_load_b(1, w, (n + LANES) * depth + k * LANES, AMX_K)
                _amx_multiply(0, 0)
                _amx_multiply(0, 1)
                _amx_multiply(1, 0)
                _amx_multiply(1, 1)
            _amx_store_c(0, y, m * N + n, N)
            _amx_store_c(1, y, m * N + n + LANES, N)
            _amx_store_c(2, y, (m + AMX_ROWS) * N + n, N)
            _amx_store_c(3, y, (m + AMX_ROWS) * N + n + LANES, N)
    amx_release_tiles()


@entry
def quantized_weights(team, y, x, w, buffer, M, K, N):
    linear(team, View(y, M, N, N), View(x, M, K, K), PackedLinear(w, y[:0], K, N), SET, buffer)


# ---- bias and activation --------------------------------------------------------------------


@entry
def two_passes(team, y, x, w, bias, M, K, N):
    matmul_forward(
        team, View(y, M, N, N), View(x, M, K, K), w, bias[:0], SET, NO_ACTIVATION, ONE
    )  # fmt: skip
    m = next_task(team)
    while m < M:
        for n in range(0, N, LANES):
            value = load(y, m * N + n) + load(bias, n)
            store(activate(value, GELU), y, m * N + n)
        m = next_task(team)
    barrier(team)


@entry
def one_pass(team, y, x, w, bias, M, K, N):
    matmul_forward(team, View(y, M, N, N), View(x, M, K, K), w, bias, SET, GELU, ONE)


# ---- one row --------------------------------------------------------------------------------


@entry
def down_columns(y, x, w, K, N):
    for n in range(0, N, LANES):
        total = splat(ZERO)
        for k in range(K):
            total = fma(splat(get(x, k)), load(w, k * N + n), total)
        store(total, y, n)


@entry
def row_by_row(y, x, w, K, N):
    y[:] = 0
    for k in range(K):
        x_k = splat(get(x, k))
        for n in range(0, N, LANES):
            store(fma(x_k, load(w, k * N + n), load(y, n)), y, n)


@entry
def one_panel(y, x, w, K, N):
    depth = padded(K)
    for n in range(0, N, LANES):
        total = splat(ZERO)
        for k in range(K):
            total = fma(splat(get(x, k)), load(w, n * depth + k * LANES), total)
        store(total, y, n)


@entry
def four_panels(y, x, w, K, N):
    depth = padded(K)
    for n in range(0, N, 4 * LANES):
        s0 = s1 = s2 = s3 = splat(ZERO)
        for k in range(K):
            x_k, i = splat(get(x, k)), n * depth + k * LANES
            s0 = fma(x_k, load(w, i), s0)
            s1 = fma(x_k, load(w, i + depth * LANES), s1)
            s2 = fma(x_k, load(w, i + 2 * depth * LANES), s2)
            s3 = fma(x_k, load(w, i + 3 * depth * LANES), s3)
        for v, total in enumerate((s0, s1, s2, s3)):
            store(total, y, n + v * LANES)


@entry
def one_row(team, y, x, w, K, N):
    matmul_forward(
        team, View(y, I64_1, N, N), View(x, I64_1, K, K), w, y[:0], SET, NO_ACTIVATION, ONE
    )  # fmt: skip


# ---- the limits -----------------------------------------------------------------------------


@entry
def registers_only(team, start, turns):
    """Multiply-adds of eight vectors in registers, in all threads: no memory access."""
    s0, s1, s2, s3 = load(start, 0), load(start, 16), load(start, 32), load(start, 48)
    s4, s5, s6, s7 = load(start, 64), load(start, 80), load(start, 96), load(start, 112)
    for _ in range(turns):
        s0, s1, s2, s3 = fma(s0, s0, s0), fma(s1, s1, s1), fma(s2, s2, s2), fma(s3, s3, s3)
        s4, s5, s6, s7 = fma(s4, s4, s4), fma(s5, s5, s5), fma(s6, s6, s6), fma(s7, s7, s7)
    store(((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)), team.scratch, 0)
    barrier(team)


# ---- the ladders ----------------------------------------------------------------------------


class Step(NamedTuple):
    """A step of a ladder.

    w     the layout of w that the kernel takes: `rows`, `panels`, `bf16` panels, `int8` or `int4`
    team  whether a team of threads runs the kernel
    """

    name: str
    kernel: Any
    w: str
    team: bool = False


MANY_ROWS = [
    Step("three loops", three_loops, "rows"),
    Step("along the rows", along_rows, "rows"),
    Step("one vector", one_vector, "rows"),
    Step("four vectors", four_vectors, "rows"),
    Step("six rows", six_rows, "rows"),
    Step("panels", panels, "panels"),
    Step("blocks of K", k_blocks, "panels"),
    Step("chunks of M", chunks, "panels"),
    Step("dynamic tasks", dynamic_tasks, "panels", team=True),
    Step("the kernel", many_rows, "panels", team=True),
    Step("the kernel, bf16", many_rows, "bf16", team=True),
    Step("the kernel, int8", quantized_weights, "int8", team=True),
    Step("the kernel, int4", quantized_weights, "int4", team=True),
    Step("tiles of AMX", amx_tiles, "bf16"),
    Step("and GELU, two passes", two_passes, "panels", team=True),
    Step("and GELU, one pass", one_pass, "panels", team=True),
]
ONE_ROW = [
    Step("down the columns", down_columns, "rows"),
    Step("row by row", row_by_row, "rows"),
    Step("one panel", one_panel, "panels"),
    Step("four panels", four_panels, "panels"),
    Step("the kernel", one_row, "panels", team=True),
    Step("the kernel, bf16", one_row, "bf16", team=True),
    Step("the kernel, int8, one row", quantized_weights, "int8", team=True),
    Step("the kernel, int4, one row", quantized_weights, "int4", team=True),
]


class Problem:
    """Random x, bias and w, with w in each layout that a step takes, and a buffer for y."""

    def __init__(self, M: int, K: int, N: int) -> None:
        rng = np.random.default_rng(0)
        rows, columns = padded(M, ROW_UNIT), padded(N, N_BLOCK)
        x, w = np.zeros((rows, K), np.float32), np.zeros((K, columns), np.float32)
        x[:M] = rng.standard_normal((M, K), np.float32)
        w[:, :N] = rng.standard_normal((K, N), np.float32)
        self.M, self.K, self.N = M, K, columns
        self.x_bf16 = aligned_zeros(rows * padded(K), np.uint16)
        self.x_bf16.reshape(rows, -1)[:, :K] = f32_to_bf16(x)
        self.buffer = make_quantized_activations(max(M, MAX_THREADS), K)
        self.x, self.y = x.ravel(), np.zeros(rows * columns, np.float32)
        self.bias = rng.standard_normal(columns, np.float32)
        self.w = {
            "rows": w.ravel(),
            "panels": reference.pack_panels(w, np.float32),
            "bf16": aligned(reference.pack_panels(w, np.uint16)),
            "int8": quantized(w, "int8"),
            "int4": quantized(w, "int4"),
        }

    def arguments(self, step: Step) -> tuple[Any, ...]:
        """The arguments of the step's kernel, without the team."""
        x = self.x_bf16 if step.kernel is amx_tiles else self.x
        extra: list[Any] = [self.bias] if step.kernel in (two_passes, one_pass) else []
        if step.kernel is quantized_weights:
            extra = [self.buffer]
        M = [self.M] if step in MANY_ROWS else []
        if step in ONE_ROW and step.kernel is quantized_weights:
            M = [I64_1]
        return self.y, x, self.w[step.w], *extra, *M, self.K, self.N


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a copy that begins with a cache line, as all memory of a model does."""
    copy = aligned_zeros(array.size, array.dtype)
    copy[:] = array
    return copy


def quantized(w: np.ndarray, dtype: str) -> QuantizedMatrix:
    """Return w, [K, N], in 8 or 4 bits, as the kernels read it."""
    packed = reference.pack_quantized(*reference.quantize(w, dtype))
    return QuantizedMatrix(*map(aligned, packed))


def runs_here(step: Step) -> bool:
    """Whether the processor has the instructions of a step."""
    return AMX or step.kernel is not amx_tiles


# ---- measuring ------------------------------------------------------------------------------


class Runner:
    """A team and its scratch."""

    def __init__(self, threads: int) -> None:
        self.team = Team(threads)
        self.scratch = thread_scratch(threads, MATMUL_SCRATCH)

    def run(self, kernel: Any, *arguments: Any) -> None:
        self.team.run(kernel, self.scratch, *arguments)


class Run(NamedTuple):
    """A measurement: `work` is the number of flops or bytes of one call."""

    name: str
    threads: int
    call: Callable[[], None]
    work: float


Runners = dict[int, Runner]  # by the number of threads
Rates = dict[str, dict[int, float]]  # flops or bytes per second, by name and number of threads


def runs(steps: list[Step], problem: Problem, runners: Runners) -> list[Run]:
    """A Run of each step; one for each runner if a team runs it, else one with one thread."""
    runs = []
    for step in filter(runs_here, steps):
        arguments = problem.arguments(step)
        work = 2.0 * problem.M * problem.K * problem.N
        if step in ONE_ROW:
            work = weights_bytes(problem.w[step.w])
        if not step.team:
            runs.append(Run(step.name, 1, partial(step.kernel, *arguments), work))
            continue
        for threads, runner in runners.items():
            call = partial(runner.run, step.kernel, *arguments)
            runs.append(Run(step.name, threads, call, work))
    return runs


def weights_bytes(w: np.ndarray | QuantizedMatrix) -> float:
    """Return the bytes of all arrays of a matrix."""
    arrays = w if isinstance(w, tuple) else [w]
    return float(sum(array.nbytes for array in arrays))


def arithmetic_limit(runners: Runners) -> list[Run]:
    """A Run of multiply-adds in registers for each runner."""
    start, turns = np.zeros(8 * LANES, np.float32), 4_000_000
    work = 2.0 * start.size * turns
    return [
        Run(REGISTERS, threads, partial(runner.run, registers_only, start, turns), work * threads)
        for threads, runner in runners.items()
    ]


def memory_limit(w: np.ndarray, runners: Runners) -> list[Run]:
    """A Run of a plain read of `w` for each runner."""
    sums = np.zeros(w.size // CHUNK, np.float32)
    data = w[: sums.size * CHUNK]
    return [
        Run(READ, threads, partial(runner.run, read_forward, sums, data, np.int64(1)), data.nbytes)
        for threads, runner in runners.items()
    ]


def rates(runs: list[Run], rounds: int) -> Rates:
    """The best rate of each run, over rounds in which all runs take turns."""
    seconds = [np.inf] * len(runs)
    for _ in range(rounds):
        for i, run in enumerate(runs):
            if SLOW < seconds[i] < np.inf:
                continue
            time.sleep(PAUSE)
            start = time.perf_counter()
            run.call()
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    result: Rates = {}
    for run, best in zip(runs, seconds, strict=True):
        result.setdefault(run.name, {})[run.threads] = run.work / best
    return result


def compile_all(runners: Runners) -> None:
    """Run everything once on little data."""
    small = Problem(1, N_BLOCK, N_BLOCK)
    limits = arithmetic_limit(runners) + memory_limit(np.zeros(CHUNK, np.float32), runners)
    for run in limits + runs(MANY_ROWS + ONE_ROW, small, runners):
        run.call()


def measure(threads: int, rounds: int) -> dict[str, Any]:
    """Measure both ladders; the result can be written as JSON."""
    runners = {n: Runner(n) for n in sorted({1, threads})}
    compile_all(runners)
    problem = Problem(*PROMPT)
    many = rates(arithmetic_limit(runners) + runs(MANY_ROWS, problem, runners), rounds)
    problem = Problem(*TOKEN)
    limit = memory_limit(problem.w["panels"], runners)
    one = rates(limit + runs(ONE_ROW, problem, runners), rounds)
    return {"machine": machine(), "flops_per_s": many, "bytes_per_s": one}


# ---- output ---------------------------------------------------------------------------------


def table(title: str, ladder: Rates) -> str:
    """A table: for each step and number of threads, 10⁹ per second and the fraction of the limit.

    The first entry of `ladder` is the limit.
    """
    limit = next(iter(ladder.values()))
    lines = [title, f"{'threads':28}" + "".join(f"{n:<18}" for n in limit)]
    for name, speeds in ladder.items():
        cells = (f"{speed / 1e9:>8.1f}{speed / limit[n]:>6.2f}    " for n, speed in speeds.items())
        lines.append(f"{name:26}" + "".join(cells))
    return "\n".join(lines)


def chart(report: dict[str, Any], path: Path) -> None:
    """Write both ladders as bar charts to an SVG file."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    ladders = {
        "many rows, GFLOP/s": report["flops_per_s"],
        "one row, GB/s of weights": report["bytes_per_s"],
    }
    with mpl.rc_context(STYLE):
        heights = [sum(len(speeds) for speeds in ladder.values()) for ladder in ladders.values()]
        figure, axes = plt.subplots(
            len(ladders),
            figsize=(8, 0.21 * sum(heights) + 1),
            height_ratios=heights,
            layout="constrained",
        )
        for axis, (title, ladder) in zip(axes, ladders.items(), strict=True):
            draw(axis, ladder)
            axis.set_title(title, loc="left", fontsize=9)
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
        plt.close(figure)


def draw(axis: Any, ladder: Rates) -> None:
    """Draw a ladder: a bar for each step and number of threads; the limit, the first, in grey."""
    bars = [
        (name, n, speed / 1e9) for name, speeds in ladder.items() for n, speed in speeds.items()
    ]
    limits = len(next(iter(ladder.values())))
    colours = [GREY] * limits + [BLUE if n == 1 else DARK for _, n, _ in bars[limits:]]
    drawn = axis.barh(range(len(bars)), [speed for *_, speed in bars], color=colours, height=0.75)
    axis.bar_label(drawn, [f"{speed:.3g}" for *_, speed in bars], padding=3, fontsize=8)
    names = [name if n == 1 else f"{name}, {n} threads" for name, n, _ in bars]
    axis.set_yticks(range(len(bars)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.1 * max(speed for *_, speed in bars))
    axis.set_xticks([])
    axis.margins(y=0.01)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="of a team (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="the fastest counts (default 5)")
    parser.add_argument("--json", action="store_true", help="print the figures as one object")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="also draw them, as SVG")
    options = parser.parse_args()
    report = measure(options.threads, options.rounds)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(table("many rows, GFLOP/s and part of the limit", report["flops_per_s"]))
        print()
        print(table("one row, GB/s and part of the limit", report["bytes_per_s"]))
    if options.chart:
        chart(report, options.chart)


if __name__ == "__main__":
    main()
