"""How often a model is right: about the last word of a passage, or which of several answers fits.

    last_words(model, tokenizer, read_lines("lambada.jsonl")).accuracy
    choices(model, tokenizer, read_lines("piqa.jsonl")).accuracy

Both come down to the tokens of a context, the tokens of an ending that may follow it, and ln p of
each token of the ending after all that stands before it. The tokens are those of the whole text,
context, space, ending; the ending's begin where they are no longer those of the context alone. As
long a text is cut from the left as it has to be for the model's context.

**Batches.** Tokens of all sequences stand below each other in a forward pass (model.py), so that
unequal lengths waste nothing. Endings of one context share it: it is read once, and its keys and
values are copied. What a batch would waste is memory, as every sequence has room for the longest:
so contexts go by their length, the longest first. No result depends on what else is in its batch,
not by a bit, as none of the kernels' does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from time import perf_counter
from typing import NamedTuple

import numpy as np

from ..api import GPTModel
from ..config import GPTConfig
from ..errors import InputError
from ..tokenizer.tokenizer import GPTTokenizer
from .perplexity import Progress, check_finite, checked_ids, log_sum_exp, warm_up
from .task_files import Choice, LastWord

_TOKENS = 1024  # room for the tokens of a batch, all of its sequences being as long as the longest
_ROWS = 128  # tokens whose logits are computed together: of 50257 words, 26 MB


@dataclass(frozen=True)
class WordAccuracy:
    """What `last_words` finds.

    dtype           how the model's matrices are held
    questions       how many there were
    accuracy        the part of them in which each token of the word is the likeliest one, so that
                    greedy decoding gives exactly that word
    standard_error  of the accuracy p of n questions: √(p · (1 − p) ÷ n)
    tokens          read for that
    seconds         spent reading them
    tokens_per_s    tokens ÷ seconds
    """

    dtype: str
    questions: int
    accuracy: float
    standard_error: float
    tokens: int
    seconds: float
    tokens_per_s: float


@dataclass(frozen=True)
class ChoiceAccuracy:
    """What `choices` finds: three accuracies, as there are three ways to choose.

    accuracy            the choice of the greatest ln p, the sum over its tokens, is taken: `acc` of
                        EleutherAI's lm-evaluation-harness
    accuracy_per_token  that of the greatest ln p ÷ its number of tokens, as MosaicML's llm-foundry
                        has it
    accuracy_per_byte   that of the greatest ln p ÷ its bytes in UTF-8 without the space before it:
                        for plain English the harness's `acc_norm`, which counts characters
    standard_error, …   of each, as in WordAccuracy; and so are the other fields

    Of choices that are equally good the first is taken.
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


class Score(NamedTuple):
    """Of an ending after its context.

    log_p   ln p of its tokens, all together, in nats
    tokens  how many they are
    greedy  whether each was the likeliest
    """

    log_p: float
    tokens: int
    greedy: bool


def last_words(
    model: GPTModel,
    tokenizer: GPTTokenizer,
    questions: Sequence[LastWord],
    progress: Progress | None = None,
) -> WordAccuracy:
    """Let a model say the last word of each passage, one at least.

    progress  is told (tokens read, tokens to read) as it goes on

    Raises InputError for a word that is longer than the model's context, CheckpointError where
    the model's logits are no numbers.
    """
    endings = [
        make_ending(tokenizer, model.config, question.where, question.context, question.word)
        for question in questions
    ]
    found = score(model, endings, progress)
    accuracy, error = _accuracy([each.greedy for each in found.scores])
    return WordAccuracy(
        dtype=model.dtype,
        questions=len(questions),
        accuracy=accuracy,
        standard_error=error,
        tokens=found.tokens,
        seconds=found.seconds,
        tokens_per_s=found.tokens / found.seconds,
    )


def choices(
    model: GPTModel,
    tokenizer: GPTTokenizer,
    questions: Sequence[Choice],
    progress: Progress | None = None,
) -> ChoiceAccuracy:
    """Let a model choose what follows each context, of one question at least.

    progress  is told (tokens read, tokens to read) as it goes on

    Raises InputError for a choice that is longer than the model's context, CheckpointError where
    the model's logits are no numbers.
    """
    endings = [
        make_ending(tokenizer, model.config, question.where, question.context, choice)
        for question in questions
        for choice in question.choices
    ]
    found = score(model, endings, progress)
    scores = iter(found.scores)
    right = np.array(
        [_right(question, [next(scores) for _ in question.choices]) for question in questions]
    )
    (by_sum, error), (per_token, token_error), (per_byte, byte_error) = map(_accuracy, right.T)
    return ChoiceAccuracy(
        dtype=model.dtype,
        questions=len(questions),
        accuracy=by_sum,
        standard_error=error,
        accuracy_per_token=per_token,
        standard_error_per_token=token_error,
        accuracy_per_byte=per_byte,
        standard_error_per_byte=byte_error,
        tokens=found.tokens,
        seconds=found.seconds,
        tokens_per_s=found.tokens / found.seconds,
    )


def _right(question: Choice, scores: list[Score]) -> tuple[bool, bool, bool]:
    """Whether the best of a question's choices is the right one: in sum, per token, per byte."""
    log_p = np.array([score.log_p for score in scores])
    tokens = [score.tokens for score in scores]
    size = [len(choice.encode("utf-8")) for choice in question.choices]
    in_sum, per_token, per_byte = (
        int(measure.argmax()) == question.gold for measure in (log_p, log_p / tokens, log_p / size)
    )
    return in_sum, per_token, per_byte


def _accuracy(right: Sequence[bool] | np.ndarray) -> tuple[float, float]:
    """The part that is right, and its standard error."""
    p = sum(map(bool, right)) / len(right)
    return p, math.sqrt(p * (1 - p) / len(right))


