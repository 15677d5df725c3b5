"""Perplexity of a text under a model, and the divergence of two models on a text.

    ids = tokenizer.encode(text)
    perplexity(model, ids, len(text.encode())).bits_per_byte
    compare(model, other, ids).kl_mean

Every token is scored once, by −ln p(token | the tokens before it). The model reads its start token
first (`GPTConfig.start_token_id`), so the first token of a text is predicted, too; a model without
one scores every token but the first. A text longer than the context is read in sliding windows that
begin `stride` tokens apart:

    window 8, stride 4    read, and the token after each scored: ─     read again as context: ·

    ────────
        ····────
            ····────

Positions are absolute, so the tokens that two windows share are computed anew in the second: a text
costs window / stride passes. A token is predicted from all tokens before it in its window: in the
first window from as many as there are, in later ones from window − stride + 1 to window tokens.
The default stride, half the window, costs two passes and gives every later token at least half the
context. Stride 1 gives each token all of the context, and costs `window` passes; stride = window
costs one pass, but the first tokens of each window have hardly any context.

With `rolling=True` the windows are those of the lm-evaluation-harness (`loglikelihood_rolling`),
which do not overlap: the first new token of each is predicted from one token, the last of the
window before. Only the last window begins earlier, and is full:

    window 8, 20 tokens   ────────
                                  ────────
                                      ····────

However long window and text are, at most MAX_LOGITS rows of logits are in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..api import GPTModel
from ..arguments import (
    check_callable,
    check_model,
    check_tokenizer,
    checked_bool,
    checked_count,
    checked_ids,
    checked_integer,
)
from ..config import GPTConfig
from ..errors import CheckpointError, InputError
from ..tokenizer.tokenizer import GPTTokenizer

MAX_LOGITS = 128  # tokens whose logits are computed together: 26 MB of them for 50257 tokens

Progress = Callable[[int, int], None]  # called with (tokens done, tokens in all)
Method = Literal["sliding", "rolling"]


@dataclass(frozen=True)
class Perplexity:
    """The result of `perplexity`.

    dtype             dtype of the model's weight matrices: "f32", "bf16", "int8" or "int4"
    method            "sliding" or "rolling" windows
    window, stride    in tokens; rolling windows have stride = window
    tokens            number of tokens scored: all of the text where the model has a start token,
                      else all but the first
    bytes             length of these tokens in UTF-8
    words             number of words, separated by white space; None where it was not given
    nats_per_token    mean of −ln p over the tokens: the cross-entropy
    perplexity        exp(nats_per_token)
    bits_per_byte     sum of −log₂ p, divided by bytes; unlike perplexity it can be compared between
                      tokenizers
    byte_perplexity   2^bits_per_byte; None where it overflows
    word_perplexity   exp of the sum of −ln p, divided by words; None without words, and where it
                      overflows
    seconds           time of the forward passes
    tokens_per_s      tokens / seconds
    """

    dtype: str
    method: Method
    window: int
    stride: int
    tokens: int
    bytes: int
    words: int | None
    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    byte_perplexity: float | None
    word_perplexity: float | None
    seconds: float
    tokens_per_s: float


@dataclass(frozen=True)
class Comparison:
    """The result of `compare` for a model A and a model B.

    dtype_a, dtype_b            dtypes of their weight matrices
    window, stride, tokens      as in Perplexity
    perplexity_a, perplexity_b  perplexity of each
    perplexity_change_percent   100 · (perplexity_b / perplexity_a − 1)
    kl_mean, kl_p99, kl_max     KL(A‖B) = Σ p_A · ln(p_A / p_B) over the vocabulary, in nats: mean,
                                99th percentile and maximum over the tokens
    top1_agreement              fraction of tokens for which both models have the same argmax
    seconds                     time of the forward passes of both
    tokens_per_s                tokens / seconds
    """

    dtype_a: str
    dtype_b: str
    window: int
    stride: int
    tokens: int
    perplexity_a: float
    perplexity_b: float
    perplexity_change_percent: float
    kl_mean: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    seconds: float
    tokens_per_s: float


def perplexity(
    model: GPTModel,
    ids: Sequence[int] | npt.NDArray[np.integer],
    text_bytes: int,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
    *,
    words: int | None = None,
    rolling: bool = False,
) -> Perplexity:
    """Score a text with a model.

    ids         tokens of the text, int [T]. T ≥ 1 where the model has a start token, which is read
                first; else T ≥ 2, and the first is not scored
    text_bytes  length in UTF-8, from 1, of the tokens that are scored: the whole text where the
                model has a start token. `scored_text` gives it in both cases
    window      maximum number of tokens that a token is predicted from: 1 … n_positions.
                Default: n_positions
    stride      tokens from the beginning of one window to that of the next: 1 … window.
                Default: half the window
    progress    called with (tokens scored, tokens to score) after each token
    words       number of words of the text, for word_perplexity
    rolling     True for windows without overlap, as in the lm-evaluation-harness, in place of
                sliding ones; stride must be None. Default: False

    Raises InputError for an argument out of its range, CheckpointError for logits that are NaN or
    infinite.
    """
    check_model("model", model)
    check_callable("progress", progress)
    tokens = checked_text_ids(ids, model.config)
    text_bytes = checked_count("text_bytes", text_bytes, 1)
    if words is not None:
        words = checked_count("words", words, 1)
    rolling = checked_bool("rolling", rolling)
    windows = Windows.checked(model.config.n_positions, window, stride, rolling)
    warm_up(model, tokens)
    sequence = with_start(tokens, model.config)
    total = len(sequence) - 1
    start, nats = perf_counter(), 0.0
    for done, logits in enumerate(_logits(model, sequence[:-1], windows), 1):
        nats += log_sum_exp(logits) - float(logits[sequence[done]])
        if progress:
            progress(done, total)
    seconds = perf_counter() - start
    return _result(
        dtype=model.dtype,
        windows=windows,
        tokens=total,
        text_bytes=text_bytes,
        words=words,
        nats=nats,
        seconds=seconds,
    )


def combined(results: Sequence[Perplexity]) -> Perplexity:
    """The perplexity over several texts, at least one, that a model scored with one window."""
    first = results[0]
    if len(results) == 1:  # nats = tokens · mean would round, and change its last digit
        return first
    words = [result.words for result in results if result.words is not None]
    return _result(
        dtype=first.dtype,
        windows=Windows(first.method, first.window, first.stride),
        tokens=sum(result.tokens for result in results),
        text_bytes=sum(result.bytes for result in results),
        words=sum(words) if len(words) == len(results) else None,
        nats=sum(result.tokens * result.nats_per_token for result in results),
        seconds=sum(result.seconds for result in results),
    )


def scored_text(
    tokenizer: GPTTokenizer, config: GPTConfig, text: str, ids: npt.NDArray[np.int64]
) -> bytes:
    """The part of a text, in UTF-8, whose tokens a model scores; ids are those of the text, [T].

    All of it where the model has a start token, else all but the first token.
    """
    if config.start_token_id is not None:
        return text.encode("utf-8")
    return tokenizer._bytes_of(ids[1:], skip_special_tokens=False)


def count_words(text: str) -> int:
    """Number of words, as the lm-evaluation-harness counts: parts between runs of white space.

    White space at the beginning or the end has an empty part beside it, which counts.
    """
    return 1 + sum(1 for _ in re.finditer(r"\s+", text))


def compare(
    a: GPTModel,
    b: GPTModel,
    ids: Sequence[int] | npt.NDArray[np.integer],
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Score a text with two models, and measure how far their predictions diverge.

    ids             tokens of the text, int [T]; the same for both: see `common_ids`. T ≥ 1 where
                    both models have a start token, which each reads first; else T ≥ 2, and the
                    first is not scored
    window, stride  as for `perplexity`; the default window is the smaller n_positions of the two
    progress        called with (tokens scored, tokens to score) after each token

    Raises InputError for an argument out of its range, and for models whose vocabularies differ in
    size; CheckpointError for logits that are NaN or infinite.
    """
    return compare_texts(a, b, [ids], window, stride, progress)


