"""Evaluation of files in one call: read them, tokenize, load the model, score.

    for file, result in evaluate_files("cerebras/Cerebras-GPT-111M", ["book.txt", "piqa.jsonl"]):
        print(file, result)
    compare_on_file(folder, folder, "book.txt", dtype_b="int4").kl_mean

All files are read and checked before a model is loaded, so a wrong name fails at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ..api import GPTModel
from ..arguments import (
    check_callable,
    check_tokenizer,
    checked_bool,
    checked_count,
    checked_file_name,
    checked_file_names,
    checked_integer,
    checked_threads,
)
from ..checkpoint.atomic import replacing
from ..errors import InputError, warn
from ..source import ModelSource, open_source
from ..texts import PlainTokens, check_files, name_of
from ..tokenizer.tokenizer import GPTTokenizer
from .files import (
    Content,
    Options,
    Text,
    common_texts,
    empty_file_error,
    read_content,
    read_pool,
    tokenized,
)
from .perplexity import (
    Comparison,
    Perplexity,
    Progress,
    Windows,
    combined,
    compare_texts,
    min_tokens,
    perplexity,
)
from .task_files import LastWord, Question
from .tasks import (
    LastWordAccuracy,
    MultipleChoiceAccuracy,
    Score,
    chosen_by,
    last_word_result,
    multiple_choice_result,
    score_questions,
)

MAX_SHOTS = 1000
SEED = 1234  # of the lm-evaluation-harness for examples

Source: TypeAlias = str | os.PathLike[str] | ModelSource  # a folder, a GGUF file, or a hub id
File: TypeAlias = str | os.PathLike[str]
Result: TypeAlias = Perplexity | LastWordAccuracy | MultipleChoiceAccuracy
# Called with (name, tokens done, tokens in all) of a file; with (name, 0, 0) before it is scored,
# and with (None, 0, 0) before a model is loaded.
FileProgress: TypeAlias = Callable[[str | None, int, int], None]
OnError: TypeAlias = Callable[[str, InputError], None]
Item: TypeAlias = dict[str, Any]  # what `output` says of a question or document
T = TypeVar("T")


class FileResult(NamedTuple):
    """The result for one file.

    file    its name as given; of a path, its str
    result  Perplexity for a text or a file of documents, LastWordAccuracy or MultipleChoiceAccuracy
            for a file of questions
    """

    file: str
    result: Result


@dataclass(frozen=True)
class AverageAccuracy:
    """The result of `average_accuracy`.

    files           number of files of questions
    accuracy        mean of their accuracies, each with the same weight
    standard_error  of the mean: the root of the sum of the squared errors, divided by `files`; None
                    where an error is
    """

    files: int
    accuracy: float
    standard_error: float | None


def evaluate_files(
    model: GPTModel | Source,
    files: File | Sequence[File],
    *,
    tokenizer: GPTTokenizer | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    rolling: bool = False,
    last_word: bool | None = None,
    limit: int | None = None,
    shots: int = 0,
    examples: File | None = None,
    seed: int = SEED,
    allow_special: bool = False,
    output: File | None = None,
    on_error: OnError | None = None,
    progress: FileProgress | None = None,
) -> list[FileResult]:
    """Evaluate a model on files: perplexity of texts, accuracy on task files.

    model           a GPTModel, or the source to load one from
    files           the name of a file, or a list of names. `name.jsonl` is a task file (see
                    task_files.py): documents, which are scored each on its own, last words, or
                    multiple-choice questions; so is `.ndjson` or `.json`. Any other file is a text
                    of at most 64 MiB, and `-` is standard input
    tokenizer       default: that of the model's source
    dtype, threads  of a model that is loaded, as in `GPTModel.from_pretrained`
    window, stride  as in `perplexity`; they apply to texts and documents, and so does `rolling`
    last_word       whether to take the last words of documents as continuations, as in
                    `read_task_file`
    limit           take only the first `limit` questions or documents of each file, from 1.
                    Default: all
    shots           solved examples before each question, from 0 to 1000
    examples        the task file they are drawn from; it serves one file of questions. Default:
                    that of the questions, where each question is left out of its own examples
    seed            of the random numbers that draw them, an integer from 0. Default: that of the
                    lm-evaluation-harness
    allow_special   True to read special tokens such as `<|endoftext|>` in texts and questions as
                    these tokens, and to cut texts at end-of-text tokens: each part is scored on its
                    own. Default: plain text, and a warning
    output          a file to write: a JSON object a line for each question or document
    on_error        called with the name and the InputError of a file that cannot be read or
                    scored, and the others are evaluated. Default: the error is raised
    progress        called as tokens are scored: see FileProgress

    Returns a result for each file, in order. Documents that leave nothing to score are left out
    with a warning, and so are files of these beside others. Raises InputError, naming file and
    line, for a file that cannot be read or scored, and for an argument out of its range;
    SourceError for a model or tokenizer that cannot be loaded; CheckpointError for logits that are
    NaN or infinite, and where `output` cannot be written.
    """
    names = checked_file_names("files", files)
    _check_options(threads, progress, tokenizer)
    check_callable("on_error", on_error)
    options = Options(
        rolling=checked_bool("rolling", rolling),
        last_word=None if last_word is None else checked_bool("last_word", last_word),
        limit=None if limit is None else checked_count("limit", limit, 1),
        shots=checked_integer("shots", shots, 0, MAX_SHOTS),
        pool=None if examples is None else read_pool(checked_file_name("examples", examples)),
        seed=checked_count("seed", seed, 0),
        allow_special=checked_bool("allow_special", allow_special),
    )
    contents: list[Content] = []
    for name in names:
        with _reporting(name, on_error):
            contents.append(read_content(name, options))
    if options.pool and sum(bool(content.questions) for content in contents) > 1:
        raise InputError("examples: are for one file of questions; give one", "examples")
    opened = _opened(model)
    Windows.checked(opened.config.n_positions, window, stride, options.rolling)
    tokenizer = _tokenizer_of(opened) if tokenizer is None else tokenizer
    plain = PlainTokens([] if options.allow_special else tokenizer.all_special_tokens)
    ready: list[tuple[Content, list[Text]]] = []
    for content in contents:
        with _reporting(content.file, on_error):
            ready.append((content, tokenized(content, tokenizer, opened.config, options, plain)))
    empty = [content for content, texts in ready if not (texts or content.questions)]
    if len(empty) == len(names):
        raise empty_file_error(empty[0], opened.config, tokenizer, options.allow_special)
    for content in empty:
        warn(f"{name_of(content.file)}: nothing in it can be scored, and it is left out")
    ready = [(content, texts) for content, texts in ready if texts or content.questions]
    if not ready:
        return []
    loaded = _loaded(opened, dtype, threads, progress)
    results = []
    with _writing(output) as write:
        for content, texts in ready:
            report = _progress_of(content.file, progress)
            with _reporting(content.file, on_error):
                result: Result
                if content.questions:
                    result, items = _score_questions(
                        loaded, tokenizer, content.questions, options.allow_special, report
                    )
                else:
                    result, items = _score_texts(loaded, texts, window, stride, rolling, report)
                results.append(FileResult(content.file, result))
                write(items)
    return results


def average_accuracy(results: Sequence[FileResult]) -> AverageAccuracy | None:
    """The mean accuracy (by sum of ln p) over the files of questions; None without any."""
    found = [each.result for each in results if not isinstance(each.result, Perplexity)]
    if not found:
        return None
    errors = [result.standard_error for result in found]
    squares = [error**2 for error in errors if error is not None]
    complete = len(squares) == len(errors)
    return AverageAccuracy(
        files=len(found),
        accuracy=sum(result.accuracy for result in found) / len(found),
        standard_error=math.sqrt(sum(squares)) / len(found) if complete else None,
    )


def compare_on_file(
    a: GPTModel | Source,
    b: GPTModel | Source,
    file: File,
    *,
    tokenizer: GPTTokenizer | None = None,
    dtype_a: str = "auto",
    dtype_b: str = "auto",
    threads: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    allow_special: bool = False,
    progress: FileProgress | None = None,
) -> Comparison:
    """Compare the predictions of two models on a text, or on the texts in a file of JSON.

    a, b              GPTModels, or sources to load them from; they may be the same
    file              a text of at most 64 MiB, or `-` for standard input; in a file named as JSON
                      each object's "text" is scored on its own
    tokenizer         of both models. Default: their sources', which must give the same tokens
    dtype_a, dtype_b  of models that are loaded, as in `GPTModel.from_pretrained`; so is `threads`
    window, stride    as in `compare`
    allow_special     as in `evaluate_files`
    progress          called as tokens are scored: see FileProgress

    Raises InputError for a text that cannot be read or scored, for two models with different tokens
    and for an argument out of its range; SourceError for a model or tokenizer that cannot be
    loaded; CheckpointError for logits that are NaN or infinite.
    """
    file = checked_file_name("file", file)
    _check_options(threads, progress, tokenizer)
    allow_special = checked_bool("allow_special", allow_special)
    check_files([file])
    a, b = _opened(a), _opened(b)
    tokenizers = (tokenizer or _tokenizer_of(a), tokenizer or _tokenizer_of(b))
    longer = max(a.config, b.config, key=min_tokens)
    texts = common_texts(file, tokenizers, allow_special, longer)
    model_a = _loaded(a, dtype_a, threads, progress, "dtype_a")
    model_b = _loaded(b, dtype_b, threads, progress, "dtype_b")
    return compare_texts(model_a, model_b, texts, window, stride, _progress_of(file, progress))


# ---- the steps ----


def _check_options(
    threads: int | None, progress: FileProgress | None, tokenizer: GPTTokenizer | None
) -> None:
    checked_threads(threads)
    check_callable("progress", progress)
    if tokenizer is not None:
        check_tokenizer("tokenizer", tokenizer)


@contextmanager
def _reporting(file: str, on_error: OnError | None) -> Iterator[None]:
    """Give an InputError about a file to on_error; one about an argument is raised."""
    try:
        yield
    except InputError as error:
        if on_error is None or error.argument is not None:
            raise
        on_error(file, error)


@contextmanager
def _writing(output: File | None) -> Iterator[Callable[[list[Item]], None]]:
    """A function that writes a JSON line for each item; the file appears at the end."""
    if output is None:
        yield lambda items: None
        return
    with replacing(Path(checked_file_name("output", output))) as file:
        yield lambda items: file.writelines(
            (json.dumps(item, ensure_ascii=False) + "\n").encode("utf-8") for item in items
        )


def _opened(model: GPTModel | Source) -> GPTModel | ModelSource:
    """A source is opened once, for the tokenizer and for the model."""
    return model if isinstance(model, GPTModel) else open_source(model)


def _tokenizer_of(model: GPTModel | ModelSource) -> GPTTokenizer:
    return GPTTokenizer.from_pretrained(model.source if isinstance(model, GPTModel) else model)


def _loaded(
    model: GPTModel | ModelSource,
    dtype: str,
    threads: int | None,
    progress: FileProgress | None,
    dtype_argument: str = "dtype",
) -> GPTModel:
    """The model of a source; dtype_argument is the caller's name of `dtype`, for InputError."""
    if isinstance(model, GPTModel):
        return model
    if progress:
        progress(None, 0, 0)
    try:
        return GPTModel.from_pretrained(model, dtype=dtype, threads=threads)
    except InputError as error:
        if error.argument == "dtype":
            error.argument = dtype_argument
        raise


