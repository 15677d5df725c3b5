"""The files of an evaluation: read, with the examples of their questions, and tokenized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..config import GPTConfig
from ..errors import InputError, warn
from ..texts import PlainTokens, cut, is_json_lines, located_texts, name_of, read_text
from ..tokenizer.tokenizer import GPTTokenizer
from .perplexity import common_ids, count_words, min_tokens, scored_text, too_short
from .task_files import Document, Question, TaskLines, read_lines, read_task_file, with_examples

MAX_TEXT_BYTES = 64 << 20  # of a text file: a text is tokenized as a whole


class Options(NamedTuple):
    """How `evaluate_files`, which describes them, reads and scores files.

    pool  the questions of the file `examples`
    """

    rolling: bool
    last_word: bool | None
    limit: int | None
    shots: int
    pool: list[Question] | None
    seed: int
    allow_special: bool


class Content(NamedTuple):
    """What is in a file: documents or questions; the other list is empty, or both are."""

    file: str
    documents: list[Document]
    questions: list[Question]


class Text(NamedTuple):
    """A document as tokens, int64 [T], and the size of the part of it that is scored."""

    where: str
    ids: npt.NDArray[np.int64]
    bytes: int
    words: int


def read_content(file: str, options: Options) -> Content:
    """The lines of a task file; any other file is one document."""
    if not is_json_lines(file):
        return Content(file, [Document(name_of(file), read_text(file, MAX_TEXT_BYTES))], [])
    documents, questions = _by_kind(read_lines(file, options.last_word))
    limited = questions[: options.limit]
    if questions and options.shots:
        limited = _with_examples(file, limited, questions, options)
    return Content(file, documents[: options.limit], limited)


def read_pool(file: str) -> list[Question]:
    """The questions of a file of examples, at least one."""
    _, questions = _by_kind(read_task_file(file, last_word=True))
    if not questions:
        raise InputError(f"{file}: holds no questions; name a file of solved ones")
    return questions


def _with_examples(
    file: str, questions: list[Question], own: list[Question], options: Options
) -> list[Question]:
    """The questions with examples of the pool, or of the questions of their own file."""
    if options.pool is None:
        return with_examples(questions, own, options.shots, options.seed, same_file=True)
    if type(options.pool[0]) is not type(questions[0]):
        raise InputError(f"{file}: the examples are of another form; must be of this file's form")
    return with_examples(questions, options.pool, options.shots, options.seed, same_file=False)


def _by_kind(lines: TaskLines) -> tuple[list[Document], list[Question]]:
    documents: list[Document] = []
    questions: list[Question] = []
    for line in lines:
        if isinstance(line, Document):
            documents.append(line)
        else:
            questions.append(line)
    return documents, questions


def tokenized(
    content: Content,
    tokenizer: GPTTokenizer,
    config: GPTConfig,
    options: Options,
    plain: PlainTokens,
) -> list[Text]:
    """The documents of a file that have a token to score; a warning counts the others.

    plain  warns of special tokens in documents and questions
    """
    for question in content.questions:
        plain.warn_of(question.solved(), question.where)
    documents = list(_parts(content.documents, tokenizer, options.allow_special))
    texts = []
    for where, text, original in documents:
        plain.warn_of(text, where)
        ids = tokenizer.encode(text, "np", options.allow_special)[0]
        if len(ids) < min_tokens(config):
            continue
        if options.rolling and original is not None:
            counted = original.encode("utf-8")
        else:
            counted = scored_text(tokenizer, config, text, ids)
        words = count_words(counted.decode("utf-8", "replace"))
        texts.append(Text(where, ids, len(counted), words))
    total = len(documents)
    _warn_of_short_texts(content.file, total - len(texts), total, config)
    return texts


def _warn_of_short_texts(file: str, short: int, total: int, config: GPTConfig) -> None:
    if 0 < short < total:
        reason = "empty" if min_tokens(config) == 1 else "empty or of one token"
        warn(f"{file}: {short} of {total} texts are {reason}, and left out")


def _parts(
    documents: Iterable[Document], tokenizer: GPTTokenizer, allow_special: bool
) -> Iterator[Document]:
    """The documents, cut at end-of-text tokens where these are read as such."""
    end = tokenizer.eos_token if allow_special else None
    for document in documents:
        if end and end in document.text:
            yield from (Document(document.where, part) for part in cut(document.text, end))
        else:
            yield document


def common_texts(
    file: str, tokenizers: tuple[GPTTokenizer, GPTTokenizer], allow_special: bool, config: GPTConfig
) -> list[list[int]]:
    """The ids of the documents in a file, at least one, that have a token to score.

    tokenizers  of two models, which must give the same ids
    config      of the model that needs the longer text
    """
    a, b = tokenizers
    plain = PlainTokens([] if allow_special else a.all_special_tokens)
    found = [Document(*each) for each in located_texts(file, MAX_TEXT_BYTES)]
    texts, total = [], 0
    for where, text, _ in _parts(found, a, allow_special):
        total += 1
        plain.warn_of(text, where)
        ids = common_ids(a, b, text, allow_special)
        if len(ids) >= min_tokens(config):
            texts.append(ids)
    _warn_of_short_texts(name_of(file), total - len(texts), total, config)
    if not texts:
        raise empty_file_error(Content(name_of(file), found, []), config, a, allow_special)
    return texts


def empty_file_error(
    content: Content, config: GPTConfig, tokenizer: GPTTokenizer, allow_special: bool
) -> InputError:
    """The error for a file that leaves nothing to score."""
    if not content.documents:
        return InputError(f"{content.file}: holds no lines; must hold at least one JSON object")
    where = content.documents[0].where
    parts = _parts(content.documents[:1], tokenizer, allow_special)
    tokens = max((len(tokenizer.encode(part.text)) for part in parts), default=0)
    return InputError(f"{where}: {too_short(tokens, config)}")