def compare_texts(
    a: GPTModel,
    b: GPTModel,
    texts: Sequence[Sequence[int] | npt.NDArray[np.integer]],
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """`compare` for several texts, at least one, each scored on its own."""
    check_model("a", a)
    check_model("b", b)
    check_callable("progress", progress)
    if a.config.vocab_size != b.config.vocab_size:
        raise InputError(
            f"models of {a.config.vocab_size} and {b.config.vocab_size} tokens cannot be "
            "compared; both must have the same vocabulary"
        )
    sequences = [_with_starts(ids, a.config, b.config) for ids in texts]
    n_positions = min(a.config.n_positions, b.config.n_positions)
    windows = Windows.checked(n_positions, window, stride)
    for model in (a, b):
        warm_up(model, sequences[0][0])
    total = sum(len(sequence) - 1 for sequence, _ in sequences)
    start, nats_a, nats_b, agreed = perf_counter(), 0.0, 0.0, 0
    kl = np.empty(total)
    pairs = chain.from_iterable(
        zip(
            sequence_a[1:],
            _logits(a, sequence_a[:-1], windows),
            _logits(b, sequence_b[:-1], windows),
            strict=True,
        )
        for sequence_a, sequence_b in sequences
    )
    for done, (target, logits_a, logits_b) in enumerate(pairs, 1):
        lse_a, lse_b = log_sum_exp(logits_a), log_sum_exp(logits_b)
        nats_a += lse_a - float(logits_a[target])
        nats_b += lse_b - float(logits_b[target])
        kl[done - 1] = _divergence(logits_a, logits_b, lse_a - lse_b)
        agreed += bool(logits_a.argmax() == logits_b.argmax())
        if progress:
            progress(done, total)
    seconds = perf_counter() - start
    return Comparison(
        dtype_a=a.dtype,
        dtype_b=b.dtype,
        window=windows.window,
        stride=windows.stride,
        tokens=total,
        perplexity_a=_exp(nats_a / total),
        perplexity_b=_exp(nats_b / total),
        perplexity_change_percent=100 * math.expm1((nats_b - nats_a) / total),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.percentile(kl, 99)),
        kl_max=float(kl.max()),
        top1_agreement=agreed / total,
        seconds=seconds,
        tokens_per_s=total / seconds,
    )


