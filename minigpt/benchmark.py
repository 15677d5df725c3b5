"""How fast a model runs on this machine, and how near that is to the limit of its memory.

    minigpt.benchmark.measure("cerebras/Cerebras-GPT-111M").decode_tokens_per_s

Three things are measured in turn, `reps` times, after a warm-up that is not counted (it compiles
the kernels), and the medians are told:

  prefill  a prompt of random tokens is read into an empty cache, as generation begins
  decode   tokens are made one after the other, greedily, with `depth` tokens in the cache before
           the first; nothing ends them early
  stream   memory is read, and no more, by as many threads

A token is made by reading every weight once, so the stream is the limit of decoding:
bandwidth_fraction tells how near it is. The stream's memory is larger than a processor's caches.
A model that fits into them is read from there, and can come out above 1.
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
from .arguments import is_integer
from .checkpoint import resolve
from .config import GPTConfig
from .errors import InputError, short_repr
from .generation.sampler import SamplingParams, generators, sample
from .kernels.layout import AUX_DTYPE, BITS_PER_WEIGHT
from .kernels.memory_read import CHUNK, read_forward
from .kernels.team import Team
from .model.kv_cache import State
from .weights.table import weights_bytes

_STREAM_BYTES = 256 << 20
_STREAM_PASSES = 8  # a tenth of a second, more or less: as steady as the decoding beside it
_GREEDY = SamplingParams()


@dataclass(frozen=True)
class Result:
    """What `measure` finds.

    model, dtype, threads  the source as it was given; how its matrices are held; how many compute
    prompt_tokens, gen_tokens, depth, reps  as asked for
    prefill_tokens_per_s   prompt tokens read per second, the median
    decode_tokens_per_s    tokens made per second, the median
    load_s                 seconds to read the weights and make the model ready
    bytes_per_token        what making a token reads: see `bytes_per_token`
    stream_bytes_per_s     a plain read of memory by as many threads, the median
    bandwidth_fraction     bytes_per_token · decode_tokens_per_s ÷ stream_bytes_per_s
    peak_rss_bytes         the most memory the process had resident until the warm-up's end: that
                           is Python, the weights, the cache and the activations
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
    prompt_tokens: int = 512,
    gen_tokens: int = 64,
    depth: int = 0,
    reps: int = 5,
    dtype: str = "auto",
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Measure the model of a source.

    source, dtype, threads  as GPTModel.from_pretrained takes them
    prompt_tokens           the tokens of the prompt: 1 … n_positions
    gen_tokens, depth       the tokens that are made, and those in the cache before them:
                            from 1 and 0, together at most n_positions
    reps                    how often, from 1
    progress                is told what begins: "loading", "warm-up", "1 of 5", …

    Raises InputError for a number out of its range, before the weights are read, and what
    GPTModel.from_pretrained raises.
    """
    folder = resolve(source)
    config = GPTConfig.from_source(folder)
    _check(config, prompt_tokens, gen_tokens, depth, reps)
    tell = progress or (lambda phase: None)
    tell("loading")
    start = perf_counter()
    model = GPTModel.from_pretrained(folder, dtype, threads)
    load_s = perf_counter() - start

    tell("warm-up")
    rng = np.random.default_rng(0)
    prompt, past = (rng.integers(0, config.vocab_size, n) for n in (prompt_tokens, depth))
    _prefill_rate(model, prompt)
    state = model.new_state(1, depth + gen_tokens)
    if depth:
        model.advance(state, [0], [past])
    _decode_rate(model, state, depth, gen_tokens)
    peak = peak_rss_bytes()  # now: the memory of the stream is not the model's

    team = Team(model._engine._team.size)
    data = np.ones(_STREAM_BYTES // 4, np.float32)  # not zeros, which take no memory until written
    _stream_rate(team, data)
    rates = []
    for rep in range(reps):
        tell(f"{rep + 1} of {reps}")
        prefill = _prefill_rate(model, prompt)
        decode = _decode_rate(model, state, depth, gen_tokens)
        rates.append((prefill, decode, _stream_rate(team, data)))
    prefill, decode, stream = map(statistics.median, zip(*rates, strict=True))

    read = bytes_per_token(config, model.dtype, model._engine.weights.tied, depth, gen_tokens)
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


def _check(config: GPTConfig, prompt_tokens: int, gen_tokens: int, depth: int, reps: int) -> None:
    """Raises InputError for what is no integer, out of its range, or beyond the context."""
    for name, value, least in (
        ("prompt_tokens", prompt_tokens, 1),
        ("gen_tokens", gen_tokens, 1),
        ("depth", depth, 0),
        ("reps", reps, 1),
    ):
        if not (is_integer(value) and value >= least):
            raise InputError(f"{name} {short_repr(value)}: must be an integer from {least}")
    lengths = {"prompt_tokens": prompt_tokens, "depth + gen_tokens": depth + gen_tokens}
    for name, value in lengths.items():
        if value > config.n_positions:
            raise InputError(
                f"{name} {short_repr(value)}: this model's context is {config.n_positions} tokens; "
                "take fewer"
            )


def _prefill_rate(model: GPTModel, prompt: np.ndarray) -> float:
    """Tokens per second: reads `prompt`, int64 [T], into a new cache, up to the logits after it."""
    start = perf_counter()
    model.advance(model.new_state(1, len(prompt)), [0], [prompt])
    return len(prompt) / (perf_counter() - start)


def _decode_rate(model: GPTModel, state: State, depth: int, gen_tokens: int) -> float:
    """Tokens per second: makes `gen_tokens`, greedily, after the first `depth` of the cache."""
    state.lengths[0] = depth
    token, rng = 0, generators(0, 1)[0]
    start = perf_counter()
    for _ in range(gen_tokens):
        logits = model.advance(state, [0], [np.array([token], np.int64)])
        token = sample(logits[0], _GREEDY, rng)
    return gen_tokens / (perf_counter() - start)


def _stream_rate(team: Team, data: np.ndarray) -> float:
    """Bytes per second: reads `data`, float32 [n · CHUNK], from end to end, some times."""
    sums, scratch = np.empty(data.size // CHUNK, np.float32), np.empty((team.size, 0), np.float32)
    start = perf_counter()
    team.run(read_forward, scratch, sums, data, _STREAM_PASSES)
    return _STREAM_PASSES * data.nbytes / (perf_counter() - start)


def bytes_per_token(config: GPTConfig, dtype: str, tied: bool, depth: int, gen_tokens: int) -> int:
    """What making one token reads: weights, keys and values, in bytes.

    All weights count once, the tied wte too, which the head reads whole; of an embedding that is
    only looked up (wpe, an untied wte) one row counts. The first of `gen_tokens` tokens reads the
    keys and values of depth + 1 positions, its own included, the last those of
    depth + gen_tokens: counted is the mean. Padding and activations are not.
    """
    L, C = config.n_layer, config.n_embd
    beside = AUX_DTYPE[dtype].itemsize
    unread = beside * C * (config.n_positions - 1)
    if not tied:
        unread += int(BITS_PER_WEIGHT[dtype] / 8 * C * (config.vocab_size - 1))
    cached = L * C * (2 * depth + gen_tokens + 1)  # 2 · L · C at each of the mean's positions
    return weights_bytes(config, dtype, tied) - unread + beside * cached


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident."""
    if sys.platform == "win32":
        return _peak_working_set()
    if sys.platform == "linux":  # whose getrusage begins with the peak of who started this process
        with suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            if found:
                return 1024 * int(found[1])

    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if sys.platform == "win32":

    def _peak_working_set() -> int:
        """What Windows calls the most memory resident."""
        import ctypes
        from ctypes import wintypes

        class Counters(ctypes.Structure):
            """PROCESS_MEMORY_COUNTERS; of its eight sizes the first is the peak."""

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
