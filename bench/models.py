"""Whole models against other engines, on the true shapes of Cerebras-GPT with random weights.

    python bench/models.py [--sizes 111M 590M] [--threads 2] [--rounds 5] [--json FILE]
                           [--without "transformers bf16"] [--tasks prefill decode]

compares minigpt with the installed engines among transformers (on PyTorch), OpenVINO, CTranslate2
and llama.cpp, in float32, 16, 8 and 4 bits, and names the missing ones. Exits with 1 if minigpt's
logits are wrong.

Speed: prefill of 512 tokens, up to the logits after the last one, and greedy decode of 64 tokens
after 1 token and after 1900. For minigpt, transformers and OpenVINO, also: 32 sequences that decode
together, after prompts of 128; and passes of 1, 8 and 16 tokens of one sequence, with the logits
after each, as speculative decoding needs them.

Each engine runs in its own process, which sleeps while another is
measured. Engines take turns, in another order each round: a machine that slows down slows down all.
The report has medians over the rounds, and medians of the ratios within a round, minigpt ÷ other
engine of the same width. If memory does not hold all engines at once, minigpt is measured against
several groups.

Accuracy: the largest difference of the logits to those of transformers in float32, relative to its
largest logit, after prompts of three lengths.

Memory: the peak resident memory of a process until then, above the weights.

Limits: `minigpt bench` compares decoding with a plain read of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import engines
import numpy as np
from machine import machine, memory_bytes
from processes import Worker, WorkerError, ask, run, start, stop
from random_checkpoint import SIZES, VOCAB, shapes_of, write_checkpoint

PROMPT, WRITTEN, DEPTH = 512, 64, 1900
SEQUENCES, SHORT, BATCH_WRITTEN, PASSES = 32, 128, 16, 8
ACCURACY_PROMPTS = (7, 100, PROMPT)
TOLERANCE = {"f32": 2e-5, "bf16": 2e-2}

# (engine, dtype), minigpt first. minigpt and PyTorch use bfloat16 instructions; llama.cpp's usual
# 16-bit files are float16.
WIDTHS = {
    "f32": [
        ("minigpt", "f32"),
        ("transformers", "f32"),
        ("openvino", "f32"),
        ("ctranslate2", "f32"),
        ("llama.cpp", "f32"),
    ],
    "bf16": [
        ("minigpt", "bf16"),
        ("transformers", "bf16"),
        ("openvino", "bf16"),
        ("ctranslate2", "bf16"),
        ("llama.cpp", "f16"),
        ("llama.cpp", "bf16"),
    ],
    "int8": [
        ("minigpt", "int8"),
        ("openvino", "int8"),
        ("ctranslate2", "int8"),
        ("llama.cpp", "q8_0"),
    ],
    "int4": [("minigpt", "int4"), ("openvino", "int4"), ("llama.cpp", "q4_0")],
}
# including a weight's share of the scales
BITS_PER_WEIGHT = {
    "f32": 32,
    "bf16": 16,
    "f16": 16,
    "int8": 8.25,
    "q8_0": 8.5,
    "int4": 4.5,
    "q4_0": 4.5,
}


class Task(NamedTuple):
    """A measurement.

    depth      length of the prompt
    written    number of tokens to generate after it, which are timed; 0: the prefill is timed
    sequences  how many sequences do this together
    draft      tokens of each of PASSES passes, which are timed in place of generated tokens; or 0
    """

    depth: int
    written: int
    sequences: int = 1
    draft: int = 0

    @property
    def kind(self) -> str:
        """The field of engines.Engine that does it."""
        if self.draft:
            return "passes"
        if self.sequences > 1:
            return "batch"
        return "decode" if self.written else "prefill"

    @property
    def tokens(self) -> int:
        """How many tokens are timed."""
        return self.draft * PASSES or self.sequences * (self.written or self.depth)


TASKS = {
    "prefill": Task(PROMPT, 0),
    "decode": Task(1, WRITTEN),
    "decode_deep": Task(DEPTH, WRITTEN),
    "batch": Task(SHORT, BATCH_WRITTEN, sequences=SEQUENCES),
    "pass_1": Task(SHORT, 0, draft=1),
    "pass_8": Task(SHORT, 0, draft=8),
    "pass_16": Task(SHORT, 0, draft=16),
}


class Setting(NamedTuple):
    """The arguments common to all measurements of one size.

    without  engines to leave out, such as "transformers bf16"
    tasks    names of TASKS
    """

    folder: Path
    size: str
    threads: int
    rounds: int
    without: list[str]
    tasks: list[str]


def random_ids(count: int) -> np.ndarray:
    """Return int64 [count], the same on every call."""
    return np.random.default_rng(count).integers(VOCAB, size=count)


def weights_bytes(size: str, dtype: str) -> int:
    """Return the bytes of all weights in one dtype; beside int4, wte is int8."""
    bits = 0.0
    for name, shape in shapes_of(size).items():
        wide = dtype == "int4" and name.endswith("wte.weight")
        bits += BITS_PER_WEIGHT["int8" if wide else dtype] * int(np.prod(shape))
    return int(bits / 8)


# ---- one engine -----------------------------------------------------------------------------


def meet(setting: Setting, engine: str, dtype: str) -> tuple[Worker, dict[str, Any]]:
    """Start an engine and warm it up. Return its process and the results that need no turns.

    logits          float32 [ACCURACY_PROMPTS, V], after the last token of each
    peak_rss_bytes  peak memory so far, including the KV cache of a prompt
    """
    folder, size, threads = setting[:3]
    worker = start()
    try:
        ask(worker, engines.load, engine, folder, size, dtype, threads)
        prompts = [random_ids(count) for count in ACCURACY_PROMPTS]
        logits = np.stack([ask(worker, engines.prefill, ids)[1] for ids in prompts])
        ask(worker, engines.decode, random_ids(1), 4)
        peak = ask(worker, engines.peak_rss)
    except WorkerError:
        stop(worker)
        raise
    return worker, {"logits": logits, "peak_rss_bytes": peak}


def seconds_for(worker: Worker, task: Task) -> float:
    """Measure one engine once."""
    ids = random_ids(task.depth)
    if task.kind == "passes":
        drafts = random_ids(PASSES * task.draft).reshape(PASSES, task.draft)
        return ask(worker, engines.passes, ids, drafts)
    if task.kind == "batch":
        prompts = random_ids(task.sequences * task.depth).reshape(task.sequences, task.depth)
        return ask(worker, engines.batch, prompts, task.written)
    if task.kind == "decode":
        return ask(worker, engines.decode, ids, task.written)
    return ask(worker, engines.prefill, ids)[0]


# ---- engines in turns -----------------------------------------------------------------------


def groups(rivals: list[Any], bytes_each: int) -> list[list[Any]]:
    """Split the rivals into groups that, with minigpt, take at most 0.6 of the memory."""
    step = max(1, int(0.6 * (memory_bytes() or 0) / bytes_each) - 1)
    return [rivals[first : first + step] for first in range(0, len(rivals), step)]


def compare(setting: Setting, width: str, result: dict[str, Any]) -> None:
    """Measure all engines of one width; adds to result's `engines` and `missing`."""
    ours, *rivals = WIDTHS[width]
    for group in groups(rivals, weights_bytes(setting.size, width)):
        workers: dict[str, Worker] = {}
        for engine, dtype in [ours, *group]:
            name = f"{engine} {dtype}"
            if name in result["missing"]:
                continue
            log(f"{setting.size}: {name}")
            try:
                workers[name], facts = meet(setting, engine, dtype)
            except WorkerError as reason:
                give_up(name, reason, result)
                continue
            facts["weights_bytes"] = weights_bytes(setting.size, dtype)
            result["engines"].setdefault(name, facts | {"seconds": {}, "ratios": {}})
        for task in setting.tasks:
            log(f"{setting.size}: {task}, rounds: {setting.rounds}")
            kind = TASKS[task].kind
            able = {name: worker for name, worker in workers.items() if does(worker, kind)}
            for name in take_turns(setting, task, able, result):
                stop(workers.pop(name))
        for worker in workers.values():
            stop(worker)


