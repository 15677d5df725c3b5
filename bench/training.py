"""Training against PyTorch: steps of the same model, in turns, in one run.

    python bench/training.py [--size 111M] [--batch 4] [--context 256] [--rounds 5]
                             [--dtypes f32 bf16] [--json FILE]

Each engine runs in a process of its own, with random weights in the shape of Cerebras-GPT. All
train on the same random tokens, clip the gradient norm at 1 and step by AdamW. PyTorch runs
transformers' GPT-2 with the fused AdamW, in bf16 under autocast: as it is ("torch"), and with
forward, loss and backward compiled by Inductor ("compiled"), which needs a C++ compiler. Prints the
medians, the median of the rounds' ratios (above 1: minigpt is faster) and the peak memory of each
process. An engine that cannot run is left out, and the reason printed. Needs torch and
transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from engines import hush_transformers
from machine import machine
from processes import Worker, WorkerError, ask, start, stop

from minigpt.training.presets import PRESETS

VOCABULARY = 50257
LR, BETAS, EPS, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-4, (0.9, 0.95), 1e-8, 0.1, 1.0

_steps: list[Callable[[], float]] = []  # in a worker: makes a step and returns its loss


def sizes(size: str) -> dict[str, Any]:
    """The config.json of a preset."""
    preset = PRESETS[size]
    return {
        "n_layer": preset.n_layer,
        "n_head": preset.n_head,
        "n_embd": preset.n_embd,
        "n_positions": 2048,
        "vocab_size": VOCABULARY,
        "activation_function": "gelu",
    }


def tokens(batch: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """ids, targets, int64 [B, T]."""
    lines = np.random.default_rng(0).integers(0, VOCABULARY, (batch, context + 1))
    return np.ascontiguousarray(lines[:, :-1]), np.ascontiguousarray(lines[:, 1:])


def make_ours(size: str, dtype: str, batch: int, context: int, threads: int) -> None:
    """In the worker: minigpt's Learner."""
    from minigpt.config import GPTConfig
    from minigpt.model.learner import Learner
    from minigpt.model.optimizer import AdamW
    from minigpt.training.initial import random_tensors

    config = GPTConfig.from_dict(sizes(size), size)
    learner = Learner(config, random_tensors(config, 0), threads, dtype)
    ids, targets = tokens(batch, context)
    count = 0

    def step() -> float:
        nonlocal count
        count += 1
        learner.zero_grad()
        nats = learner.backward(ids, targets, 1 / ids.size)
        learner.step(AdamW(count, LR, *BETAS, EPS, WEIGHT_DECAY, MAX_GRAD_NORM))
        return nats / ids.size

    _steps.append(step)


def make_torch(size: str, dtype: str, batch: int, context: int, threads: int) -> None:
    """In the worker: transformers' GPT-2 on PyTorch."""
    make_theirs(size, dtype, batch, context, threads, compiled=False)


def make_compiled(size: str, dtype: str, batch: int, context: int, threads: int) -> None:
    """In the worker: the same, compiled by Inductor."""
    make_theirs(size, dtype, batch, context, threads, compiled=True)


def make_theirs(
    size: str, dtype: str, batch: int, context: int, threads: int, compiled: bool
) -> None:
    """In the worker: transformers' GPT-2 on PyTorch, forward and loss perhaps compiled."""
    hush_transformers()
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(threads)
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**sizes(size), **no_dropout)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
    )
    ids, targets = (torch.from_numpy(array) for array in tokens(batch, context))

    def compute_loss() -> torch.Tensor:
        logits = model(ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    if compiled:
        compute_loss = torch.compile(compute_loss)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = compute_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        return float(loss.detach())

    _steps.append(step)


def timed_step() -> tuple[float, float]:
    """In the worker: (seconds, loss) of a step."""
    start = time.perf_counter()
    loss = _steps[0]()
    return time.perf_counter() - start, loss


def peak_bytes() -> int:
    """In the worker: its peak resident memory."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


ENGINES = {"minigpt": make_ours, "torch": make_torch, "compiled": make_compiled}


def start_engines(shape: tuple[Any, ...]) -> dict[str, Worker]:
    """A worker for each engine that runs, after its first step: that one compiles."""
    workers: dict[str, Worker] = {}
    for name, make in ENGINES.items():
        worker = start()
        try:
            ask(worker, make, *shape)
            taken, loss = ask(worker, timed_step)
            print(f"  {name}: first step {taken:.1f} s, loss {loss:.4f}", flush=True)
            workers[name] = worker
        except WorkerError as error:
            print(f"  {name}: {error}", flush=True)
            stop(worker)
    return workers


def compare(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """All engines in turns; the first step of each does not count."""
    print(dtype)
    shape = options.size, dtype, options.batch, options.context, options.threads
    workers = start_engines(shape)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    try:
        for turn in range(options.rounds):
            for name, worker in workers.items():
                taken, loss = ask(worker, timed_step)
                print(f"  {turn + 1} {name:8} {taken:7.3f} s, loss {loss:.4f}", flush=True)
                seconds[name].append(taken)
        peaks = {name: ask(worker, peak_bytes) for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            stop(worker)
    count = options.batch * options.context
    ours = seconds["minigpt"]
    return {
        "dtype": dtype,
        "tokens_per_s": {name: count / statistics.median(s) for name, s in seconds.items()},
        "ratio": {
            name: statistics.median(theirs / mine for mine, theirs in zip(ours, s, strict=True))
            for name, s in seconds.items()
            if name != "minigpt"
        },
        "peak_bytes": peaks,
    }


def line(result: dict[str, Any], name: str) -> str:
    """The row of one engine."""
    ratio = result["ratio"].get(name)
    return (
        f"| {result['dtype']} | {name} | {result['tokens_per_s'][name]:.0f} "
        f"| {'' if ratio is None else f'{ratio:.2f}'} | {result['peak_bytes'][name] / 1e9:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure training against PyTorch, in turns.")
    parser.add_argument("--size", default="111M", choices=PRESETS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtypes", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [compare(options, dtype) for dtype in options.dtypes]
    print(f"{options.size}, batch {options.batch} x {options.context}, {options.threads} threads")
    print("| | | tokens/s | minigpt is faster by | peak GB |")
    print("|---|---|---:|---:|---:|")
    print("\n".join(line(result, name) for result in results for name in result["tokens_per_s"]))
    if options.json:
        shape = {"size": options.size, "batch": options.batch, "context": options.context}
        report = {"machine": machine(), **shape, "threads": options.threads, "results": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
