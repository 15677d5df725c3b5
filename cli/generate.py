"""`minigpt generate`: continues a text."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from ..errors import short_repr
from ..texts import PlainTokens
from .terminal import (
    Text,
    dtype_option,
    end_at_once_on_interrupt,
    end_line,
    is_terminal,
    model_option,
    note,
    read_text,
    special_option,
    threads_option,
    tokenizer_option,
    verbose_option,
    write,
)

if TYPE_CHECKING:
    from .. import GPTModel, GPTTokenizer


class FiniteRange(click.FloatRange):
    """A range of floats that excludes inf and nan; click's own comparisons let nan pass."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return float(number)


@click.command(
    short_help="Continue a text.",
    epilog='Example: minigpt generate "Once upon a time" -n 100 --top-p 0.9 --seed 7',
)
@click.argument("prompts", nargs=-1, metavar="[PROMPT]", type=Text(may_be_empty=True))
@model_option
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=0),
    default=64,
    help="Maximum number of tokens to generate.",
)
@click.option(
    "--temperature",
    type=FiniteRange(min=0),
    default=0.8,
    help="Divides the logits: below 1 sharpens, above 1 flattens the distribution; "
    "0 always picks the most likely token.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=0),
    metavar="K",
    help="Sample from the K most likely tokens; 0: from all.",
)
@click.option(
    "--top-p",
    type=FiniteRange(min=0, max=1, min_open=True),
    metavar="P",
    help="Sample from the fewest most likely tokens whose probabilities add up to at least P.",
)
@click.option(
    "--min-p",
    type=FiniteRange(min=0, max=1),
    metavar="P",
    help="Sample from the tokens at least P times as likely as the most likely one.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    help="Seed of the random numbers: the same seed gives the same text. Default: a new one, "
    "which --verbose and --json report.",
)
@click.option(
    "--stop",
    type=Text(),
    multiple=True,
    help="End before this text, or at this special token. May be given several times.",
)
@special_option
@tokenizer_option
@dtype_option
@threads_option
@click.option(
    "--echo",
    is_flag=True,
    help="Print the prompt before its continuation, as is done on a terminal for PROMPT.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object at the end, prompt included."
)
@verbose_option
def generate(
    prompts: tuple[str, ...],
    source: str,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    special: bool,
    tokenizer: str | None,
    dtype: str,
    threads: int | None,
    echo: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Continue PROMPT, or the text on standard input if PROMPT is - or absent.

    Standard output receives the continuation alone, token by token; a terminal also gets PROMPT
    before it and a newline at the end. The prompt is used unchanged, with any newline at its end;
    an empty one begins a text.
    """
    prompt = _only(prompts)
    text = read_text(prompt, "PROMPT")
    started = perf_counter()
    chosen, model = _load(source, tokenizer or source, dtype, threads)
    if not special:
        PlainTokens(chosen.all_special_tokens).warn_of(text, "the prompt")
    ids = chosen.encode(text, allow_special=special)
    loaded = perf_counter()
    end_at_once_on_interrupt()

    from ..generation.text_stream import TextStream

    seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    stream = TextStream(
        model,
        chosen,
        ids,
        stop,
        max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
    )
    if stream.unused:
        names = ", ".join("--" + name.replace("_", "-") for name in stream.unused)
        note(f"temperature 0 takes the most likely token, with or without {names}", verbose)
    stamps = [loaded]
    chunks = _stamped(stream, stamps)
    if as_json:
        result = {
            "model": source,
            "prompt": text,
            "text": "".join(chunks),
            "ids": stream.ids,
            "reason": stream.reason,
            "prompt_tokens": len(ids),
            "new_tokens": len(stream.ids),
            "seed": seed,
            **_timings(started, stamps, len(stream.ids)),
        }
        write(json.dumps(result) + "\n")
    else:
        with_prompt = echo or (prompt not in (None, "-") and is_terminal(sys.stdout))
        _print(chunks, text if with_prompt else "")
    if stream.reason == "context":
        note(f"context is full: stopped at {model.config.n_positions} tokens in all", verbose)
    timings = _timings(started, stamps, len(stream.ids))
    facts = {"prompt_tokens": len(ids), "new_tokens": len(stream.ids), "seed": seed, **timings}
    note(", ".join(f"{name} {value}" for name, value in facts.items()), verbose)


def _only(prompts: tuple[str, ...]) -> str | None:
    """The only prompt, None if there is none; several are a text that the shell has cut."""
    if len(prompts) > 1:
        text = short_repr(" ".join(prompts))[1:-1]
        raise click.UsageError(
            f'PROMPT is one argument, and there are {len(prompts)}; quote it: "{text}"',
            click.get_current_context(),
        )
    return prompts[0] if prompts else None


def _load(
    source: str, tokenizer_source: str, dtype: str, threads: int | None
) -> tuple[GPTTokenizer, GPTModel]:
    """Load the tokenizer, then the model: a wrong source fails before Numba is imported."""
    from .. import GPTTokenizer
    from ..source import open_source

    opened = open_source(source)
    own = tokenizer_source == source
    tokenizer = GPTTokenizer.from_pretrained(opened if own else tokenizer_source)

    from .. import GPTModel

    return tokenizer, GPTModel.from_pretrained(opened, dtype=dtype, threads=threads)


def _print(chunks: Iterable[str], prefix: str) -> None:
    """Write `prefix` and each chunk as soon as it is generated.

    The prefix comes with the first chunk, after a note that kernels are compiled.
    """
    for chunk in chunks:
        write(prefix + chunk)
        prefix = ""
    write(prefix)  # where nothing was generated
    end_line()


def _stamped(chunks: Iterable[str], stamps: list[float]) -> Iterator[str]:
    """Yield the chunks, one per token, and append the time of each to `stamps`."""
    for chunk in chunks:
        stamps.append(perf_counter())
        yield chunk


def _timings(started: float, stamps: list[float], new_tokens: int) -> dict[str, float | None]:
    """Seconds to load, seconds to the first token, and tokens per second after it.

    started     when loading began
    stamps      when it ended, then the time of each chunk
    new_tokens  the number of tokens generated
    """
    timed = new_tokens - 1  # the first token includes the prefill
    first, last = stamps[min(1, len(stamps) - 1)], stamps[-1]
    return {
        "load_s": round(stamps[0] - started, 4),
        "first_token_s": round(first - stamps[0], 4),
        "tokens_per_s": round(timed / (last - first), 2) if timed > 0 and last > first else None,
    }
