"""`minigpt generate`: continues a text."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .terminal import (
    Text,
    dtype_option,
    end_at_once_on_interrupt,
    end_line,
    model_option,
    note,
    read_text,
    threads_option,
    verbose_option,
    write,
)

if TYPE_CHECKING:
    from .. import GPTModel, GPTTokenizer


class FiniteRange(click.FloatRange):
    """A range of floats that nan, which compares with nothing, and inf are not in."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return float(number)


@click.command(short_help="Continue a text.")
@click.argument("prompt", required=False, type=Text())
@model_option
@click.option(
    "-n", "--max-tokens", type=click.IntRange(min=0), default=64, help="Tokens to make at most."
)
@click.option(
    "--temperature",
    type=FiniteRange(min=0),
    default=0.8,
    help="Below 1 likelier, above 1 stranger; 0 always takes the likeliest token.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Choose among the K likeliest tokens.")
@click.option(
    "--top-p",
    type=FiniteRange(min=0, max=1, min_open=True),
    help="Choose among the likeliest tokens that together have this probability.",
)
@click.option(
    "--min-p",
    type=FiniteRange(min=0, max=1),
    help="Choose among tokens at least this fraction as likely as the likeliest.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    help="The same seed gives the same text. Default: a new one; --verbose and --json tell it.",
)
@click.option(
    "--stop", type=Text(), multiple=True, help="End before this text. Can be given several times."
)
@dtype_option
@threads_option
@click.option("--echo", is_flag=True, help="Print the prompt before its continuation.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object at the end, prompt included."
)
@verbose_option
def generate(
    prompt: str | None,
    source: str,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    dtype: str,
    threads: int | None,
    echo: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Continues PROMPT, or the text on standard input where PROMPT is - or absent.

    The continuation alone goes to standard output, as it comes; only on a terminal a newline
    follows. The prompt is taken as it is, a newline at its end included.
    """
    text = read_text(prompt, "PROMPT")
    if not text:
        raise InputError("standard input: empty; a prompt needs at least one character")
    started = perf_counter()
    tokenizer, model = _load(source, dtype, threads, verbose)
    ids = tokenizer.encode(text)
    loaded = perf_counter()
    end_at_once_on_interrupt()

    from ..generation.text_stream import TextStream

    seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    stream = TextStream(
        model,
        tokenizer,
        ids,
        stop,
        max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
    )
    stamps = [loaded]
    pieces = _stamped(stream, stamps)
    if as_json:
        result = {
            "model": source,
            "prompt": text,
            "text": "".join(pieces),
            "ids": stream.ids,
            "reason": stream.reason,
            "prompt_tokens": len(ids),
            "new_tokens": len(stream.ids),
            "seed": seed,
            **_timings(started, stamps, len(stream.ids)),
        }
        write(json.dumps(result) + "\n")
    else:
        _show(pieces, text if echo else "")
    if stream.reason == "context":
        note(f"context is full: stopped at {model.config.n_positions} tokens in all", verbose)
    timings = _timings(started, stamps, len(stream.ids))
    facts = {"prompt_tokens": len(ids), "new_tokens": len(stream.ids), "seed": seed, **timings}
    note(", ".join(f"{name} {value}" for name, value in facts.items()), verbose)


def _load(
    source: str, dtype: str, threads: int | None, verbose: bool
) -> tuple[GPTTokenizer, GPTModel]:
    """The tokenizer first: where the source is wrong, that is told before Numba is loaded."""
    from .. import GPTTokenizer

    tokenizer = GPTTokenizer.from_pretrained(source)

    from .. import GPTModel
    from ..kernels.jit import must_compile

    model = GPTModel.from_pretrained(source, dtype=dtype, threads=threads)
    if must_compile():
        note("compiling the kernels for this processor takes some ten seconds", verbose)
    return tokenizer, model


def _show(pieces: Iterable[str], before: str) -> None:
    """Writes the pieces as they come."""
    write(before)
    for piece in pieces:
        write(piece)
    end_line()


def _stamped(pieces: Iterable[str], stamps: list[float]) -> Iterator[str]:
    """The pieces, one per token, with the time of each added to `stamps`."""
    for piece in pieces:
        stamps.append(perf_counter())
        yield piece


def _timings(started: float, stamps: list[float], new_tokens: int) -> dict[str, float | None]:
    """Seconds to load, seconds to the first token, and tokens per second after it.

    `stamps` holds the time when the model was loaded, then that of each piece.
    """
    timed = new_tokens - 1  # the first one's time is that of reading the prompt
    first, last = stamps[min(1, len(stamps) - 1)], stamps[-1]
    return {
        "load_s": round(stamps[0] - started, 4),
        "first_token_s": round(first - stamps[0], 4),
        "tokens_per_s": round(timed / (last - first), 2) if timed > 0 and last > first else None,
    }