def does(worker: Worker, kind: str) -> bool:
    """Whether an engine has a kind of task."""
    return ask(worker, engines.does, kind)


def take_turns(
    setting: Setting, task: str, workers: dict[str, Worker], result: dict[str, Any]
) -> list[str]:
    """Measure one task; adds to the engines' `seconds` and `ratios`. Returns those that failed."""
    rounds: list[dict[str, float]] = []
    failed: list[str] = []
    for turn in range(-1, setting.rounds):  # round -1 is a warm-up
        order = [name for name in workers if name not in failed]
        shift = turn % max(1, len(order))
        times = {}
        for name in order[shift:] + order[:shift]:
            try:
                times[name] = seconds_for(workers[name], TASKS[task])
            except WorkerError as reason:
                give_up(name, reason, result)
                failed.append(name)
        if turn >= 0:
            rounds.append(times)
    measured = [name for name in workers if name not in failed]
    ours = next((name for name in measured if name.startswith("minigpt")), None)
    for name in measured:
        figures = result["engines"][name]
        figures["seconds"].setdefault(task, []).extend(times[name] for times in rounds)
        if ours and name != ours:
            ratios = [times[name] / times[ours] for times in rounds]
            figures["ratios"][task] = statistics.median(ratios)
    return failed


def give_up(name: str, reason: WorkerError, result: dict[str, Any]) -> None:
    """Record and print that an engine is not measured."""
    log(f"{result['size']}: {name} is left out: {reason}")
    result["engines"].pop(name, None)
    result["missing"][name] = str(reason)


