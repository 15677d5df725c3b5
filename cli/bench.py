"""`minigpt bench`: how fast this machine runs a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .terminal import (
    dtype_option,
    end_at_once_on_interrupt,
    model_option,
    show_line,
    threads_option,
    write,
)

if TYPE_CHECKING:
    from ..benchmark import Result


@click.command(
    short_help="Measure how fast this machine runs a model.",
    epilog="Example: minigpt bench -m cerebras/Cerebras-GPT-111M --dtype bf16 --depth 1900",
)
@model_option
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=512,
    help="Tokens of the prompt that is read, into an empty cache.",
)
@click.option(
    "--gen-tokens", type=click.IntRange(min=1), default=64, help="Tokens that are then made."
)
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    default=0,
    help="Tokens in the cache before the first one is made; reading these is not timed.",
)
@click.option(
    "--reps",
    type=click.IntRange(min=1),
    default=5,
    help="How often everything is measured, after a warm-up; the medians are told.",
)
@dtype_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    source: str,
    prompt_tokens: int,
    gen_tokens: int,
    depth: int,
    reps: int,
    dtype: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measures how fast a model reads a prompt, makes tokens, and how near its memory's limit.

    Making a token reads every weight once. So the same threads also just read memory, and what
    part of that speed the making of tokens reaches is told, too.
    """
    from ..benchmark import measure

    end_at_once_on_interrupt()
    result = measure(source, prompt_tokens, gen_tokens, depth, reps, dtype, threads, show_line)
    show_line("")
    write((json.dumps(asdict(result)) if as_json else _table(result)) + "\n")


def _table(result: Result) -> str:
    """The result for a person: name, number, unit, and what it is of."""
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    prompt = f"a prompt of {result.prompt_tokens} tokens"
    made = f"{result.gen_tokens} tokens, with {result.depth} before them"
    rows = (
        ("load", f"{result.load_s:.2f}", "s", ""),
        ("prefill", f"{result.prefill_tokens_per_s:.1f}", "tokens/s", prompt),
        ("decode", f"{result.decode_tokens_per_s:.1f}", "tokens/s", made),
        ("reads", f"{result.bytes_per_token / 1e6:.1f}", "MB/token", "weights, keys and values"),
        ("memory", f"{result.stream_bytes_per_s / 1e9:.1f}", "GB/s", "read, and nothing else done"),
        ("used", f"{100 * result.bandwidth_fraction:.1f}", "%", "of that, by decode"),
        ("peak", f"{result.peak_rss_bytes / 1e6:.1f}", "MB", "resident, all in all"),
    )
    lines = [f"{name:<8} {number:>8} {unit:<8}  {of}".rstrip() for name, number, unit, of in rows]
    head = f"{result.model}: {result.dtype}, {threads}, median of {result.reps}"
    return "\n".join([head, *lines])
