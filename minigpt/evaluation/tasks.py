"""Accuracy of a model on tasks: the last word of a passage, and multiple-choice questions.

    last_word_accuracy(model, tokenizer, read_task_file("lambada.jsonl")).accuracy
    multiple_choice(model, tokenizer, read_task_file("piqa.jsonl")).accuracy

Both score continuations: ln p of each token of a text, given a context and the tokens before it.
Context, space and continuation are tokenized together; the continuation begins at the first token
that differs from those of the context alone. Inputs longer than the model's context are truncated
on the left.

**Batches.** A forward pass stacks the tokens of all its sequences as rows (model/forward.py), so
unequal lengths need no padding. Continuations of one context share it: it is read once, and its
keys and values are copied. The KV cache gives every sequence of a batch the capacity of the
longest, so continuations are sorted by the length of their contexts, longest first. Results do not
depend on the batch, not by a bit, as those of no kernel do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from time import perf_counter
from typing import NamedTuple

import numpy as np

from ..api import GPTModel
from ..arguments import check_callable, check_model, check_tokenizer, checked_ids
from ..config import GPTConfig
from ..errors import InputError, short_repr
from ..tokenizer.tokenizer import GPTTokenizer
from .perplexity import MAX_LOGITS, Progress, check_finite, log_sum_exp, warm_up
from .task_files import Choice, LastWord

_CACHE_TOKENS = 1024  # capacity of a batch's KV cache: sequences × tokens of the longest


@dataclass(frozen=True)
class LastWordAccuracy:
    """The result of `last_word_accuracy`.

    dtype           dtype of the model's weight matrices
    questions       number of passages, n
    accuracy        fraction p of them for which every token of the word is the argmax, so that
                    greedy decoding writes exactly this word
    standard_error  of the accuracy: √(p · (1 − p) / n)
    tokens          number of tokens read
    seconds         time of the forward passes
    tokens_per_s    tokens / seconds
    """

    dtype: str
    questions: int
    accuracy: float
    standard_error: float
    tokens: int
    seconds: float
    tokens_per_s: float


@dataclass(frozen=True)
class MultipleChoiceAccuracy:
    """The result of `multiple_choice`: accuracy by three ways to choose an answer.

    accuracy            by the highest sum of ln p over a choice's tokens: `acc` of EleutherAI's
                        lm-evaluation-harness
    accuracy_per_token  by the highest mean of ln p over its tokens, as in MosaicML's llm-foundry
    accuracy_per_byte   by the highest ln p divided by its length in UTF-8 without the space before
                        it: for plain English the harness's `acc_norm`, which counts characters
    standard_error, …   of each; these and the other fields as in LastWordAccuracy

    Of equally good choices the first is taken.
    """

    dtype: str
    questions: int
    accuracy: float
    standard_error: float
    accuracy_per_token: float
    standard_error_per_token: float
    accuracy_per_byte: float
    standard_error_per_byte: float
    tokens: int
    seconds: float
    tokens_per_s: float


def last_word_accuracy(
    model: GPTModel,
    tokenizer: GPTTokenizer,
    questions: Sequence[LastWord],
    progress: Progress | None = None,
) -> LastWordAccuracy:
    """Measure how often greedy decoding writes the last word of a passage.

    questions  at least one
    progress   called with (tokens read, tokens to read) after each batch

    Raises InputError for a word that is longer than the model's context, CheckpointError for logits
    that are NaN or infinite.
    """
    _check_arguments(model, tokenizer, questions, LastWord, progress)
    continuations = [
        make_continuation(tokenizer, model.config, question.where, question.context, question.word)
        for question in questions
    ]
    scored = score(model, continuations, progress)
    accuracy, error = _accuracy([each.greedy for each in scored.scores])
    return LastWordAccuracy(
        dtype=model.dtype,
        questions=len(questions),
        accuracy=accuracy,
        standard_error=error,
        tokens=scored.tokens,
        seconds=scored.seconds,
        tokens_per_s=scored.tokens / scored.seconds,
    )


def multiple_choice(
    model: GPTModel,
    tokenizer: GPTTokenizer,
    questions: Sequence[Choice],
    progress: Progress | None = None,
) -> MultipleChoiceAccuracy:
    """Measure how often the model's most probable choice is the right one.

    questions  at least one
    progress   called with (tokens read, tokens to read) after each batch

    Raises InputError for a choice that is longer than the model's context, CheckpointError for
    logits that are NaN or infinite.
    """
    _check_arguments(model, tokenizer, questions, Choice, progress)
    continuations = [
        make_continuation(tokenizer, model.config, question.where, question.context, choice)
        for question in questions
        for choice in question.choices
    ]
    scored = score(model, continuations, progress)
    scores = iter(scored.scores)
    right = [_right(question, [next(scores) for _ in question.choices]) for question in questions]
    by_sum, per_token, per_byte = zip(*right, strict=True)
    accuracy, error = _accuracy(by_sum)
    accuracy_per_token, error_per_token = _accuracy(per_token)
    accuracy_per_byte, error_per_byte = _accuracy(per_byte)
    return MultipleChoiceAccuracy(
        dtype=model.dtype,
        questions=len(questions),
        accuracy=accuracy,
        standard_error=error,
        accuracy_per_token=accuracy_per_token,
        standard_error_per_token=error_per_token,
        accuracy_per_byte=accuracy_per_byte,
        standard_error_per_byte=error_per_byte,
        tokens=scored.tokens,
        seconds=scored.seconds,
        tokens_per_s=scored.tokens / scored.seconds,
    )


def _check_arguments(
    model: GPTModel,
    tokenizer: GPTTokenizer,
    questions: Sequence[LastWord] | Sequence[Choice],
    kind: type,
    progress: Progress | None,
) -> None:
    """Raises InputError for an argument of a wrong type, and for questions not of `kind`."""
    check_model("model", model)
    check_tokenizer("tokenizer", tokenizer)
    if not isinstance(questions, Sequence) or not all(isinstance(each, kind) for each in questions):
        raise InputError(
            f"questions {short_repr(questions)}: must be a list of {kind.__name__}", "questions"
        )
    check_callable("progress", progress)


def _right(question: Choice, scores: Sequence[Score]) -> tuple[bool, bool, bool]:
    """Whether the best choice is the right one: by sum, per token, per byte."""
    log_p = np.array([score.log_p for score in scores])
    tokens = np.array([score.tokens for score in scores])
    size = np.array([len(choice.encode("utf-8")) for choice in question.choices])
    by_sum, per_token, per_byte = (
        int(measure.argmax()) == question.gold for measure in (log_p, log_p / tokens, log_p / size)
    )
    return by_sum, per_token, per_byte


def _accuracy(right: Sequence[bool]) -> tuple[float, float]:
    """The fraction that is right, and its standard error."""
    p = sum(right) / len(right)
    return p, math.sqrt(p * (1 - p) / len(right))


# ---- tokens ----


class Continuation(NamedTuple):
    """Tokens to score and the tokens before them, n_positions + 1 together at most.

    context  int64 [T], T ≥ 1
    ids      int64 [n], n ≥ 1
    """

    context: np.ndarray
    ids: np.ndarray

    @property
    def length(self) -> int:
        """Number of tokens that the model reads: all but the last, which is only predicted."""
        return len(self.context) + len(self.ids) - 1


def make_continuation(
    tokenizer: GPTTokenizer, config: GPTConfig, where: str, context: str, text: str
) -> Continuation:
    """The tokens of `text`, which follows `context` after a space; truncated on the left.

    where  file and line of both, for messages

    Raises InputError for a text longer than the model's context, and for a context whose first
    token also covers the beginning of the text.
    """
    before, ids = tokenizer.encode(context), tokenizer.encode(f"{context} {text}")
    begin = _common_prefix(before, ids)
    if not begin:
        raise InputError(
            f"{where}: its first token is of context and continuation; lengthen the context"
        )
    if len(ids) - begin > config.n_positions:
        raise InputError(
            f"{where}: a continuation of {len(ids) - begin} tokens, where this model's context is "
            f"{config.n_positions}; shorten it"
        )
    cut = max(0, len(ids) - 1 - config.n_positions)
    array = checked_ids(ids[cut:], config.vocab_size)
    return Continuation(array[: begin - cut], array[begin - cut :])


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens with which both begin; less than all of b."""
    longest = min(len(a), len(b) - 1)
    return next((i for i in range(longest) if a[i] != b[i]), longest)


