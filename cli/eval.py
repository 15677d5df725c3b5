"""`minigpt eval`: how well a model knows texts."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..errors import InputError
from .terminal import (
    STDIN,
    dtype_option,
    end_at_once_on_interrupt,
    model_option,
    progress_line,
    read_file,
    read_text,
    show_line,
    threads_option,
    write,
)

if TYPE_CHECKING:
    from .. import GPTModel
    from ..evaluate import Perplexity

window_option = click.option(
    "--window",
    type=click.IntRange(min=1),
    help="The most tokens that a token is predicted from. Default: the model's context.",
)
stride_option = click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens from the beginning of a window to that of the next, WINDOW at most. "
    "Default: half of it.",
)


@click.command(
    "eval",
    short_help="Tell how well a model knows texts: perplexity, bits per byte.",
    epilog="Example: minigpt eval -m cerebras/Cerebras-GPT-111M --dtype bf16 book.txt",
)
@click.argument("files", nargs=-1, metavar="[FILE]...")
@model_option
@window_option
@stride_option
@dtype_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    files: tuple[str, ...],
    source: str,
    window: int | None,
    stride: int | None,
    dtype: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Predicts each token of each FILE, a text in UTF-8, from those before it.

    Without a FILE, or for -, the text on standard input is taken.

    Told are the perplexity, which is e to the mean of -ln p over the tokens, and the bits per byte,
    which are the sum of -log2 p over the bytes. The first token of a text is not predicted. Longer
    texts are read in windows: each token is predicted once, from at least WINDOW - STRIDE + 1
    others, as soon as there are so many before it; reading takes WINDOW / STRIDE passes.
    """
    check_stride(window, stride)
    texts = [read_named(file) for file in files or (None,)]

    from .. import GPTTokenizer

    tokenizer = GPTTokenizer.from_pretrained(source)
    tokens = [tokenizer.encode(text) for _, text in texts]
    for (name, _), ids in zip(texts, tokens, strict=True):
        check_enough(ids, name)
    end_at_once_on_interrupt()
    show_line("loading")

    from .. import GPTModel

    model = GPTModel.from_pretrained(source, dtype=dtype, threads=threads)
    results = [
        (name, _score(model, name, text, ids, window, stride))
        for (name, text), ids in zip(texts, tokens, strict=True)
    ]
    write((_json if as_json else _table)(source, results) + "\n")


def _score(
    model: GPTModel, name: str, text: str, ids: list[int], window: int | None, stride: int | None
) -> Perplexity:
    """The result for one text; a line on stderr tells how far it is."""
    from ..evaluate import perplexity

    progress = progress_line(name, tokens_per_s)
    result = perplexity(model, ids, len(text.encode()), window, stride, progress)
    show_line("")
    return result


def _json(source: str, results: list[tuple[str, Perplexity]]) -> str:
    """One object: what holds for all files together, and in `files` for each."""
    from ..evaluate import together

    files = [{"file": name, **asdict(result)} for name, result in results]
    total = asdict(together([result for _, result in results]))
    return json.dumps({"model": source, **total, "files": files})


def _table(source: str, results: list[tuple[str, Perplexity]]) -> str:
    """The results for a person: a line for each file, and one for all where there are several."""
    from ..evaluate import together

    total = together([result for _, result in results])
    if len(results) > 1:
        results = [*results, ("together", total)]
    width = max(len("text"), *(len(name) for name, _ in results))
    lines = [
        f"{source}: {total.dtype}, window {total.window}, stride {total.stride}",
        f"{'text':<{width}} {'tokens':>9} {'perplexity':>11} {'bits/byte':>10} {'tokens/s':>9}",
    ]
    for name, found in results:
        lines.append(
            f"{name:<{width}} {found.tokens:>9} {found.perplexity:>11.4f} "
            f"{found.bits_per_byte:>10.4f} {found.tokens_per_s:>9.1f}"
        )
    return "\n".join(lines)


def tokens_per_s(rate: float) -> str:
    """812.3 → "812 tokens/s"."""
    return f"{rate:.0f} tokens/s"


def check_stride(window: int | None, stride: int | None) -> None:
    """Raises UsageError where both are given and do not go together."""
    if window and stride and stride > window:
        raise click.UsageError(
            f"Invalid value for '--stride': {stride} is more than the --window, {window}.",
            click.get_current_context(),
        )


def read_named(file: str | None) -> tuple[str, str]:
    """(name, text) of a file, or of stdin for - or None."""
    if file in (None, "-"):
        return STDIN, read_text(file, "FILE")
    text = read_file(str(file))
    return click.format_filename(str(file)), text  # which can be shown, whatever bytes it is of


def check_enough(ids: list[int], name: str) -> None:
    """Raises InputError for a text that leaves no token to predict."""
    if len(ids) < 2:
        raise InputError(
            f"{name}: {'1 token' if ids else 'empty'}; a text needs at least 2 tokens, "
            "as the first is not predicted"
        )