def common_ids(
    a: GPTTokenizer, b: GPTTokenizer, text: str, allow_special: bool = False
) -> list[int]:
    """The ids of `text`; raises InputError unless both tokenizers give the same."""
    check_tokenizer("a", a)
    check_tokenizer("b", b)
    ids_a, ids_b = (each.encode(text, allow_special=allow_special) for each in (a, b))
    if ids_a != ids_b:
        shorter = min(len(ids_a), len(ids_b))
        differing = next((i for i in range(shorter) if ids_a[i] != ids_b[i]), shorter)
        raise InputError(
            f"the two tokenizers differ on this text from token {differing} on; "
            "only models with the same tokens can be compared"
        )
    return ids_a


# ---- forward passes ----


class Windows(NamedTuple):
    """How a text longer than the context is read; see above.

    method          "sliding" or "rolling"
    window, stride  in tokens
    """

    method: Method
    window: int
    stride: int

    @classmethod
    def checked(
        cls, n_positions: int, window: int | None, stride: int | None, rolling: bool = False
    ) -> Windows:
        """With the defaults filled in; raises InputError for a window or stride out of range."""
        if window is None:
            window = n_positions
        window = checked_integer("window", window, 1, n_positions, "the context")
        if rolling:
            if stride is not None:
                raise InputError("stride: rolling windows have none; leave it out", "stride")
            return cls("rolling", window, window)
        if stride is None:
            stride = max(1, window // 2)
        return cls("sliding", window, checked_integer("stride", stride, 1, window, "the window"))

    def of(self, tokens: int) -> Iterator[tuple[int, int, int]]:
        """Yield (begin, first, end) of each window over a sequence of tokens.

        The window's tokens are begin … end − 1, new are first … end − 1.
        """
        begin = first = 0
        while first < tokens:
            end = min(begin + self.window, tokens)
            if self.method == "rolling":  # the last one is as long as the others
                begin = max(0, end - self.window)
            yield begin, first, end
            begin, first = begin + self.stride, end


def _logits(model: GPTModel, ids: np.ndarray, windows: Windows) -> Iterator[np.ndarray]:
    """Yield the logits after each of ids, int64 [T]: float32 [V], computed MAX_LOGITS at a time.

    The tokens that a window reads again as context are read without logits.
    """
    cache = model.engine.new_cache(1, min(windows.window, len(ids)))
    slot = cache.allocate()
    for begin, first, end in windows.of(len(ids)):
        cache.truncate(slot, 0)
        if begin < first:
            model.engine.forward(cache, [slot], [ids[begin:first]], last=0)
        for start in range(first, end, MAX_LOGITS):
            chunk = ids[start : min(start + MAX_LOGITS, end)]
            logits = model.engine.forward(cache, [slot], [chunk], last=None)
            check_finite(logits)
            yield from logits


def warm_up(model: GPTModel, ids: np.ndarray) -> None:
    """Run one token through the model, so that compiling its kernels is not timed."""
    cache = model.engine.new_cache(1, 1)
    model.engine.forward(cache, [cache.allocate()], [ids[:1]])


# ---- scoring, a token at a time: the logits of one token fit the processor's cache, those of many
# do not. Elementwise arithmetic is float32, sums are float64. ----


def log_sum_exp(logits: np.ndarray) -> float:
    """ln Σ exp(logits), float32 [V]; terms far below the maximum may round to 0."""
    with np.errstate(all="ignore"):
        peak = logits.max()
        return float(peak) + math.log(np.exp(logits - peak).sum(dtype=np.float64))


def _divergence(a: np.ndarray, b: np.ndarray, lse_difference: float) -> float:
    """KL(A‖B) = Σ p_a · (ln p_a − ln p_b) of logits a and b, float32 [V].

    lse_difference  log_sum_exp(a) − log_sum_exp(b)

    As ln p = logit − lse, this is the mean of a − b under p_a, minus lse_difference: for models
    that are close, every term is small. Rounding can make it negative; a divergence is at least 0.
    """
    with np.errstate(all="ignore"):
        weights = np.exp(a - a.max())
        mean = (weights * (a - b)).sum(dtype=np.float64) / weights.sum(dtype=np.float64)
    return max(float(mean) - lse_difference, 0.0)


def _result(
    *,
    dtype: str,
    windows: Windows,
    tokens: int,
    text_bytes: int,
    words: int | None,
    nats: float,
    seconds: float,
) -> Perplexity:
    """The result for `tokens` tokens whose −ln p add up to `nats`."""
    return Perplexity(
        dtype=dtype,
        method=windows.method,
        window=windows.window,
        stride=windows.stride,
        tokens=tokens,
        bytes=text_bytes,
        words=words,
        nats_per_token=nats / tokens,
        perplexity=_exp(nats / tokens),
        bits_per_byte=nats / math.log(2) / text_bytes,
        byte_perplexity=exp_or_none(nats / text_bytes),
        word_perplexity=None if words is None else exp_or_none(nats / words),
        seconds=seconds,
        tokens_per_s=tokens / seconds,
    )


def exp_or_none(nats: float) -> float | None:
    """The perplexity; None where it overflows, as of a word that is a whole text without spaces."""
    try:
        return math.exp(nats)
    except OverflowError:
        return None


def _exp(nats_per_token: float) -> float:
    """The perplexity; raises CheckpointError where it overflows a float64."""
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        raise CheckpointError(
            f"perplexity: overflows at {nats_per_token:.4g} nats per token; the weights are damaged"
        ) from None


# ---- arguments ----


def checked_text_ids(ids: object, config: GPTConfig) -> npt.NDArray[np.int64]:
    """`ids` as int64 [T], at least one of them scored, below vocab_size; raises InputError."""
    array = checked_ids(ids, config.vocab_size)
    if len(array) < min_tokens(config):
        raise InputError(f"ids: {too_short(len(array), config)}")
    return array


def min_tokens(config: GPTConfig) -> int:
    """Number of tokens that a text needs, for one of them to be predicted."""
    return 2 if config.start_token_id is None else 1


def too_short(tokens: int, config: GPTConfig) -> str:
    """What is wrong with a text of fewer tokens."""
    found = "1 token" if tokens else "empty"
    if config.start_token_id is not None:
        return f"{found}; a text needs at least 1 token"
    return (
        f"{found}; a text needs at least 2 tokens, as this model has no token that begins a text, "
        "and the first is not predicted"
    )


def with_start(ids: npt.NDArray[np.int64], config: GPTConfig) -> npt.NDArray[np.int64]:
    """`ids`, [T], after the model's start token where it has one."""
    start = config.start_token_id
    return ids if start is None else np.concatenate([np.array([start], np.int64), ids])


def _with_starts(
    ids: object, a: GPTConfig, b: GPTConfig
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`ids` after the start token of each model; as they are unless both have one."""
    without = next((config for config in (a, b) if config.start_token_id is None), None)
    tokens = checked_text_ids(ids, without or a)
    if without:
        return tokens, tokens
    return with_start(tokens, a), with_start(tokens, b)


def check_finite(logits: np.ndarray) -> None:
    """Raises CheckpointError unless all logits are finite."""
    for extreme in (float(logits.min()), float(logits.max())):  # NaN if any is
        if not math.isfinite(extreme):
            raise CheckpointError(
                f"logits: one is {extreme}, so nothing can be scored; "
                "the weights are damaged, or overflow in this dtype"
            )