# ---- tokens ----


class Continuation(NamedTuple):
    """Tokens to be scored, int64 [n], n ≥ 1, and those before them, int64 [T], T ≥ 1.

    Together they are n_positions + 1 at most, as the last one need not be read.
    """

    context: np.ndarray
    ids: np.ndarray

    @property
    def length(self) -> int:
        """How many tokens of it are read."""
        return len(self.context) + len(self.ids) - 1


def make_ending(
    tokenizer: GPTTokenizer, config: GPTConfig, where: str, context: str, text: str
) -> Continuation:
    """A text that follows a context after a space."""
    before, ids = tokenizer.encode(context), tokenizer.encode(f"{context} {text}")
    begin = _common(before, ids)
    if not begin:
        raise InputError(f"{where}: its first token is of context and ending; lengthen the context")
    if len(ids) - begin > config.n_positions:
        raise InputError(
            f"{where}: an ending of {len(ids) - begin} tokens, where this model's context is "
            f"{config.n_positions}; shorten it"
        )
    cut = max(0, len(ids) - 1 - config.n_positions)
    array = checked_ids(ids[cut:], config)
    return Continuation(array[: begin - cut], array[begin - cut :])


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """With how many tokens both begin; not with all of b."""
    shortest = min(len(a), len(b) - 1)
    return next((i for i in range(shortest) if a[i] != b[i]), shortest)


# ---- scores ----


class Scores(NamedTuple):
    """The score of each ending, the tokens that were read for them, and the seconds it took."""

    scores: list[Score]
    tokens: int
    seconds: float


def score(
    model: GPTModel, endings: Sequence[Continuation], progress: Progress | None = None
) -> Scores:
    """Score endings, one at least; the arguments and errors are those of `last_words`."""
    if not endings:
        raise InputError("questions: none; must be at least one")
    warm_up(model, endings[0].context)
    order = sorted(range(len(endings)), key=lambda i: len(endings[i].context), reverse=True)
    batches = list(_batches([endings[i] for i in order]))
    total = sum(map(_tokens, batches))
    start, done, found = perf_counter(), 0, list[Score]()
    for batch in batches:
        found += _score_batch(model, batch)
        done += _tokens(batch)
        if progress:
            progress(done, total)
    seconds = perf_counter() - start
    scores = dict(zip(order, found, strict=True))
    return Scores([scores[i] for i in range(len(endings))], total, seconds)


def _batches(endings: Sequence[Continuation]) -> Iterator[list[Continuation]]:
    """The endings in order, as many together as find room."""
    batch: list[Continuation] = []
    longest = 0
    for ending in endings:
        longest = max(longest, ending.length)
        if batch and (len(batch) == _ROWS or (len(batch) + 1) * longest > _TOKENS):
            yield batch
            batch, longest = [], ending.length
        batch.append(ending)
    yield batch


def _sharing(batch: Sequence[Continuation]) -> list[list[int]]:
    """The numbers of those that have the same context, for each context."""
    return [
        list(numbers)
        for _, numbers in groupby(range(len(batch)), key=lambda i: batch[i].context.tobytes())
    ]


def _tokens(batch: Sequence[Continuation]) -> int:
    """How many tokens of a batch are read: all but the last ones, a context that is shared once."""
    contexts = sum(len(batch[first].context) for first, *_ in _sharing(batch))
    return contexts + sum(len(ending.ids) - 1 for ending in batch)


def _score_batch(model: GPTModel, batch: Sequence[Continuation]) -> list[Score]:
    """The score of each of them."""
    log_p, greedy = np.zeros(len(batch)), np.ones(len(batch), bool)
    for i, token, logits in _foretold(model, batch):
        log_p[i] += float(logits[token]) - log_sum_exp(logits)
        greedy[i] &= logits.argmax() == token
    return [
        Score(float(log_p[i]), len(ending.ids), bool(greedy[i])) for i, ending in enumerate(batch)
    ]


def _foretold(
    model: GPTModel, batch: Sequence[Continuation]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(number of an ending, a token of it, float32 [V]: the logits before that) of all tokens.

    The contexts are read first, then the endings, of each its tokens in order.
    """
    state = model.new_state(len(batch), max(ending.length for ending in batch))
    sharing = _sharing(batch)
    firsts = [numbers[0] for numbers in sharing]
    rows = model.advance(state, firsts, [batch[i].context for i in firsts])
    check_finite(rows)
    for (first, *others), logits in zip(sharing, rows, strict=True):
        state.copy(first, others)
        for i in (first, *others):
            yield i, batch[i].ids[0], logits

    for pieces in _pieces([len(ending.ids) - 1 for ending in batch]):
        ids = [batch[i].ids[begin:end] for i, begin, end in pieces]
        rows = model.advance(state, [i for i, _, _ in pieces], ids, every=True)
        check_finite(rows)
        read = ((i, n) for i, begin, end in pieces for n in range(begin, end))
        for (i, n), logits in zip(read, rows, strict=True):
            yield i, batch[i].ids[n + 1], logits


def _pieces(lengths: Sequence[int]) -> Iterator[list[tuple[int, int, int]]]:
    """Sequences of these lengths, one after the other, cut so that _ROWS tokens are together.

    yields  (number of the sequence, begin, end) of each that has tokens among them
    """
    ends = np.cumsum(lengths)
    begins = ends - lengths
    for start in range(0, int(ends[-1]), _ROWS):
        first = np.clip(start - begins, 0, lengths)
        last = np.clip(start + _ROWS - begins, 0, lengths)
        yield [(int(i), int(first[i]), int(last[i])) for i in np.flatnonzero(first < last)]
