"""Training against PyTorch: steps of the same model, in turns, in one run.

    python bench/training.py [--size 111M] [--batch 4] [--context 256] [--rounds 5]
                             [--dtypes f32 bf16] [--json FILE]

Each runs in a process of its own, with random weights in the shape of Cerebras-GPT. Both train on
the same random tokens, clip the gradient norm at 1 and step by AdamW. PyTorch runs transformers'
GPT-2 with the fused AdamW, in bf16 under autocast. Prints the medians, the median of the rounds'
ratios (above 1: minigpt is faster) and the peak memory of each process. Needs torch and
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
from machine import machine
from processes import Worker, ask, start, stop

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


def make_theirs(size: str, dtype: str, batch: int, context: int, threads: int) -> None:
    """In the worker: transformers' GPT-2 on PyTorch."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(threads)
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**sizes(size), **no_dropout)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
    )
    ids, targets = (torch.from_numpy(array) for array in tokens(batch, context))

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            logits = model(ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
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


def compare(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Both in turns. The first step of each does not count: it compiles."""
    shape = options.size, dtype, options.batch, options.context, options.threads
    workers: dict[str, Worker] = {"minigpt": start(), "torch": start()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    try:
        ask(workers["minigpt"], make_ours, *shape)
        ask(workers["torch"], make_theirs, *shape)
        for turn in range(options.rounds + 1):
            for name, worker in workers.items():
                taken, loss = ask(worker, timed_step)
                print(f"  {dtype} {turn} {name:8} {taken:7.3f} s, loss {loss:.4f}", flush=True)
                if turn:
                    seconds[name].append(taken)
        peaks = {name: ask(worker, peak_bytes) for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            stop(worker)
    count = options.batch * options.context
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    return {
        "dtype": dtype,
        "tokens_per_s": {name: count / statistics.median(s) for name, s in seconds.items()},
        "ratio": statistics.median(ratios),
        "peak_bytes": peaks,
        "memory_ratio": peaks["minigpt"] / peaks["torch"],
    }


def line(result: dict[str, Any]) -> str:
    """One row of the table."""
    ours, theirs = result["tokens_per_s"].values()
    peak, their_peak = (bytes_ / 1e9 for bytes_ in result["peak_bytes"].values())
    return (
        f"| {result['dtype']} | {ours:.0f} | {theirs:.0f} | {result['ratio']:.2f} "
        f"| {peak:.2f} | {their_peak:.2f} | {result['memory_ratio']:.2f} |"
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
    print("| | minigpt, tokens/s | PyTorch | ratio | minigpt, peak GB | PyTorch | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    print("\n".join(map(line, results)))
    if options.json:
        shape = {"size": options.size, "batch": options.batch, "context": options.context}
        report = {"machine": machine(), **shape, "threads": options.threads, "results": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
