"""`minigpt eval`: how well a model knows texts, and how often it is right."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

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
    from .. import GPTModel, GPTTokenizer
    from ..evaluation.perplexity import Perplexity, Progress
    from ..evaluation.task_files import Choice, LastWord, Lines
    from ..evaluation.tasks import ChoiceAccuracy, WordAccuracy

    Result: TypeAlias = Perplexity | WordAccuracy | ChoiceAccuracy

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
    short_help="Tell how well a model knows texts, and how often it is right.",
    epilog="Example: minigpt eval -m cerebras/Cerebras-GPT-111M --dtype bf16 book.txt piqa.jsonl",
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
    """Predicts each token of each FILE, a text in UTF-8, from those before it; or does a task.

    Without a FILE, or for -, the text on standard input is taken.

    Told are the perplexity, which is e to the mean of -ln p over the tokens, and the bits per byte,
    which are the sum of -log2 p over the bytes. The first token of a text is not predicted. Longer
    texts are read in windows: each token is predicted once, from at least WINDOW - STRIDE + 1
    others, as soon as there are so many before it; reading takes WINDOW / STRIDE passes.

    A FILE whose name ends in .jsonl holds JSON objects, one a line. Those with "text" are texts,
    each of its own. Those with "context" and "continuation" ask for the last word of a passage, as
    LAMBADA does: told is how often greedy decoding gives exactly that word. Those with "query",
    "choices" and "gold" ask which of several answers is right, as PIQA and ARC do: told is how
    often it is the one of the greatest ln p, of the greatest ln p per token, and per byte.
    """
    check_stride(window, stride)
    inputs = [_read(file) for file in files or (None,)]

    from .. import GPTTokenizer

    tokenizer = GPTTokenizer.from_pretrained(source)
    works = [(name, _tokenised(tokenizer, lines)) for name, lines in inputs]
    end_at_once_on_interrupt()
    show_line("loading")

    from .. import GPTModel

    model = GPTModel.from_pretrained(source, dtype=dtype, threads=threads)
    results = [
        (name, _result(model, tokenizer, name, work, window, stride)) for name, work in works
    ]
    write((_json if as_json else _tables)(source, results) + "\n")


class Tokens(NamedTuple):
    """A text's tokens, and its length in UTF-8."""

    ids: list[int]
    text_bytes: int


def _read(file: str | None) -> tuple[str, Lines]:
    """(name, what is in it) of a file, or of stdin for - or None."""
    from ..evaluation.task_files import Document, read_lines
    from ..texts import holds_objects

    if file is not None and holds_objects(file):
        return click.format_filename(file), read_lines(file)
    name, text = read_named(file)
    return name, [Document(name, text)]


def _tokenised(tokenizer: GPTTokenizer, lines: Lines) -> list[Tokens] | Lines:
    """Texts as tokens, so that too short a one is found before a model is loaded; tasks as is."""
    from ..evaluation.task_files import Document

    texts = [line for line in lines if isinstance(line, Document)]
    tokens = [Tokens(tokenizer.encode(text), len(text.encode())) for _, text in texts]
    for text, found in zip(texts, tokens, strict=True):
        check_enough(found.ids, text.where)
    return tokens or lines


def _result(
    model: GPTModel,
    tokenizer: GPTTokenizer,
    name: str,
    work: list[Tokens] | Lines,
    window: int | None,
    stride: int | None,
) -> Result:
    """The result for one file; a line on stderr tells how far it is."""
    from ..evaluation.task_files import Choice, LastWord
    from ..evaluation.tasks import choices, last_words

    progress = progress_line(name, tokens_per_s)
    result: Result
    if isinstance(work[0], LastWord):
        result = last_words(model, tokenizer, cast("list[LastWord]", work), progress)
    elif isinstance(work[0], Choice):
        result = choices(model, tokenizer, cast("list[Choice]", work), progress)
    else:
        result = _perplexity(model, cast("list[Tokens]", work), window, stride, progress)
    show_line("")
    return result


def _perplexity(
    model: GPTModel,
    texts: list[Tokens],
    window: int | None,
    stride: int | None,
    progress: Progress,
) -> Perplexity:
    """That of all texts together, each of its own."""
    from ..evaluation.perplexity import perplexity, together

    total = sum(len(text.ids) - 1 for text in texts)
    before, results = 0, []
    for ids, text_bytes in texts:

        def tell(done: int, _: int, before: int = before) -> None:
            progress(before + done, total)

        results.append(perplexity(model, ids, text_bytes, window, stride, tell))
        before += len(ids) - 1
    return together(results)


def _json(source: str, results: list[tuple[str, Result]]) -> str:
    """One object: what holds for all texts together, and in `files` for each file."""
    files = [{"file": name, **asdict(result)} for name, result in results]
    total = _total(results)
    head = asdict(total) if total else {"dtype": results[0][1].dtype}
    return json.dumps({"model": source, **head, "files": files})


def _total(results: list[tuple[str, Result]]) -> Perplexity | None:
    """What was found of all texts together; None where there are only tasks."""
    from ..evaluation.perplexity import Perplexity, together

    texts = [result for _, result in results if isinstance(result, Perplexity)]
    return together(texts) if texts else None


def _tables(source: str, results: list[tuple[str, Result]]) -> str:
    """The results for a person: a table for each kind there is."""
    from ..evaluation.perplexity import Perplexity

    total = _total(results)
    head = f"{source}: {results[0][1].dtype}"
    if total:
        head += f", window {total.window}, stride {total.stride}"
        if sum(isinstance(found, Perplexity) for _, found in results) > 1:
            results = [*results, ("together", total)]
    tables: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, found in results:
        titles, cells = _line(found)
        tables.setdefault(titles, [titles]).append((name, cells))
    width = max(len(name) for lines in tables.values() for name, _ in lines)
    return f"{head}\n" + "\n\n".join(
        "\n".join(f"{name:<{width}} {cells}" for name, cells in lines) for lines in tables.values()
    )


TEXT_TITLES = ("text", f"{'tokens':>9} {'perplexity':>11} {'bits/byte':>10} {'tokens/s':>9}")
WORD_TITLES = ("last word", f"{'questions':>9} {'right':>16} {'tokens/s':>9}")
CHOICE_TITLES = (
    "choice",
    f"{'questions':>9} {'right by sum':>16} {'per token':>16} {'per byte':>16} {'tokens/s':>9}",
)


def _line(found: Result) -> tuple[tuple[str, str], str]:
    """The titles of the table a result stands in, and its line there."""
    from ..evaluation.perplexity import Perplexity
    from ..evaluation.tasks import WordAccuracy

    speed = f"{found.tokens_per_s:>9.1f}"
    if isinstance(found, Perplexity):
        bits = f"{found.bits_per_byte:>10.4f}"
        return TEXT_TITLES, f"{found.tokens:>9} {found.perplexity:>11.4f} {bits} {speed}"
    right = _percent(found.accuracy, found.standard_error)
    if isinstance(found, WordAccuracy):
        return WORD_TITLES, f"{found.questions:>9} {right} {speed}"
    per_token = _percent(found.accuracy_per_token, found.standard_error_per_token)
    per_byte = _percent(found.accuracy_per_byte, found.standard_error_per_byte)
    return CHOICE_TITLES, f"{found.questions:>9} {right} {per_token} {per_byte} {speed}"


def _percent(accuracy: float, error: float) -> str:
    """(0.523, 0.0117) → " 52.30 ±  1.17 %"."""
    return f"{100 * accuracy:>6.2f} ± {100 * error:>5.2f} %"


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
