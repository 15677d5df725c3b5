"""Speed of a model on this machine, and its distance from the limit of memory bandwidth.

    minigpt.benchmark.measure("cerebras/Cerebras-GPT-111M").decode_tokens_per_s

After a warm-up, which compiles the kernels, three tests take turns `reps` times; the medians are
reported:

  prefill  process a prompt of random tokens into an empty cache
  decode   generate tokens greedily, one at a time, with `depth` tokens in the cache before the
           first; no token ends the sequence
  stream   read memory, and do nothing else, with the same number of threads

Decoding reads every weight once per token. The stream is therefore its limit, and
bandwidth_fraction is decode's share of it. The stream's buffer is larger than a processor's caches;
a model that fits into the caches can exceed 1.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from .api import GPTModel
from .arguments import check_callable, checked_integer
from .checkpoint import resolve
from .config import GPTConfig
from .errors import InputError, short_repr
from .generation.sampler import SamplingParams, sample
from .kernels.layout import AUX_DTYPE, BITS_PER_WEIGHT
from .kernels.memory_read import CHUNK, read_forward
from .kernels.team import Team
from .model.kv_cache import KVCache
from .weights.table import matrix_dtype, weights_bytes

_STREAM_BYTES = 256 << 20
_STREAM_PASSES = 8  # about a tenth of a second: as steady as the decode test beside it
_PROMPT_TOKENS, _GEN_TOKENS = 512, 64  # the defaults, in a context that has so many
_GREEDY = SamplingParams()


@dataclass(frozen=True)
class Result:
    """The result of `measure`.

    model                  the source, as given
    dtype                  the dtype of the weights in memory
    threads                the number of threads that computed
    prompt_tokens, gen_tokens, depth, reps  the arguments
    prefill_tokens_per_s   prompt tokens processed per second, the median
    decode_tokens_per_s    tokens generated per second, the median
    load_s                 seconds to load the model
    bytes_per_token        bytes that one decoded token reads: see `bytes_per_token`
    stream_bytes_per_s     bytes per second of a plain read of memory, the median
    bandwidth_fraction     bytes_per_token · decode_tokens_per_s ÷ stream_bytes_per_s
    peak_rss_bytes         peak resident memory of the process until the end of the warm-up: Python,
                           weights, cache and activations
    """

    model: str
    dtype: str
    threads: int
    prompt_tokens: int
    gen_tokens: int
    depth: int
    reps: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    load_s: float
    bytes_per_token: int
    stream_bytes_per_s: float
    bandwidth_fraction: float
    peak_rss_bytes: int


def measure(
    source: str | os.PathLike[str],
    prompt_tokens: int | None = None,
    gen_tokens: int | None = None,
    depth: int = 0,
    reps: int = 5,
    dtype: str = "auto",
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Load a model and measure its prefill and decode speed.

    source, dtype, threads  as for GPTModel.from_pretrained
    prompt_tokens           length of the prompt, 1 … n_positions. Default: 512, or n_positions
                            where that is less
    gen_tokens              number of tokens to generate, from 1. Default: 64, or as many as the
                            context has after `depth`
    depth                   tokens in the cache before these, from 0; depth + gen_tokens must be at
                            most n_positions
    reps                    number of measurements, from 1
    progress                called with the name of each phase: "loading", "warm-up", "1 of 5", …

    Raises InputError for an argument out of its range, before the weights are read, and the errors
    of GPTModel.from_pretrained.
    """
    check_callable("progress", progress)
    folder = resolve(source)
    config = GPTConfig.from_source(folder)
    reps = checked_integer("reps", reps, 1)
    prompt_tokens, gen_tokens, depth = _lengths(config, prompt_tokens, gen_tokens, depth)
    report = progress or (lambda phase: None)
    report("loading")
    start = perf_counter()
    model = GPTModel.from_pretrained(folder, dtype, threads)
    load_s = perf_counter() - start

    report("warm-up")
    rng = np.random.default_rng(0)
    prompt, past = (rng.integers(0, config.vocab_size, n) for n in (prompt_tokens, depth))
    _prefill_rate(model, prompt)
    cache = model.engine.new_cache(1, depth + gen_tokens)
    slot = cache.allocate()
    if depth:
        model.engine.forward(cache, [slot], [past])
    _decode_rate(model, cache, slot, depth, gen_tokens)
    peak = peak_rss_bytes()  # before the stream's buffer is allocated

    team = Team(model.engine.threads)
    data = np.ones(_STREAM_BYTES // 4, np.float32)  # zeros would share one page
    _stream_rate(team, data)
    rates = []
    for rep in range(reps):
        report(f"{rep + 1} of {reps}")
        prefill = _prefill_rate(model, prompt)
        decode = _decode_rate(model, cache, slot, depth, gen_tokens)
        rates.append((prefill, decode, _stream_rate(team, data)))
    prefill, decode, stream = map(statistics.median, zip(*rates, strict=True))

    weights = model.engine.weights
    read = bytes_per_token(config, model.dtype, weights.tied, depth, gen_tokens, weights.wte_dtype)
    return Result(
        model=os.fspath(source),
        dtype=model.dtype,
        threads=team.size,
        prompt_tokens=prompt_tokens,
        gen_tokens=gen_tokens,
        depth=depth,
        reps=reps,
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
        load_s=load_s,
        bytes_per_token=read,
        stream_bytes_per_s=stream,
        bandwidth_fraction=read * decode / stream,
        peak_rss_bytes=peak,
    )


def _lengths(
    config: GPTConfig, prompt_tokens: int | None, gen_tokens: int | None, depth: int
) -> tuple[int, int, int]:
    """(prompt_tokens, gen_tokens, depth), with the defaults that the context has room for.

    Raises InputError for an argument that is no integer in its range or exceeds the context.
    """
    context = config.n_positions
    depth = checked_integer("depth", depth, 0)
    if prompt_tokens is None:
        prompt_tokens = min(_PROMPT_TOKENS, context)
    if gen_tokens is None:
        gen_tokens = max(1, min(_GEN_TOKENS, context - depth))
    prompt_tokens = checked_integer("prompt_tokens", prompt_tokens, 1)
    gen_tokens = checked_integer("gen_tokens", gen_tokens, 1)
    for argument, name, value in (
        ("prompt_tokens", "prompt_tokens", prompt_tokens),
        ("gen_tokens", "gen_tokens", gen_tokens),
        ("depth", "depth + gen_tokens", depth + gen_tokens),
    ):
        if value > context:
            raise InputError(
                f"{name} {short_repr(value)}: this model's context is {context} tokens; take fewer",
                argument,
            )
    return prompt_tokens, gen_tokens, depth


def _prefill_rate(model: GPTModel, prompt: np.ndarray) -> float:
    """Process `prompt`, int64 [T], with an empty cache; return tokens per second."""
    start = perf_counter()
    cache = model.engine.new_cache(1, len(prompt))
    model.engine.forward(cache, [cache.allocate()], [prompt])
    return len(prompt) / (perf_counter() - start)


def _decode_rate(model: GPTModel, cache: KVCache, slot: int, depth: int, gen_tokens: int) -> float:
    """Generate `gen_tokens` greedily after the cache's first `depth`; return tokens per second."""
    cache.truncate(slot, depth)
    token = 0
    start = perf_counter()
    for _ in range(gen_tokens):
        logits = model.engine.forward(cache, [slot], [np.array([token], np.int64)])
        token = sample(logits[0], _GREEDY)
    return gen_tokens / (perf_counter() - start)


def _stream_rate(team: Team, data: np.ndarray) -> float:
    """Read `data`, float32 [n · CHUNK], _STREAM_PASSES times; return bytes per second."""
    sums, scratch = np.empty(data.size // CHUNK, np.float32), np.empty((team.size, 0), np.float32)
    start = perf_counter()
    team.run(read_forward, scratch, sums, data, _STREAM_PASSES)
    return _STREAM_PASSES * data.nbytes / (perf_counter() - start)


def bytes_per_token(
    config: GPTConfig,
    dtype: str,
    tied: bool,
    depth: int,
    gen_tokens: int,
    wte_dtype: str | None = None,
) -> int:
    """Return the bytes of weights, keys and values that one decoded token reads.

    Each weight counts once, including a tied wte, all of which the head reads. Of an embedding that
    is only looked up (wpe, an untied wte) one row counts. The first of `gen_tokens` tokens reads
    the keys and values of depth + 1 positions, the last those of depth + gen_tokens; the mean
    counts. Padding and activations do not count.

    wte_dtype  of wte and the head. Default: that of `matrix_dtype`
    """
    L, C = config.n_layer, config.n_embd
    aux_bytes = AUX_DTYPE[dtype].itemsize
    unread = aux_bytes * C * (config.n_positions - 1)
    if not tied:
        wte_bits = BITS_PER_WEIGHT[matrix_dtype("wte.weight", dtype, wte_dtype)]
        unread += int(wte_bits / 8 * C * (config.vocab_size - 1))
    cached = L * C * (2 * depth + gen_tokens + 1)  # 2 · L · C per position, at the mean position
    return weights_bytes(config, dtype, tied, wte_dtype) - unread + aux_bytes * cached


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process, in bytes."""
    if sys.platform == "win32":
        return _peak_working_set()
    if sys.platform == "linux":  # its getrusage starts from the parent's peak
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            if found:
                return 1024 * int(found[1])

    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if sys.platform == "win32":

    def _peak_working_set() -> int:
        """Return the peak working set, Windows' name for resident memory, in bytes."""
        import ctypes
        from ctypes import wintypes

        class Counters(ctypes.Structure):
            """PROCESS_MEMORY_COUNTERS; the first of its eight sizes is the peak."""

            _fields_ = [
                ("cb", wintypes.DWORD),
                ("page_faults", wintypes.DWORD),
                ("sizes", ctypes.c_size_t * 8),
            ]

        counters = Counters(cb=ctypes.sizeof(Counters))
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.GetCurrentProcess.restype = wintypes.HANDLE
        read = kernel.K32GetProcessMemoryInfo
        read.argtypes = [wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD]
        if not read(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
            raise ctypes.WinError(ctypes.get_last_error())
        return int(counters.sizes[0])