# ---- scores ----


class Score(NamedTuple):
    """The score of a continuation.

    log_p   sum of ln p over its tokens, in nats
    tokens  number of its tokens
    greedy  whether each of them is the argmax
    """

    log_p: float
    tokens: int
    greedy: bool


class Scores(NamedTuple):
    """The score of each continuation, the number of tokens read, and the seconds it took."""

    scores: list[Score]
    tokens: int
    seconds: float


def score(
    model: GPTModel, continuations: Sequence[Continuation], progress: Progress | None = None
) -> Scores:
    """Score continuations, at least one; `progress` and errors are those of `multiple_choice`."""
    if not continuations:
        raise InputError("questions: none; must be at least one")
    warm_up(model, continuations[0].context)
    order = sorted(
        range(len(continuations)), key=lambda i: len(continuations[i].context), reverse=True
    )
    batches = list(_batches(continuations[i] for i in order))
    total = sum(map(_tokens_to_read, batches))
    start, done, sorted_scores = perf_counter(), 0, list[Score]()
    for batch in batches:
        sorted_scores += _score_batch(model, batch)
        done += _tokens_to_read(batch)
        if progress:
            progress(done, total)
    seconds = perf_counter() - start
    scores = dict(zip(order, sorted_scores, strict=True))
    return Scores([scores[i] for i in range(len(continuations))], total, seconds)


