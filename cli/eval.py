"""`minigpt eval`: perplexity of texts, and accuracy on task files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import click

from ..errors import InputError
from ..texts import name_of
from .terminal import (
    check_stdin,
    chosen_tokenizer,
    complete_source,
    dtype_option,
    end_at_once_on_interrupt,
    fail,
    files_argument,
    model_option,
    progress_line,
    show_line,
    special_option,
    threads_option,
    tokenizer_option,
    write,
)

if TYPE_CHECKING:
    from ..evaluation.perplexity import Perplexity
    from ..evaluation.run import AverageAccuracy, FileProgress, FileResult, Result

# Copies of evaluation.run.MAX_SHOTS and SEED, which a test compares: --help does not load NumPy.
MAX_SHOTS = 1000
SEED = 1234

window_option = click.option(
    "--window",
    type=click.IntRange(min=1),
    help="Maximum number of tokens that a token is predicted from. Default: the model's context.",
)
stride_option = click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens from the beginning of one window to that of the next, at most WINDOW. "
    "Default: half of it.",
)


@click.command(
    "eval",
    short_help="Measure a model: perplexity of texts, accuracy on task files.",
    epilog="Example: minigpt eval -m cerebras/Cerebras-GPT-111M --dtype bf16 book.txt piqa.jsonl",
)
@files_argument("files", "[FILE]...")
@model_option
@window_option
@stride_option
@click.option(
    "--rolling",
    is_flag=True,
    help="Read long texts in windows without overlap, as the lm-evaluation-harness does, "
    "and report the perplexity per byte and per word, too.",
)
@click.option(
    "--last-word/--no-last-word",
    default=None,
    help='Whether to predict the last word of each {"text": ...}, as LAMBADA is published. '
    "Default: for files with lambada in their name.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Take only the first N questions or texts of each task file.",
)
@click.option(
    "--shots",
    type=click.IntRange(0, MAX_SHOTS),
    default=0,
    metavar="N",
    help="Put N solved examples before each question. Default: 0.",
)
@click.option(
    "--examples",
    metavar="FILE",
    shell_complete=complete_source,
    help="The task file that the examples of --shots are drawn from. Default: that of the "
    "questions, each without itself.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=SEED,
    show_default=True,
    help="Seed of the examples' random choice.",
)
@click.option(
    "--output",
    metavar="FILE",
    shell_complete=complete_source,
    help="Write a JSON object a line for each question or text: its ln p, its tokens, "
    "and what was chosen.",
)
@special_option
@tokenizer_option
@dtype_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    files: tuple[str, ...],
    source: str,
    window: int | None,
    stride: int | None,
    rolling: bool,
    last_word: bool | None,
    limit: int | None,
    shots: int,
    examples: str | None,
    seed: int,
    output: str | None,
    special: bool,
    tokenizer: str | None,
    dtype: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Score each FILE, a text or a task file; standard input for - or without a FILE.

    Of a text, every token is predicted from the tokens before it, and the first from the token that
    begins a text. Printed are the perplexity, exp of the mean of -ln p over the tokens, and the
    bits per byte, the sum of -log2 p divided by the bytes. A text longer than WINDOW is read in
    overlapping windows that begin STRIDE tokens apart: every token is predicted once, from at least
    WINDOW - STRIDE + 1 tokens where there are as many before it. That takes WINDOW / STRIDE passes
    over the text.

    A FILE named .jsonl, .ndjson or .json is a task file of JSON objects, one a line or in an array.
    Objects with "text" are texts, scored each on its own. Those with "context" and "continuation"
    are passages and their last words: accuracy is the fraction that greedy decoding writes exactly.
    Those with "query", "choices" and "gold" are multiple-choice questions: accuracy is the fraction
    for which the choice of the highest ln p, by sum, per token, per byte, and per character, is the
    right one. The forms in which LAMBADA, HellaSwag, PIQA, WinoGrande, ARC, OpenBookQA, BLiMP and
    WikiText are published are read, too.

    A FILE that cannot be scored is reported, the others are scored, and the exit code is 1.
    """
    check_stride(window, stride)
    if rolling and stride is not None:
        raise click.UsageError("--rolling has no --stride: its windows do not overlap.")
    if not files or "-" in files:
        check_stdin("-" if files else None, "FILE")
    end_at_once_on_interrupt()

    from ..evaluation.run import evaluate_files

    failed = []

    def on_error(_: str, error: InputError) -> None:
        fail(str(error), 1)
        failed.append(error)

    results = evaluate_files(
        source,
        files or ("-",),
        tokenizer=chosen_tokenizer(tokenizer),
        dtype=dtype,
        threads=threads,
        window=window,
        stride=stride,
        rolling=rolling,
        last_word=last_word,
        limit=limit,
        shots=shots,
        examples=examples,
        seed=seed,
        allow_special=special,
        output=output,
        on_error=on_error,
        progress=file_progress(),
    )
    show_line("")
    if results:
        write((_json if as_json else _tables)(source, results) + "\n")
    if failed:
        raise click.exceptions.Exit(1)


def check_stride(window: int | None, stride: int | None) -> None:
    """Raises UsageError for a stride greater than the window, where both are given."""
    if window and stride and stride > window:
        raise click.UsageError(
            f"Invalid value for '--stride': {stride} is more than the --window, {window}.",
            click.get_current_context(),
        )