def _progress_of(file: str, progress: FileProgress | None) -> Progress | None:
    """The callback of one file; its name has been reported when this returns."""
    if progress is None:
        return None
    report = progress
    report(file, 0, 0)
    return lambda done, total: report(file, done, total)


# ---- the results of a file, and an item for each document or question ----


def _score_texts(
    model: GPTModel,
    texts: Sequence[Text],
    window: int | None,
    stride: int | None,
    rolling: bool,
    progress: Progress | None,
) -> tuple[Perplexity, list[Item]]:
    """The perplexity of several texts, at least one, each scored on its own."""
    unscored = min_tokens(model.config) - 1
    total = sum(len(text.ids) - unscored for text in texts)
    before, results = 0, list[Perplexity]()
    for text in texts:
        shifted = _shifted(progress, before, total) if progress else None
        results.append(
            perplexity(
                model, text.ids, text.bytes, window, stride, shifted,
                words=text.words, rolling=rolling,
            )
        )  # fmt: skip
        before += results[-1].tokens
    items = [
        {
            "item": text.where,
            "tokens": result.tokens,
            "bytes": result.bytes,
            "words": result.words,
            "nats_per_token": result.nats_per_token,
            "bits_per_byte": result.bits_per_byte,
        }
        for text, result in zip(texts, results, strict=True)
    ]
    return combined(results), items


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    """`progress` for one of several texts, of `total` tokens, after `before` tokens of others."""
    return lambda done, _: progress(before + done, total)


def _score_questions(
    model: GPTModel,
    tokenizer: GPTTokenizer,
    questions: Sequence[Question],
    allow_special: bool,
    progress: Progress | None,
) -> tuple[LastWordAccuracy | MultipleChoiceAccuracy, list[Item]]:
    """The accuracy on questions, at least one, all of one kind."""
    scored = score_questions(model, tokenizer, questions, progress, allow_special)
    items = list(map(_item, scored.questions, scored.scores))
    if isinstance(questions[0], LastWord):
        return last_word_result(model.dtype, scored), items
    return multiple_choice_result(model.dtype, scored), items


def _item(question: Question, scores: Sequence[Score]) -> Item:
    """What was asked, the scores of its continuations, and whether it is right."""
    item: Item = {"item": question.where, "log_p": [score.log_p for score in scores]}
    item["tokens"] = [score.tokens for score in scores]
    if isinstance(question, LastWord):
        return item | {"right": scores[0].greedy}
    by_sum, per_token, per_byte, per_character = chosen_by(question, scores)
    return item | {
        "gold": question.gold,
        "chosen": by_sum,
        "chosen_per_token": per_token,
        "chosen_per_byte": per_byte,
        "chosen_per_character": per_character,
        "right": by_sum == question.gold,
    }