def _batches(continuations: Iterable[Continuation]) -> Iterator[list[Continuation]]:
    """Yield the continuations in order, as many at a time as fit the KV cache."""
    batch: list[Continuation] = []
    longest = 0
    for continuation in continuations:
        longest = max(longest, continuation.length)
        full = len(batch) == MAX_LOGITS or (len(batch) + 1) * longest > _CACHE_TOKENS
        if batch and full:
            yield batch
            batch, longest = [], continuation.length
        batch.append(continuation)
    yield batch


def _groups(batch: Sequence[Continuation]) -> list[list[int]]:
    """The indices of the continuations of each context; equal contexts are neighbours."""
    return [
        list(group)
        for _, group in groupby(range(len(batch)), key=lambda i: batch[i].context.tobytes())
    ]


def _tokens_to_read(batch: Sequence[Continuation]) -> int:
    """Number of tokens to read: each context once, and all but the last of each continuation."""
    contexts = sum(len(batch[first].context) for first, *_ in _groups(batch))
    return contexts + sum(len(continuation.ids) - 1 for continuation in batch)


def _score_batch(model: GPTModel, batch: Sequence[Continuation]) -> list[Score]:
    log_p, greedy = np.zeros(len(batch)), np.ones(len(batch), bool)
    for i, token, logits in _predictions(model, batch):
        log_p[i] += float(logits[token]) - log_sum_exp(logits)
        greedy[i] &= logits.argmax() == token
    return [
        Score(float(log_p[i]), len(continuation.ids), bool(greedy[i]))
        for i, continuation in enumerate(batch)
    ]


def _predictions(
    model: GPTModel, batch: Sequence[Continuation]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (i, id, logits) for each token of each continuation i: float32 [V] that predict the id.

    The contexts are read first, then the continuations; the tokens of each come in order.
    """
    cache = model.engine.new_cache(len(batch), max(each.length for each in batch))
    groups = _groups(batch)
    firsts = [first for first, *_ in groups]
    slots = {i: cache.allocate() for i in firsts}
    rows = model.engine.forward(cache, list(slots.values()), [batch[i].context for i in firsts])
    check_finite(rows)
    for (first, *others), logits in zip(groups, rows, strict=True):
        slots |= {i: cache.fork(slots[first]) for i in others}
        for i in (first, *others):
            yield i, int(batch[i].ids[0]), logits

    for chunks in _chunks([len(continuation.ids) - 1 for continuation in batch]):
        ids = [batch[i].ids[begin:end] for i, begin, end in chunks]
        rows = model.engine.forward(cache, [slots[i] for i, _, _ in chunks], ids, last=None)
        check_finite(rows)
        read = ((i, n) for i, begin, end in chunks for n in range(begin, end))
        for (i, n), logits in zip(read, rows, strict=True):
            yield i, int(batch[i].ids[n + 1]), logits


def _chunks(lengths: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """Cut sequences of these lengths, one after the other, into passes of MAX_LOGITS tokens.

    Yields (index of the sequence, begin, end) of each sequence that has tokens in the pass.
    """
    ends = np.cumsum(lengths)
    begins = ends - lengths
    for start in range(0, int(ends[-1]), MAX_LOGITS):
        first = np.clip(start - begins, 0, lengths)
        last = np.clip(start + MAX_LOGITS - begins, 0, lengths)
        yield [(int(i), int(first[i]), int(last[i])) for i in np.flatnonzero(first < last)]