def file_progress() -> FileProgress:
    """A callback that shows the progress of each file as a line on stderr."""
    lines: dict[str, Callable[[int, int], None]] = {}

    def progress(name: str | None, done: int, total: int) -> None:
        if name is None:
            show_line("loading")
        elif done == 0:
            lines[name] = progress_line(label(name), tokens_per_s)
        else:
            lines[name](done, total)

    return progress


def tokens_per_s(rate: float) -> str:
    """812.3 → "812 tokens/s"."""
    return f"{rate:.0f} tokens/s"


def label(file: str) -> str:
    """The name of a file as it can be printed, whatever bytes it consists of."""
    return click.format_filename(name_of(file))


# ---- the results ----


def _json(source: str, results: list[FileResult]) -> str:
    """One object: the perplexity of all texts together, and in `files` the result of each file.

    `average` is the mean accuracy of several files of questions.
    """
    files = [{"file": label(file), **asdict(result)} for file, result in results]
    total = _total(results)
    head = asdict(total) if total else {"dtype": results[0].result.dtype}
    average = _average(results)
    tail = {"average": asdict(average)} if average else {}
    return json.dumps({"model": source, **head, **tail, "files": files})


def _total(results: list[FileResult]) -> Perplexity | None:
    """The perplexity of all texts together; None where there are none."""
    from ..evaluation.perplexity import combined

    texts = _perplexities(results)
    return combined(texts) if texts else None


def _average(results: list[FileResult]) -> AverageAccuracy | None:
    """The average accuracy; None for fewer than two files of questions."""
    from ..evaluation.run import average_accuracy

    average = average_accuracy(results)
    return average if average and average.files > 1 else None


def _perplexities(results: list[FileResult]) -> list[Perplexity]:
    from ..evaluation.perplexity import Perplexity

    return [result for _, result in results if isinstance(result, Perplexity)]


def _tables(source: str, results: list[FileResult]) -> str:
    """The results for a person: a table for each kind of file."""
    rows = [(label(file), *_row(result)) for file, result in results]
    head = f"{source}: {results[0].result.dtype}"
    if total := _total(results):
        if total.method == "rolling":
            head += f", rolling windows of {total.window}"
        else:
            head += f", window {total.window}, stride {total.stride}"
        if len(_perplexities(results)) > 1:
            rows.append(("together", *_row(total)))
    width = max(len(name) for name in [*(kind for _, (kind, _), _ in rows), *(r[0] for r in rows)])
    tables: dict[Titles, list[str]] = {}
    for name, titles, cells in rows:
        lines = tables.setdefault(titles, [f"{titles.kind:<{width}} {titles.cells}"])
        lines.append(f"{name:<{width}} {cells}")
    blocks = ["\n".join(lines) for lines in tables.values()]
    if average := _average(results):
        right = _percent(average.accuracy, average.standard_error).strip()
        blocks.append(f"average of {average.files} files: {right} right by sum")
    return f"{head}\n" + "\n\n".join(blocks)


class Titles(NamedTuple):
    """The first line of a table: the kind of the files in it, and the names of the numbers."""

    kind: str
    cells: str


TEXT_TITLES = Titles("text", f"{'tokens':>9} {'perplexity':>11} {'bits/byte':>10} {'tokens/s':>9}")
ROLLING_TITLES = Titles(
    "text, rolling",
    f"{'tokens':>9} {'perplexity':>11} {'per byte':>11} {'per word':>11} {'bits/byte':>10} "
    f"{'tokens/s':>9}",
)
WORD_TITLES = Titles(
    "last word", f"{'questions':>9} {'right':>16} {'perplexity':>11} {'tokens/s':>9}"
)
CHOICE_TITLES = Titles(
    "choice",
    f"{'questions':>9} {'right by sum':>16} {'per token':>16} {'per byte':>16} "
    f"{'per character':>16} {'tokens/s':>9}",
)


def _row(result: Result) -> tuple[Titles, str]:
    """The titles of the table that a result belongs to, and its cells there."""
    from ..evaluation.perplexity import Perplexity
    from ..evaluation.tasks import LastWordAccuracy

    speed = f"{result.tokens_per_s:>9.1f}"
    if isinstance(result, Perplexity):
        size = f"{result.tokens:>9} {result.perplexity:>11.4f}"
        bits = f"{result.bits_per_byte:>10.4f}"
        if result.method == "sliding":
            return TEXT_TITLES, f"{size} {bits} {speed}"
        per_word = _number(result.word_perplexity)
        per_byte = _number(result.byte_perplexity)
        return ROLLING_TITLES, f"{size} {per_byte} {per_word} {bits} {speed}"
    right = _percent(result.accuracy, result.standard_error)
    if isinstance(result, LastWordAccuracy):
        perplexity = _number(result.perplexity)
        return WORD_TITLES, f"{result.questions:>9} {right} {perplexity} {speed}"
    others = (
        _percent(result.accuracy_per_token, result.standard_error_per_token),
        _percent(result.accuracy_per_byte, result.standard_error_per_byte),
        _percent(result.accuracy_per_character, result.standard_error_per_character),
    )
    return CHOICE_TITLES, f"{result.questions:>9} {right} {' '.join(others)} {speed}"


def _number(value: float | None) -> str:
    """A perplexity in 11 characters; "-" for one that overflows."""
    return f"{'-' if value is None else format(value, '.4f' if value < 1e6 else '.4g'):>11}"


def _percent(accuracy: float, error: float | None) -> str:
    """(0.523, 0.0117) → " 52.30 ±  1.17 %"; of one question there is no error."""
    deviation = "-" if error is None else f"{100 * error:.2f}"
    return f"{100 * accuracy:>6.2f} ± {deviation:>5} %"
