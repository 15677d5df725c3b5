"""How well a model knows a text, and how far two models are apart on it.

    ids = tokenizer.encode(text)
    perplexity(model, ids, len(text.encode())).bits_per_byte
    compare(model, other, ids).kl_mean

Every token after the first is scored once: −ln p(token | the tokens before it). A text may be
longer than a model's context, so it is read in windows that begin `stride` tokens apart:

    window 8, stride 4    read, and the token after each scored: ─     read again as context: ·

    ────────
        ····────
            ····────

Positions are absolute, so the tokens that two windows share are read anew in the second: a text
costs window / stride times its length. A token sees what its window holds before it, the first
window's tokens as much as there is, all later ones from window − stride + 1 to window tokens.
Half the window as the stride, the default, costs two passes and leaves every token half the
context or more; stride 1 gives each all of it and costs `window` passes; stride = window reads
once, but then the first tokens of each window know nothing of what came before.

The logits of a few hundred tokens at most are in memory, however long window and text are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from ..api import GPTModel
from ..arguments import is_integer
from ..config import GPTConfig
from ..errors import CheckpointError, InputError, short_repr
from ..tokenizer.tokenizer import GPTTokenizer

_ROWS = 128  # tokens whose logits are computed together: of 50257 words, 26 MB

Progress = Callable[[int, int], None]  # (tokens scored, all there are to score)


@dataclass(frozen=True)
class Perplexity:
    """What `perplexity` finds.

    dtype             how the model's matrices are held
    window, stride    in tokens
    tokens            the tokens scored: all but the first of the text
    bytes             of the whole text in UTF-8
    nats_per_token    the mean of −ln p
    perplexity        e to the power of that
    bits_per_byte     the sum of −log₂ p ÷ bytes; unlike perplexity it does not depend on how the
                      text is cut into tokens
    seconds           spent reading the text
    tokens_per_s      tokens ÷ seconds
    """

    dtype: str
    window: int
    stride: int
    tokens: int
    bytes: int
    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    seconds: float
    tokens_per_s: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds of a model A and a model B.

    dtype_a, dtype_b            how their matrices are held
    window, stride, tokens      as in Perplexity
    perplexity_a, perplexity_b  of each
    perplexity_change_percent   100 · (perplexity_b ÷ perplexity_a − 1)
    kl_mean, kl_p99, kl_max     Σ p_A · ln(p_A ÷ p_B) over the vocabulary, in nats: the mean over
                                the tokens, what 99 of 100 stay below, the largest
    top1_agreement              the fraction of tokens for which both hold the same one likeliest
    seconds                     spent reading the text, with both
    tokens_per_s                tokens ÷ seconds
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
    ids: Any,
    text_bytes: int,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Score a text with a model.

    ids         the text's tokens, int [T], T ≥ 2
    text_bytes  the text's length in UTF-8
    window      the most tokens a token sees before it: 1 … n_positions (the default)
    stride      how far apart windows begin: 1 … window; by default half of it
    progress    is told (tokens scored, tokens to score) as it goes on

    Raises InputError for a wrong argument, CheckpointError where the model's logits are no numbers.
    """
    ids = checked_ids(ids, model.config)
    if not (is_integer(text_bytes) and text_bytes >= 1):
        raise InputError(f"text_bytes {short_repr(text_bytes)}: must be an integer from 1")
    window, stride = _checked_window(model.config.n_positions, window, stride)
    warm_up(model, ids)
    total = len(ids) - 1
    start, nats = perf_counter(), 0.0
    for done, logits in enumerate(_logits(model, ids[:-1], window, stride), 1):
        nats += log_sum_exp(logits) - float(logits[ids[done]])
        if progress:
            progress(done, total)
    seconds = perf_counter() - start
    return _perplexity(model.dtype, window, stride, total, int(text_bytes), nats, seconds)


