"""Accuracy of a model on tasks: the last word of a passage, and multiple-choice questions.

    last_word_accuracy(model, tokenizer, read_task_file("lambada.jsonl")).accuracy
    multiple_choice(model, tokenizer, read_task_file("piqa.jsonl")).accuracy

Both score continuations: ln p of each token of a text, given a context and the tokens before it.
Context, space and continuation are tokenized together; the continuation begins at the first token
that differs from those of the context alone. A continuation without a context follows the model's
start token, without a space. Inputs longer than the model's context are truncated on the left.

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
from itertools import chain, groupby
from time import perf_counter
from typing import NamedTuple

import numpy as np

from ..api import GPTModel
from ..arguments import check_callable, check_model, check_tokenizer, checked_ids
from ..config import GPTConfig
from ..errors import InputError, short_repr, warn
from ..tokenizer.tokenizer import GPTTokenizer
from .perplexity import MAX_LOGITS, Progress, check_finite, exp_or_none, log_sum_exp, warm_up
from .task_files import Choice, ContextChoice, LastWord, Question

_CACHE_TOKENS = 1024  # capacity of a batch's KV cache: sequences × tokens of the longest


@dataclass(frozen=True)
class LastWordAccuracy:
    """The result of `last_word_accuracy`.

    dtype           dtype of the model's weight matrices
    shots           number of examples before each passage
    questions       number of passages, n
    accuracy        fraction p of them for which every token of the word is the argmax, so that
                    greedy decoding writes exactly this word
    standard_error  of the accuracy: √(p · (1 − p) / (n − 1)); None for one passage
    perplexity      of the word: exp of the mean of −ln p(word | passage); None where it overflows
    tokens          number of tokens read
    seconds         time of the forward passes
    tokens_per_s    tokens / seconds
    """

    dtype: str
    shots: int
    questions: int
    accuracy: float
    standard_error: float | None
    perplexity: float | None
    tokens: int
    seconds: float
    tokens_per_s: float


@dataclass(frozen=True)
class MultipleChoiceAccuracy:
    """The result of `multiple_choice`: accuracy by four ways to choose an answer.

    accuracy                by the highest sum of ln p over a choice's tokens: `acc` of EleutherAI's
                            lm-evaluation-harness
    accuracy_per_token      by the highest mean of ln p over its tokens, as in MosaicML's
                            llm-foundry
    accuracy_per_byte       by the highest ln p divided by its length in UTF-8 without the space
                            before it: the harness's `acc_bytes`
    accuracy_per_character  the same divided by its length in characters: the harness's `acc_norm`
    standard_error, …       of each; these and the other fields as in LastWordAccuracy

    Of equally good choices the first is taken.
    """

    dtype: str
    shots: int
    questions: int
    accuracy: float
    standard_error: float | None
    accuracy_per_token: float
    standard_error_per_token: float | None
    accuracy_per_byte: float
    standard_error_per_byte: float | None
    accuracy_per_character: float
    standard_error_per_character: float | None
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
    scored = score_questions(model, tokenizer, questions, progress, kinds=(LastWord,))
    return last_word_result(model.dtype, scored)


def multiple_choice(
    model: GPTModel,
    tokenizer: GPTTokenizer,
    questions: Sequence[Choice | ContextChoice],
    progress: Progress | None = None,
) -> MultipleChoiceAccuracy:
    """Measure how often the model's most probable choice is the right one.

    questions  at least one
    progress   called with (tokens read, tokens to read) after each batch

    Raises InputError for a choice that is longer than the model's context, CheckpointError for
    logits that are NaN or infinite.
    """
    kinds = (Choice, ContextChoice)
    scored = score_questions(model, tokenizer, questions, progress, kinds=kinds)
    return multiple_choice_result(model.dtype, scored)


class ScoredQuestions(NamedTuple):
    """Questions and the scores of their continuations, which `Scores` describes."""

    questions: list[Question]
    scores: list[list[Score]]
    tokens: int
    seconds: float


def score_questions(
    model: GPTModel,
    tokenizer: GPTTokenizer,
    questions: Sequence[Question],
    progress: Progress | None = None,
    allow_special: bool = False,
    kinds: tuple[type, ...] = (LastWord, Choice, ContextChoice),
) -> ScoredQuestions:
    """Score the continuations of questions, at least one.

    allow_special  True to read special tokens such as `<|endoftext|>` as these tokens. Default:
                   plain text
    kinds          the classes that `questions` may be of

    A question with a continuation of one token and no context is left out, with a warning, where
    the model has no start token: there is nothing to predict. Raises InputError as
    `multiple_choice` does.
    """
    _check_arguments(model, tokenizer, questions, kinds, progress)
    scored, continuations = [], []
    for question in questions:
        made = [
            make_continuation(tokenizer, model.config, question.where, *pair, allow_special)
            for pair in question.pairs()
        ]
        if all(len(each.ids) for each in made):
            scored.append(question)
            continuations.append(made)
    if len(scored) < len(questions):
        reason = "their context is empty, and this model has no token that begins a text"
        if not scored:
            raise InputError(f"{questions[0].where}: no question can be scored: {reason}")
        count = len(questions) - len(scored)
        warn(f"{questions[0].where}: {count} of {len(questions)} questions left out: {reason}")
    flat = score(model, list(chain.from_iterable(continuations)), progress)
    scores = iter(flat.scores)
    grouped = [[next(scores) for _ in made] for made in continuations]
    return ScoredQuestions(scored, grouped, flat.tokens, flat.seconds)


def last_word_result(dtype: str, scored: ScoredQuestions) -> LastWordAccuracy:
    """The accuracy on LastWord questions."""
    words = [scores[0] for scores in scored.scores]
    accuracy, error = _accuracy([word.greedy for word in words])
    return LastWordAccuracy(
        dtype=dtype,
        shots=len(scored.questions[0].examples),
        questions=len(words),
        accuracy=accuracy,
        standard_error=error,
        perplexity=exp_or_none(-sum(word.log_p for word in words) / len(words)),
        tokens=scored.tokens,
        seconds=scored.seconds,
        tokens_per_s=scored.tokens / scored.seconds,
    )


def multiple_choice_result(dtype: str, scored: ScoredQuestions) -> MultipleChoiceAccuracy:
    """The accuracy on Choice or ContextChoice questions."""
    right = []
    for question, scores in zip(scored.questions, scored.scores, strict=True):
        assert not isinstance(question, LastWord)
        right.append([chosen == question.gold for chosen in chosen_by(question, scores)])
    by_sum, per_token, per_byte, per_character = zip(*right, strict=True)
    accuracy, error = _accuracy(by_sum)
    accuracy_per_token, error_per_token = _accuracy(per_token)
    accuracy_per_byte, error_per_byte = _accuracy(per_byte)
    accuracy_per_character, error_per_character = _accuracy(per_character)
    return MultipleChoiceAccuracy(
        dtype=dtype,
        shots=len(scored.questions[0].examples),
        questions=len(right),
        accuracy=accuracy,
        standard_error=error,
        accuracy_per_token=accuracy_per_token,
        standard_error_per_token=error_per_token,
        accuracy_per_byte=accuracy_per_byte,
        standard_error_per_byte=error_per_byte,
        accuracy_per_character=accuracy_per_character,
        standard_error_per_character=error_per_character,
        tokens=scored.tokens,
        seconds=scored.seconds,
        tokens_per_s=scored.tokens / scored.seconds,
    )


def _check_arguments(
    model: GPTModel,
    tokenizer: GPTTokenizer,
    questions: Sequence[Question],
    kinds: tuple[type, ...],
    progress: Progress | None,
) -> None:
    """Raises InputError for an argument of a wrong type, and for questions of no kind."""
    check_model("model", model)
    check_tokenizer("tokenizer", tokenizer)
    if not isinstance(questions, Sequence) or not all(isinstance(q, kinds) for q in questions):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(
            f"questions {short_repr(questions)}: must be a list of {names}", "questions"
        )
    if not questions:
        raise InputError("questions: none; must be at least one")
    check_callable("progress", progress)


def chosen_by(
    question: Choice | ContextChoice, scores: Sequence[Score]
) -> tuple[int, int, int, int]:
    """The index of the best choice: by sum, per token, per byte, per character."""
    texts = [text for _, text in question.pairs()]
    log_p = np.array([score.log_p for score in scores])
    tokens = np.array([score.tokens for score in scores])
    size = np.array([len(text.encode("utf-8")) for text in texts])
    characters = np.array([len(text) for text in texts])
    measures = (log_p, log_p / tokens, log_p / size, log_p / characters)
    by_sum, per_token, per_byte, per_character = (int(measure.argmax()) for measure in measures)
    return by_sum, per_token, per_byte, per_character


def _accuracy(right: Sequence[bool]) -> tuple[float, float | None]:
    """The fraction that is right, and its standard error; None for one question.

    s / √n, where s is the standard deviation of a sample, with n − 1.
    """
    n = len(right)
    p = sum(right) / n
    if n == 1:
        return p, None
    return p, math.sqrt(sum((each - p) ** 2 for each in right) / (n - 1)) / math.sqrt(n)


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
    tokenizer: GPTTokenizer,
    config: GPTConfig,
    where: str,
    context: str,
    text: str,
    allow_special: bool = False,
    delimiter: str = " ",
) -> Continuation:
    """The tokens of `text`, which follows `context` after a delimiter; truncated on the left.

    where          file and line of both, for messages
    context        without it, the text follows the model's start token, without a delimiter. Where
                   the model has none, the first token is the context, and `ids` may be empty
    allow_special  as in `score_questions`
    delimiter      between context and text

    White space at the end of the context belongs to the continuation, as tokens hold the space
    before a word. Raises InputError for a text longer than the model's context.
    """
    before = context.rstrip()
    whole = context + delimiter + text if context else text
    if not before:
        return after_start(config, where, tokenizer.encode(whole, allow_special=allow_special))
    return split_tokens(
        config,
        where,
        tokenizer.encode(before, allow_special=allow_special),
        tokenizer.encode(whole, allow_special=allow_special),
    )


def after_start(config: GPTConfig, where: str, ids: list[int]) -> Continuation:
    """A text without a context: all of `ids` follow the start token.

    Where the model has none, or the text begins with it, the first of ids is the context.
    """
    start = config.start_token_id
    if start is not None and ids[:1] != [start]:
        ids = [start, *ids]
    return _continuation(config, where, ids, 1)


def split_tokens(config: GPTConfig, where: str, before: list[int], ids: list[int]) -> Continuation:
    """The continuation `ids` of a text, from the first token on that is not of `before`.

    before  tokens of the context alone
    ids     tokens of context and continuation
    """
    begin = _common_prefix(before, ids)
    return _continuation(config, where, ids, begin) if begin else after_start(config, where, ids)


def _continuation(config: GPTConfig, where: str, ids: list[int], begin: int) -> Continuation:
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