# ---- one size -------------------------------------------------------------------------------


def measure(setting: Setting) -> dict[str, Any]:
    """Measure one size, as the head of this file describes. Returns values for JSON."""
    write_checkpoint(setting.size, setting.folder)
    missing = dict.fromkeys(setting.without, "left out by --without")
    result: dict[str, Any] = {
        "size": setting.size, "engines": {}, "missing": missing, "limits": []
    }  # fmt: skip
    prepare(setting, result)
    # First: this compiles the kernels, whose memory should not count for minigpt below.
    for dtype in WIDTHS:
        for depth in (0, DEPTH):
            log(f"{setting.size}: minigpt bench, {dtype}, depth {depth}")
            try:
                result["limits"].append(run(own_bench, setting, dtype, depth))
            except WorkerError as reason:
                give_up(f"minigpt bench {dtype}", reason, result)
    for width in WIDTHS:
        compare(setting, width, result)
    add_errors(result["engines"])
    return result


def prepare(setting: Setting, result: dict[str, Any]) -> None:
    """Write the files that engines need beside the checkpoint; adds failures to `missing`."""
    for engine, dtype in (pair for pairs in WIDTHS.values() for pair in pairs):
        if engine not in engines.PREPARE or f"{engine} {dtype}" in result["missing"]:
            continue
        log(f"{setting.size}: files for {engine} {dtype}")
        try:
            run(engines.PREPARE[engine], setting.folder, setting.size, dtype)
        except WorkerError as reason:
            give_up(f"{engine} {dtype}", reason, result)


def own_bench(setting: Setting, dtype: str, depth: int) -> dict[str, Any]:
    """Return the result of `minigpt bench --json`, run in this process."""
    from minigpt.benchmark import measure

    folder, size, threads, rounds = setting[:4]
    found = measure(folder, PROMPT, WRITTEN, depth=depth, reps=rounds, dtype=dtype, threads=threads)
    return asdict(found) | {"model": size}


def add_errors(found: dict[str, Any]) -> None:
    """Replace each engine's logits by `logits_error`, if the reference was measured."""
    expected = found.get("transformers f32", {}).get("logits")
    for figures in found.values():
        logits = figures.pop("logits")
        if expected is not None:
            error = abs(logits - expected).max() / abs(expected).max()
            figures["logits_error"] = float(error)


def wrong(results: list[dict[str, Any]]) -> list[str]:
    """Return a line for each dtype in which minigpt's logits are wrong."""
    lines = []
    for result in results:
        for dtype, tolerance in TOLERANCE.items():
            error = result["engines"].get(f"minigpt {dtype}", {}).get("logits_error", 0.0)
            if not error <= tolerance:
                lines.append(
                    f"{result['size']} {dtype}: logits differ by {error:.1e} of their scale; "
                    f"at most {tolerance:.0e} is right"
                )
    return lines


# ---- output --------------------------------------------------------------------------------


def log(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


def rate(figures: dict[str, Any], task: str) -> float:
    """Return tokens per second, the median."""
    return TASKS[task].tokens / statistics.median(figures["seconds"][task])


def has(result: dict[str, Any], task: str) -> bool:
    """Whether any engine was measured in a task."""
    return any(task in figures["seconds"] for figures in result["engines"].values())


def show(results: list[dict[str, Any]]) -> None:
    """Print tokens per second and ratios as text."""
    for result in results:
        tasks = [task for task in TASKS if has(result, task)]
        print(f"\n{result['size']:20}" + "".join(f"{task:>20}" for task in tasks))
        for name, figures in result["engines"].items():
            cells = ""
            for task in tasks:
                if task not in figures["seconds"]:
                    cells += " " * 20
                    continue
                ratio = figures["ratios"].get(task)
                cells += f"{rate(figures, task):12.1f}" + (f" ({ratio:.2f})" if ratio else " " * 7)
            print(f"{name:20}{cells}")
        for limit in result["limits"]:
            print(
                f"decode {limit['dtype']} at depth {limit['depth']}: "
                f"{limit['bandwidth_fraction']:.2f} of a plain read of memory"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="minigpt against other engines")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["111M", "590M"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5, help="of turns (default 5)")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="ENGINE", help='such as "transformers bf16"'
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, for page.py")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    report = {"machine": machine(), "threads": options.threads, "results": results}
    for size in options.sizes:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            setting = Setting(
                Path(folder), size, options.threads, options.rounds, options.without, options.tasks
            )
            results.append(measure(setting))
        if options.json:  # after each size: a later failure loses nothing
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(results)
    problems = wrong(results)
    for problem in problems:
        log(problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
