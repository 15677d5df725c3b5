"""`minigpt bench`: how fast this machine runs a model."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .terminal import (
    Text,
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
    show_default="512, or the context",
    help="Length of the prompt in the prefill test, which starts with an empty cache.",
)
@click.option(
    "--gen-tokens",
    type=click.IntRange(min=1),
    show_default="64, or what is left of the context",
    help="Number of tokens to generate in the decode test.",
)
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    default=0,
    help="Tokens in the cache before the decode test; filling it is not timed.",
)
@click.option(
    "--reps",
    type=click.IntRange(min=1),
    default=5,
    help="Number of measurements after a warm-up; the medians are reported.",
)
@click.option(
    "--tokenizer",
    type=Text(),
    expose_value=False,
    metavar="SOURCE",
    help="Taken, as every command with -m takes it, and not read: no text is measured.",
)
@dtype_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    source: str,
    prompt_tokens: int | None,
    gen_tokens: int | None,
    depth: int,
    reps: int,
    dtype: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how fast a model reads a prompt (prefill) and generates tokens (decode).

    Decoding reads every weight once per token: memory bandwidth is its limit. The same threads
    also time a plain read of memory, and the report gives the fraction of it that decode reaches.
    """
    from ..benchmark import measure

    end_at_once_on_interrupt()
    result = measure(source, prompt_tokens, gen_tokens, depth, reps, dtype, threads, show_line)
    show_line("")
    write((json.dumps(asdict(result)) if as_json else _table(result)) + "\n")


def _table(result: Result) -> str:
    """Format the result as lines of name, number, unit and meaning."""
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