def together(results: Sequence[Perplexity]) -> Perplexity:
    """One result for several texts (at least one) that one model was scored on the same way."""
    if len(results) == 1:  # to the last digit, which a sum made of its mean may miss
        return results[0]
    return _perplexity(
        results[0].dtype,
        results[0].window,
        results[0].stride,
        sum(result.tokens for result in results),
        sum(result.bytes for result in results),
        sum(result.tokens * result.nats_per_token for result in results),
        sum(result.seconds for result in results),
    )


def compare(
    a: GPTModel,
    b: GPTModel,
    ids: Any,
    window: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Read a text with two models and tell how far apart their predictions are.

    ids             the text's tokens, int [T], T ≥ 2, the same for both: see `common_ids`
    window, stride  as `perplexity` takes them, within the n_positions of both
    progress        is told (tokens scored, tokens to score) as it goes on

    Raises InputError for a wrong argument or where the models have not the same vocabulary,
    CheckpointError where the logits of one are no numbers.
    """
    if a.config.vocab_size != b.config.vocab_size:
        raise InputError(
            f"models of {a.config.vocab_size} and {b.config.vocab_size} tokens cannot be "
            "compared; both must have the same vocabulary"
        )
    ids = checked_ids(ids, a.config)
    n_positions = min(a.config.n_positions, b.config.n_positions)
    window, stride = _checked_window(n_positions, window, stride)
    for model in (a, b):
        warm_up(model, ids)
    total = len(ids) - 1
    start, nats_a, nats_b, agreed = perf_counter(), 0.0, 0.0, 0
    kl = np.empty(total)
    pairs = zip(*(_logits(model, ids[:-1], window, stride) for model in (a, b)), strict=True)
    for done, (logits_a, logits_b) in enumerate(pairs, 1):
        sum_a, sum_b = log_sum_exp(logits_a), log_sum_exp(logits_b)
        nats_a += sum_a - float(logits_a[ids[done]])
        nats_b += sum_b - float(logits_b[ids[done]])
        kl[done - 1] = _divergence(logits_a, logits_b, sum_a - sum_b)
        agreed += bool(logits_a.argmax() == logits_b.argmax())
        if progress:
            progress(done, total)
    seconds = perf_counter() - start
    return Comparison(
        dtype_a=a.dtype,
        dtype_b=b.dtype,
        window=window,
        stride=stride,
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


def common_ids(a: GPTTokenizer, b: GPTTokenizer, text: str) -> list[int]:
    """The ids of a text, which must be the same with both tokenizers; else raises InputError."""
    ids, others = a.encode(text), b.encode(text)
    if ids != others:
        pairs = zip(ids, others, strict=False)
        shared = min(len(ids), len(others))
        where = next((i for i, (one, other) in enumerate(pairs) if one != other), shared)
        raise InputError(
            f"the two tokenizers differ on this text from token {where} on; "
            "only models with the same tokens can be compared"
        )
    return ids


# ---- reading ----


def _windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end) of each: begin … end − 1 are read, first … end − 1 for the first time."""
    begin = first = 0
    while first < tokens:
        end = min(begin + window, tokens)
        yield begin, first, end
        begin, first = begin + stride, end


def _logits(model: GPTModel, ids: np.ndarray, window: int, stride: int) -> Iterator[np.ndarray]:
    """The logits after each of ids, int64 [T], one by one: float32 [V].

    They are computed for _ROWS tokens together. What a window reads again is read without logits.
    """
    state = model.new_state(1, min(window, len(ids)))
    for begin, first, end in _windows(len(ids), window, stride):
        state.lengths[0] = 0
        if begin < first:
            model.advance(state, [0], [ids[begin:first]])
        for start in range(first, end, _ROWS):
            piece = ids[start : min(start + _ROWS, end)]
            logits = model.advance(state, [0], [piece], every=True)
            check_finite(logits)
            yield from logits


def warm_up(model: GPTModel, ids: np.ndarray) -> None:
    """A token whose time is not counted: it compiles the kernels where that is still to be done."""
    model.advance(model.new_state(1, 1), [0], [ids[:1]])


# ---- scoring, a token at a time: its logits, unlike those of many, stay in the processor's cache.
# What is made of each of them is float32, sums are float64. ----


def log_sum_exp(logits: np.ndarray) -> float:
    """ln Σ exp(logits), float32 [V]. The smallest terms may round to 0."""
    peak = logits.max()
    return float(peak) + math.log(np.exp(logits - peak).sum(dtype=np.float64))


def _divergence(a: np.ndarray, b: np.ndarray, log_sums: float) -> float:
    """KL(A‖B) = Σ p_a · (ln p_a − ln p_b) of the logits a and b, float32 [V].

    log_sums  log_sum_exp(a) − log_sum_exp(b)

    As ln p = logit − log_sum, that is the mean of a − b under p_a, less log_sums: of close models
    every term is small. Rounding can take it below 0, which no divergence is.
    """
    weights = np.exp(a - a.max())
    mean = (weights * (a - b)).sum(dtype=np.float64) / weights.sum(dtype=np.float64)
    return max(float(mean) - log_sums, 0.0)


def _perplexity(
    dtype: str, window: int, stride: int, tokens: int, text_bytes: int, nats: float, seconds: float
) -> Perplexity:
    """The result for `tokens` tokens that surprised the model by `nats` nats together."""
    return Perplexity(
        dtype=dtype,
        window=window,
        stride=stride,
        tokens=tokens,
        bytes=text_bytes,
        nats_per_token=nats / tokens,
        perplexity=_exp(nats / tokens),
        bits_per_byte=nats / math.log(2) / text_bytes,
        seconds=seconds,
        tokens_per_s=tokens / seconds,
    )


def _exp(nats_per_token: float) -> float:
    """The perplexity; raises CheckpointError where no number holds it."""
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        raise CheckpointError(
            f"{nats_per_token:.4g} nats per token are no perplexity that a number can hold; "
            "the weights are damaged"
        ) from None


# ---- arguments ----


def checked_ids(ids: Any, config: GPTConfig) -> np.ndarray:
    """`ids` as int64 [T], T ≥ 2, every id a token; raises InputError."""
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError, TypeError):  # rows of unequal length; no numbers at all
        raise InputError("ids: must be a flat sequence of integers") from None
    if array.ndim == 1 and array.size < 2:
        count = "1 token" if array.size else "no tokens"
        raise InputError(f"ids: {count}; must be at least 2, as the first one is not scored")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"ids: {array.dtype} of shape {list(array.shape)}; must be a flat sequence of integers"
        )
    for extreme in (int(array.min()), int(array.max())):
        if not 0 <= extreme < config.vocab_size:
            raise InputError(
                f"ids: {extreme} is not a token of the model; "
                f"they go from 0 to {config.vocab_size - 1}"
            )
    return array.astype(np.int64)


def _checked_window(n_positions: int, window: int | None, stride: int | None) -> tuple[int, int]:
    """Window and stride, the defaults put in; raises InputError for what is out of range."""
    window = n_positions if window is None else window
    if not (is_integer(window) and 1 <= window <= n_positions):
        raise InputError(
            f"window {short_repr(window)}: must be an integer from 1 to {n_positions}, the context"
        )
    stride = max(1, window // 2) if stride is None else stride
    if not (is_integer(stride) and 1 <= stride <= window):
        raise InputError(
            f"stride {short_repr(stride)}: must be an integer from 1 to {window}, the window"
        )
    return int(window), int(stride)


def check_finite(logits: np.ndarray) -> None:
    """Raises CheckpointError for logits that are not all numbers."""
    for extreme in (float(logits.min()), float(logits.max())):  # NaN if any is
        if not math.isfinite(extreme):
            raise CheckpointError(
                f"logits: one is {extreme}, so nothing can be scored; "
                "the weights are damaged, or overflow in this dtype"
            )
