"""minigpt against Hugging Face transformers on PyTorch, in float32, on true Cerebras-GPT shapes.

    python bench/compare_transformers.py [--sizes 111M 256M] [--threads 2] [--json]

needs minigpt, torch and transformers in one environment; exits 1 when the two disagree. Weights
are random (random_checkpoint.py).

Accuracy: the logits of 128 random tokens, as the largest difference in parts of the largest
logit; and 32 greedy tokens.

Speed: reading a prompt of 512 tokens (until the logits after its last, keys and values kept), and
writing 64 tokens one by one at batch 1. The two take turns, first ours, then theirs, then theirs
first, so that a machine that slows down or speeds up does so for both; medians, and the median of
the ratios of the pairs, are reported. Each runs in a process of its own that sleeps while the
other is measured: their thread pools never meet. transformers is given its better attention
(eager or sdpa, tried first, for each task apart) and a bare loop around the model in place of its
slower `generate`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from random_checkpoint import SIZES, VOCAB, write_checkpoint

ACCURACY_TOKENS, GREEDY_TOKENS = 128, 32
PREFILL_TOKENS, DECODE_TOKENS = 512, 64
DECODE_PROMPT = 16
TOLERANCE = 2e-5
PAUSE = 0.1  # seconds between two measurements: idle threads stop spinning

# What a side can do: logits(ids), prefill(ids), decode(ids). The latter two time themselves and
# return (seconds, result): seconds of the measured part alone.
Side = dict[str, Callable[[np.ndarray], Any]]


def ours(folder: Path, threads: int) -> Side:
    """minigpt through its public API."""
    from minigpt import GPTModel

    model = GPTModel.from_pretrained(folder, dtype="f32", threads=threads)

    def logits(ids: np.ndarray) -> np.ndarray:
        return model(ids[None]).logits[0]

    def prefill(ids: np.ndarray) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        state = model.new_state(1, len(ids))
        last = model.advance(state, [0], [ids])
        return time.perf_counter() - start, last[0]

    def decode(ids: np.ndarray) -> tuple[float, list[int]]:
        stream = model.stream(ids, max_new_tokens=DECODE_TOKENS + 1, eos_token_id=None)
        first = next(stream)  # the prompt is read here
        start = time.perf_counter()
        rest = list(stream)
        return time.perf_counter() - start, [first, *rest]

    return {"logits": logits, "prefill": prefill, "decode": decode}


def theirs(folder: Path, threads: int) -> Side:
    """transformers, set up as well as it can be."""
    import torch
    from transformers import GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(threads)
    disable_progress_bar()
    models = [
        GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
        for attention in ("eager", "sdpa")
    ]
    for model in models:
        model.eval()
        # one copy of the weights
        model.load_state_dict(models[0].state_dict(), assign=True)
        model.tie_weights()
    # the keys and values of earlier tokens were called past_key_values in older releases
    named_cache = "cache" in inspect.signature(GPT2LMHeadModel.forward).parameters
    cache_name = "cache" if named_cache else "past_key_values"

    def step(model: GPT2LMHeadModel, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        output = model(ids, use_cache=True, logits_to_keep=1, **{cache_name: cache})
        return output.logits[0, -1], output[cache_name]

    @torch.inference_mode()
    def prefill_by(model: GPT2LMHeadModel, ids: np.ndarray) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        last, _ = step(model, torch.from_numpy(ids)[None], None)
        return time.perf_counter() - start, last.numpy()

    @torch.inference_mode()
    def decode_by(model: GPT2LMHeadModel, ids: np.ndarray) -> tuple[float, list[int]]:
        last, cache = step(model, torch.from_numpy(ids)[None], None)
        tokens = [last.argmax()]
        start = time.perf_counter()
        for _ in range(DECODE_TOKENS):
            last, cache = step(model, tokens[-1].view(1, 1), cache)
            tokens.append(last.argmax())
        return time.perf_counter() - start, [int(token) for token in tokens]

    @torch.inference_mode()
    def logits(ids: np.ndarray) -> np.ndarray:
        return models[0](torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()

    best_prefill = fastest(models, prefill_by, random_ids(PREFILL_TOKENS))
    best_decode = fastest(models, decode_by, random_ids(DECODE_PROMPT))
    return {
        "logits": logits,
        "prefill": lambda ids: prefill_by(best_prefill, ids),
        "decode": lambda ids: decode_by(best_decode, ids),
    }


def fastest(models: list[Any], task: Callable[..., tuple[float, Any]], ids: np.ndarray) -> Any:
    """The model that does `task` in the least time of two, after one to warm up."""

    def seconds(model: Any) -> float:
        return min([task(model, ids)[0] for _ in range(3)][1:])

    return min(models, key=seconds)


# ---- two processes that take turns


def serve(
    connection: Connection, load: Callable[[Path, int], Side], folder: Path, threads: int
) -> None:
    """The life of one side's process: answers (name, ids) by the result, until None comes."""
    side = load(folder, threads)
    connection.send(None)  # loaded
    while (request := connection.recv()) is not None:
        name, ids = request
        connection.send(side[name](ids))


