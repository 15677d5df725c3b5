"""Evaluation of files in one call: read them, tokenize, load the model, score.

    for file, result in evaluate_files("cerebras/Cerebras-GPT-111M", ["book.txt", "piqa.jsonl"]):
        print(file, result)
    compare_on_file(folder, folder, "book.txt", dtype_b="int4").kl_mean

All files are read and checked before a model is loaded, so a wrong name fails at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from ..api import GPTModel
from ..arguments import (
    check_callable,
    check_tokenizer,
    checked_bool,
    checked_file_name,
    checked_file_names,
    checked_threads,
)
from ..errors import InputError
from ..source import ModelSource, open_source
from ..texts import is_json_lines, name_of, read_text
from ..tokenizer.tokenizer import GPTTokenizer
from .perplexity import Comparison, Perplexity, Progress, combined, common_ids, compare, perplexity
from .task_files import Choice, Document, LastWord, TaskLines, read_task_file
from .tasks import LastWordAccuracy, MultipleChoiceAccuracy, last_word_accuracy, multiple_choice

MAX_TEXT_BYTES = 64 << 20  # of a text file: a text is tokenized as a whole

Source: TypeAlias = str | os.PathLike[str] | ModelSource  # a folder, a GGUF file, or a hub id
File: TypeAlias = str | os.PathLike[str]
Result: TypeAlias = Perplexity | LastWordAccuracy | MultipleChoiceAccuracy
# Called with (name, tokens done, tokens in all) of a file; with (name, 0, 0) before it is scored,
# and with (None, 0, 0) before a model is loaded.
FileProgress: TypeAlias = Callable[[str | None, int, int], None]


class FileResult(NamedTuple):
    """The result for one file.

    file    its name as given; of a path, its str
    result  Perplexity for a text or a file of documents, LastWordAccuracy or MultipleChoiceAccuracy
            for a task file
    """

    file: str
    result: Result


def evaluate_files(
    model: GPTModel | Source,
    files: File | Sequence[File],
    *,
    tokenizer: GPTTokenizer | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    allow_special: bool = False,
    progress: FileProgress | None = None,
) -> list[FileResult]:
    """Evaluate a model on files: perplexity of texts, accuracy on task files.

    model           a GPTModel, or the source to load one from
    files           the name of a file, or a list of names. `name.jsonl` is a task file (see
                    task_files.py): documents, which are scored each on its own, last words, or
                    multiple-choice questions. Any other file is a text in UTF-8 of at most 64 MiB,
                    and `-` is standard input
    tokenizer       default: that of the model's source
    dtype, threads  of a model that is loaded, as in `GPTModel.from_pretrained`
    window, stride  as in `perplexity`; they apply to texts and documents
    allow_special   True to read special tokens such as `<|endoftext|>` in texts and questions as
                    these tokens. Default: plain text
    progress        called as tokens are scored: see FileProgress

    Returns a result for each file, in order. Raises InputError, naming file and line, for a file
    that cannot be read or scored, and for an argument out of its range; SourceError for a model or
    tokenizer that cannot be loaded; CheckpointError for logits that are NaN or infinite.
    """
    names = checked_file_names("files", files)
    _check_options(threads, progress, tokenizer)
    allow_special = checked_bool("allow_special", allow_special)
    contents = [_read(name) for name in names]
    model = _opened(model)
    tokenizer = _tokenizer_of(model) if tokenizer is None else tokenizer
    tokenized = [_tokenized(tokenizer, lines, allow_special) for lines in contents]
    model = _loaded(model, dtype, threads, progress)
    results = []
    for file, lines, documents in zip(names, contents, tokenized, strict=True):
        file_progress = _progress_of(file, progress)
        result: Result
        if documents:
            result = _perplexity_of(model, documents, window, stride, file_progress)
        else:
            result = _task_accuracy(model, tokenizer, lines, file_progress)
        results.append(FileResult(file, result))
    return results


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
    """Compare the predictions of two models on a text.

    a, b              GPTModels, or sources to load them from; they may be the same
    file              a text in UTF-8 of at most 64 MiB, or `-` for standard input
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
    text = read_text(file, MAX_TEXT_BYTES)
    a, b = _opened(a), _opened(b)
    tokenizers = [_tokenizer_of(model) if tokenizer is None else tokenizer for model in (a, b)]
    ids = common_ids(tokenizers[0], tokenizers[1], text, allow_special)
    _check_length(len(ids), name_of(file))
    model_a = _loaded(a, dtype_a, threads, progress, "dtype_a")
    model_b = _loaded(b, dtype_b, threads, progress, "dtype_b")
    return compare(model_a, model_b, ids, window, stride, _progress_of(file, progress))


# ---- the steps ----


def _check_options(
    threads: int | None, progress: FileProgress | None, tokenizer: GPTTokenizer | None
) -> None:
    checked_threads(threads)
    check_callable("progress", progress)
    if tokenizer is not None:
        check_tokenizer("tokenizer", tokenizer)


class _Document(NamedTuple):
    """The tokens of a text, int64 [T], and its length in UTF-8."""

    ids: np.ndarray
    text_bytes: int


def _read(file: str) -> TaskLines:
    """The lines of a task file; any other file is one document."""
    if is_json_lines(file):
        return read_task_file(file)
    return [Document(name_of(file), read_text(file, MAX_TEXT_BYTES))]


def _tokenized(tokenizer: GPTTokenizer, lines: TaskLines, allow_special: bool) -> list[_Document]:
    """The documents of a file as tokens; none of a file of questions."""
    documents = []
    for line in lines:
        if isinstance(line, Document):
            ids = tokenizer.encode(line.text, "np", allow_special)[0]
            _check_length(len(ids), line.where)
            documents.append(_Document(ids, len(line.text.encode("utf-8"))))
    return documents


def _check_length(tokens: int, where: str) -> None:
    """Raises InputError for a text that leaves no token to predict."""
    if tokens < 2:
        raise InputError(
            f"{where}: {'1 token' if tokens else 'empty'}; a text needs at least 2 tokens, "
            "as the first is not predicted"
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


def _perplexity_of(
    model: GPTModel,
    documents: Sequence[_Document],
    window: int | None,
    stride: int | None,
    progress: Progress | None,
) -> Perplexity:
    """The perplexity of several texts, each scored on its own."""
    total = sum(len(document.ids) - 1 for document in documents)
    before, results = 0, []
    for ids, text_bytes in documents:
        shifted = _shifted(progress, before, total) if progress else None
        results.append(perplexity(model, ids, text_bytes, window, stride, shifted))
        before += len(ids) - 1
    return combined(results)


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    """`progress` for one of several texts, of `total` tokens, after `before` tokens of others."""
    return lambda done, _: progress(before + done, total)


def _task_accuracy(
    model: GPTModel, tokenizer: GPTTokenizer, lines: TaskLines, progress: Progress | None
) -> LastWordAccuracy | MultipleChoiceAccuracy:
    last_words = [line for line in lines if isinstance(line, LastWord)]
    if last_words:
        return last_word_accuracy(model, tokenizer, last_words, progress)
    choices = [line for line in lines if isinstance(line, Choice)]
    return multiple_choice(model, tokenizer, choices, progress)
