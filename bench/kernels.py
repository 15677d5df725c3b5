"""Each kernel against its limit and against NumPy and PyTorch, in one run.

    python bench/kernels.py [--threads 2] [--pairs 7]

It needs threadpoolctl, to limit NumPy's threads, and compares with torch where it is installed.
Ours and theirs are measured in turns. A line shows both medians and the median of the ratios; above
1 ours is faster. Between measurements the program sleeps, because the threads of other libraries
keep spinning for a while after their work.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from minigpt.kernels.attention import (
    QUERY_BLOCK,
    attention_forward,
    attention_scratch,
    partials_size,
)
from minigpt.kernels.gemm.quantized import QuantizedMatrix, make_quantized_activations
from minigpt.kernels.jit import entry
from minigpt.kernels.kv_cache import Heads, LayerCache, kv_cache_write
from minigpt.kernels.layernorm import LayerNorm, layernorm_forward
from minigpt.kernels.layout import (
    KEY_BLOCK,
    LANES,
    STORAGE_DTYPE,
    aligned_zeros,
    f32_to_bf16,
    padded,
    panels_size,
    qweight_size,
    row_stride,
    scales_size,
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
from minigpt.kernels.reference import pack_panels, pack_quantized, quantize
from minigpt.kernels.simd import BF16_PRODUCTS
from minigpt.kernels.team import Team
from minigpt.kernels.view import View

PAUSE = 0.2
Call = Callable[[], Any]
# (rows, K, N): the layers of 111M, 590M and 1.3B, and the head of 111M
SHAPES = [
    (64, 768, 3072),
    (512, 768, 2304),
    (512, 768, 768),
    (512, 768, 3072),
    (512, 3072, 768),
    (2048, 768, 3072),
    (512, 1536, 6144),
    (64, 2048, 8192),
    (512, 2048, 8192),
    (512, 8192, 2048),
    (512, 768, 50257),
]
ROWS_OF_WEIGHTS = [(768, 768), (768, 3072), (3072, 768), (2048, 8192)]
MEMORY_BYTES = 1 << 28
TYPES = {"f32": np.float32, "bf16": np.uint16}
QUANTIZED_DTYPES = ("int8", "int4")
ONE, NO_BIAS = np.float32(1), np.empty(0, np.float32)


@entry
def matmul(team, y, x, w, bias):
    matmul_forward(team, y, x, w, bias, SET, NO_ACTIVATION, ONE)


@entry
def quantized_linear(team, y, x, layer, buffer):
    linear(team, y, x, layer, SET, buffer)


@entry
def quantized_linear_each(team, y, buffer, x, memory, bias, K, N, size, scales):
    """As matmul_each for quantized matrices: `size` bytes, then `scales` bfloat16, of each."""
    step = size + 2 * scales
    for i in range(memory.size // step):
        qweight = memory[i * step : i * step + size]
        w = QuantizedMatrix(qweight, memory[i * step + size : (i + 1) * step].view(np.uint16))
        linear(team, y, x, PackedLinear(w, bias, K, N), SET, buffer)


@entry
def matmul_each(team, y, x, memory, bias, size):
    """Multiply one row by each of the matrices in `memory`, which follow each other."""
    for i in range(memory.size // size):
        w = memory[i * size : (i + 1) * size]
        matmul_forward(team, y, x, w, bias, SET, NO_ACTIVATION, ONE)


@entry
def normalize(team, y, x, norm):
    layernorm_forward(team, y, x, norm, np.float32(1e-5))


@entry
def write_cache(team, cache, heads, qkv, slots, positions):
    kv_cache_write(team, cache, heads, qkv, slots, positions)


@entry
def attend(team, out, qkv, cache, heads, query_blocks, partials):
    attention_forward(team, out, partials[:0], qkv, cache, heads, query_blocks, partials)


def seconds(call: Call, repetitions: int = 1) -> float:
    """The time of the fastest of some calls."""
    time.sleep(PAUSE)
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def pairs(ours: Call, theirs: Call, count: int) -> list[tuple[float, float]]:
    """`count` pairs (our seconds, their seconds), measured in turns."""
    seconds(ours), seconds(theirs)
    return [(seconds(ours, 3), seconds(theirs, 3)) for _ in range(count)]


def line(what: str, work: float, times: list[tuple[float, float]], limit: float = 0) -> None:
    """Print a line of a table: 10⁹ units of work per second, ours and theirs, and the ratio.

    limit  the work of one of their calls, if it is not `work`
    """
    ours, theirs = (statistics.median(t) for t in zip(*times, strict=True))
    limit = limit or work
    ratio = statistics.median((work / a) / (limit / b) for a, b in times)
    print(f"{what:<28}{work / ours / 1e9:>8.1f}{limit / theirs / 1e9:>9.1f}{ratio:>8.2f}")


def aligned(array: np.ndarray) -> np.ndarray:
    """A 1-D copy that begins with a cache line, as all memory of a model does."""
    copy = aligned_zeros(array.size, array.dtype)
    copy[:] = array.ravel()
    return copy


class Bench:
    """A team, its scratch, 256 MiB to read, and random arrays."""

    def __init__(self, threads: int, count: int) -> None:
        self.count = count
        self.team = Team(threads)
        size = max(MATMUL_SCRATCH, attention_scratch(128))
        self.scratch = thread_scratch(threads, size)
        self.rng = np.random.default_rng(0)
        self.memory = aligned(np.ones(MEMORY_BYTES // 4, np.float32))
        self.sums = np.zeros(MEMORY_BYTES // 4 // CHUNK, np.float32)

    def random(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32)

    def run(self, kernel: Any, *arguments: Any) -> None:
        self.team.run(kernel, self.scratch, *arguments)

    def compare(self, what: str, work: float, ours: Call, theirs: Call, limit: float = 0) -> None:
        line(what, work, pairs(ours, theirs, self.count), limit)

    def matmul(self, x: np.ndarray, w: np.ndarray, dtype: str) -> Call:
        """A call of our y = x · w, with activations in the dtype that a model gives them."""
        (M, K), N = x.shape, w.shape[1]
        rows = np.zeros((padded(M, LANES), row_stride(K)), np.float32)
        rows[:M, :K] = x
        narrow = dtype == "bf16" and BF16_PRODUCTS
        a = aligned(f32_to_bf16(rows) if narrow else rows)
        y = aligned_zeros(M * N, np.float32)
        b = aligned(pack_panels(w, TYPES[dtype]))
        y_view, x_view = View(y, M, N, N), View(a, M, K, row_stride(K))
        return partial(self.run, matmul, y_view, x_view, b, NO_BIAS)


def products(bench: Bench, torch: Any) -> None:
    """Many rows: GFLOP/s."""
    blas = next(info for info in threadpool_info() if info["user_api"] == "blas")
    library = f"{blas['internal_api']} for {blas.get('architecture')}"
    print(f"x · w in f32; NumPy {np.__version__}, {library}")
    print(f"{'M, K, N':<28}{'ours':>8}{'NumPy':>9}{'ratio':>8}   GFLOP/s")
    for M, K, N in SHAPES:
        x, w, y = bench.random(M, K), bench.random(K, N), np.empty((M, N), np.float32)
        ours, theirs = bench.matmul(x, w, "f32"), partial(np.matmul, x, w, out=y)
        bench.compare(f"{M}, {K}, {N}", 2 * M * K * N, ours, theirs)
    if torch is None:
        return
    print(f"\nx · w in bf16; torch {torch.__version__}")
    print(f"{'M, K, N':<28}{'ours':>8}{'torch':>9}{'ratio':>8}   GFLOP/s")
    for M, K, N in SHAPES:
        x, w = bench.random(M, K), bench.random(K, N)
        ours = bench.matmul(x, w, "bf16")
        a, b = (torch.from_numpy(t).bfloat16() for t in (x, w.T.copy()))
        theirs = partial(torch.nn.functional.linear, a, b)
        bench.compare(f"{M}, {K}, {N}", 2 * M * K * N, ours, theirs)


def quantized_products(bench: Bench) -> None:
    """Many rows, weights of 8 and 4 bits against our bfloat16: GFLOP/s."""
    for dtype in QUANTIZED_DTYPES:
        print(f"\nx · w in {dtype}\n{'M, K, N':<28}{'ours':>8}{'bf16':>9}{'ratio':>8}   GFLOP/s")
        for M, K, N in SHAPES[1:-1]:
            x, w = bench.random(M, K), bench.random(K, N)
            b = QuantizedMatrix(*map(aligned, pack_quantized(*quantize(w, dtype))))
            y = aligned_zeros(M * N, np.float32)
            buffer, layer = make_quantized_activations(M, K), PackedLinear(b, NO_BIAS, K, N)
            y_view, x_view = View(y, M, N, N), View(x.ravel(), M, K, K)
            ours = partial(bench.run, quantized_linear, y_view, x_view, layer, buffer)
            work = 2 * M * K * N
            bench.compare(f"{M}, {K}, {N}", work, ours, bench.matmul(x, w, "bf16"))


def one_row(bench: Bench) -> None:
    """One row: GB/s of weights against a plain read of memory."""
    print(f"\none row · w\n{'dtype, K, N':<28}{'ours':>8}{'read':>9}{'ratio':>8}   GB/s")
    plain = partial(bench.run, read_forward, bench.sums, bench.memory, 1)
    for dtype, kind in TYPES.items():
        memory = bench.memory.view(kind)
        narrow = dtype == "bf16" and BF16_PRODUCTS
        for K, N in ROWS_OF_WEIGHTS:
            x = np.ones(LANES * row_stride(K), np.uint16 if narrow else np.float32)
            y, size = bench.random(N), panels_size(K, N)
            y_view, x_view = View(y, 1, N, N), View(x, 1, K, row_stride(K))
            ours = partial(bench.run, matmul_each, y_view, x_view, memory, NO_BIAS, size)
            work = memory.size // size * size * memory.itemsize
            bench.compare(f"{dtype}, {K}, {N}", work, ours, plain, MEMORY_BYTES)
    for dtype in QUANTIZED_DTYPES:
        memory = bench.memory.view(STORAGE_DTYPE[dtype])
        for K, N in ROWS_OF_WEIGHTS:
            x, y = np.ones(K, np.float32), bench.random(N)
            sizes = qweight_size(K, N, dtype), scales_size(K, N, dtype)
            buffer = make_quantized_activations(bench.team.size, K)
            y_view, x_view = View(y, 1, N, N), View(x, 1, K, K)
            ours = partial(
                bench.run, quantized_linear_each, y_view, buffer, x_view, memory, NO_BIAS, K, N,
                *sizes,
            )  # fmt: skip
            step = sizes[0] + 2 * sizes[1]
            work = memory.size // step * step
            bench.compare(f"{dtype}, {K}, {N}", work, ours, plain, MEMORY_BYTES)


def attention(bench: Bench, torch: Any) -> None:
    """Attention over T tokens (GFLOP/s), and of the last token alone (GB/s of the KV cache)."""
    print(f"\nattention in f32\n{'T, heads, size':<28}{'ours':>8}{'other':>9}{'ratio':>8}")
    plain = partial(bench.run, read_forward, bench.sums, bench.memory, 1)
    for T, NH, HS in ((512, 12, 64), (2048, 12, 64), (2048, 16, 128)):
        C, capacity = NH * HS, padded(T, KEY_BLOCK)
        qkv, out = bench.random(T * 3 * C), np.empty(T * C, np.float32)
        keys, values = (np.zeros(NH * capacity * HS, np.float32) for _ in range(2))
        cache, heads = LayerCache(keys, values, capacity), Heads(NH, HS, np.float32(HS**-0.5))
        slots, positions = np.zeros(T, np.int64), np.arange(T)
        bench.run(write_cache, cache, heads, View(qkv, T, 3 * C, 3 * C), slots, positions)
        blocks = [(0, r, min(QUERY_BLOCK, T - r), r) for r in range(0, T, QUERY_BLOCK)]
        partials = np.empty(partials_size(1, NH, HS, capacity), np.float32)

        def attended(M: int, blocks: list[tuple[int, ...]], values: tuple[Any, ...]) -> Call:
            out, C, qkv, *others, partials = values
            views = View(out, M, C, C), View(qkv, M, 3 * C, 3 * C)
            return partial(
                bench.run, attend, *views, *others, np.array(blocks).ravel(), partials
            )  # fmt: skip

        values = out, C, qkv, cache, heads, partials
        if torch is not None:
            q, k, v = torch.from_numpy(qkv).view(1, T, 3, NH, HS).permute(2, 0, 3, 1, 4)
            sdpa = partial(
                torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=True
            )  # fmt: skip
            work = 2 * T * T * C  # causal: half of all products
            ours = attended(T, blocks, values)
            bench.compare(f"{T}, {NH}, {HS}: torch", work, ours, sdpa)
        last = attended(1, [(0, 0, 1, T - 1)], values)
        bench.compare(f"{T}, {NH}, {HS}: last, read", 8 * T * C, last, plain, MEMORY_BYTES)


def layernorm(bench: Bench, torch: Any) -> None:
    """Layer normalization: GB/s read and written, of data in the caches."""
    if torch is None:
        return
    print(f"\nlayernorm\n{'M, C':<28}{'ours':>8}{'torch':>9}{'ratio':>8}   GB/s")
    for M, C in ((512, 768), (512, 2048)):
        x, weight, bias = bench.random(M, C), bench.random(C), bench.random(C)
        y = np.empty(M * C, np.float32)
        views = View(y, M, C, C), View(x.ravel(), M, C, C)
        ours = partial(bench.run, normalize, *views, LayerNorm(weight, bias))
        tensors = [torch.from_numpy(t) for t in (x, weight, bias)]
        theirs = partial(torch.nn.functional.layer_norm, tensors[0], (C,), *tensors[1:])
        bench.compare(f"{M}, {C}", 8 * M * C, ours, theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    torch = None
    if find_spec("torch"):
        import torch

        torch.set_num_threads(options.threads)
        torch.set_grad_enabled(False)
    bench = Bench(options.threads, options.pairs)
    with threadpool_limits(options.threads):
        products(bench, torch)
        quantized_products(bench)
        one_row(bench)
        attention(bench, torch)
        layernorm(bench, torch)


if __name__ == "__main__":
    main()