def start(load: Callable[[Path, int], Side], folder: Path, threads: int) -> Connection:
    """Starts a side and waits until it has loaded; EOFError when it dies."""
    # fresh processes: threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=serve, args=(there, load, folder, threads), daemon=True).start()
    there.close()  # so that recv() fails when the process dies
    here.recv()
    return here


def ask(side: Connection, name: str, ids: np.ndarray) -> Any:
    time.sleep(PAUSE)
    side.send((name, ids))
    return side.recv()


# ---- what is compared


def random_ids(count: int) -> np.ndarray:
    """int64 [count], always the same."""
    return np.random.default_rng(count).integers(VOCAB, size=count)


def compare(size: str, folder: Path, threads: int, pairs: int) -> dict[str, Any]:
    """One object of the result, for one size."""
    write_checkpoint(size, folder)
    sides = [start(load, folder, threads) for load in (ours, theirs)]
    result = {"size": size, **accuracy(*sides)}
    for name, tokens in (("prefill", PREFILL_TOKENS), ("decode", DECODE_TOKENS)):
        ids = random_ids(PREFILL_TOKENS if name == "prefill" else DECODE_PROMPT)
        result[name] = speed(sides, name, ids, tokens, pairs)
    for side in sides:
        side.send(None)
    return result


def accuracy(ours: Connection, theirs: Connection) -> dict[str, Any]:
    """How far the logits differ, and how many greedy tokens agree before one differs."""
    ids = random_ids(ACCURACY_TOKENS)
    mine, expected = ask(ours, "logits", ids), ask(theirs, "logits", ids)
    ids = random_ids(DECODE_PROMPT)
    pairs = zip(ask(ours, "decode", ids)[1], ask(theirs, "decode", ids)[1], strict=True)
    same = [a == b for a, b in pairs][:GREEDY_TOKENS]
    error = float(abs(mine - expected).max() / abs(expected).max())
    agree = same.index(False) if False in same else len(same)
    ok = error < TOLERANCE and agree == GREEDY_TOKENS
    return {"logits_error": error, "greedy_tokens_equal": agree, "ok": ok}


def speed(
    sides: list[Connection], name: str, ids: np.ndarray, tokens: int, pairs: int
) -> dict[str, float]:
    """Tokens per second of both, medians of `pairs` turns, and the median ratio within a turn."""
    seconds: list[list[float]] = [[], []]
    for turn in range(pairs + 1):
        for i in (0, 1) if turn % 2 else (1, 0):
            elapsed = ask(sides[i], name, ids)[0]
            if turn:  # the first warms up
                seconds[i].append(elapsed)
    return {
        "minigpt_tokens_per_s": tokens / statistics.median(seconds[0]),
        "transformers_tokens_per_s": tokens / statistics.median(seconds[1]),
        "ratio": statistics.median(b / a for a, b in zip(*seconds, strict=True)),
    }


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    names = ("avx2", "avx512f", "avx512vnni", "avx512bf16", "amx-bf16", "neon", "sve")
    return {
        "cpu": cpu_model(),
        "features": [name for name in names if features.get(name)],
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "numba", "torch", "transformers")},
    }


def cpu_model() -> str:
    """The CPU's name as Linux knows it, elsewhere what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show(report: dict[str, Any]) -> None:
    """The report as text."""
    for key, value in report["machine"].items():
        print(f"{key:14}{' '.join(value) if isinstance(value, list) else value}")
    print(f"\n{'tokens/s':8} {'':8} {'minigpt':>10} {'transformers':>13} {'ratio':>7}")
    for result in report["results"]:
        for name in ("prefill", "decode"):
            row = result[name]
            print(
                f"{result['size']:8} {name:8} {row['minigpt_tokens_per_s']:10.1f} "
                f"{row['transformers_tokens_per_s']:13.1f} {row['ratio']:7.2f}"
            )
    print()
    for result in report["results"]:
        print(
            f"{result['size']:8} logits differ by {result['logits_error']:.1e} of their scale, "
            f"{result['greedy_tokens_equal']} of {GREEDY_TOKENS} greedy tokens equal: "
            f"{'ok' if result['ok'] else 'NOT OK'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="minigpt against transformers, float32")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["111M", "256M"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pairs", type=int, default=7, help="measured turns (default 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(arguments.threads), "results": []}
    for size in arguments.sizes:
        print(f"{size}: measuring, some minutes", file=sys.stderr)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            result = compare(size, Path(folder), arguments.threads, arguments.pairs)
        report["results"].append(result)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    sys.exit(0 if all(result["ok"] for result in report["results"]) else 1)


if __name__ == "__main__":
    main()
