"""From logits to the next token: greedy, or drawn by temperature, top-k, top-p and min-p.

The order is that of Hugging Face's generation: the temperature first, then top-k, top-p, min-p,
each over what the one before has left. Where two tokens are equally likely, the lower id counts
as the likelier, so k tokens are k tokens and the same logits give the same choice everywhere.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np

from ..arguments import checked_integer, checked_number
from ..errors import CheckpointError


@dataclass(frozen=True)
class SamplingParams:
    """How a token is chosen; checked once, here, so that `sample` need not.

    temperature  divides the logits; 0 takes the likeliest token, and the rest has no say
    top_k        keep the k likeliest tokens; None: all
    top_p        keep the likeliest tokens that together reach this probability; None: all
    min_p        keep the tokens at least this fraction as likely as the likeliest; None: all
    seed         the same seed draws the same tokens; None: a new one each time
    vocab_size   only ids below it are tokens; None: all are. Models pad their vocabulary, mostly
                 to a round number, with ids that no tokenizer knows

    Raises InputError for a value of the wrong type or out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        checked_number(
            "temperature", self.temperature, "a number of at least 0", 0, sys.float_info.max
        )
        if self.top_k is not None:
            checked_integer("top_k", self.top_k, 1, what="or None")
        if self.top_p is not None:
            above_0 = math.nextafter(0, 1)
            checked_number("top_p", self.top_p, "above 0 and at most 1, or None", above_0, 1)
        if self.min_p is not None:
            checked_number("min_p", self.min_p, "from 0 to 1, or None", 0, 1)
        if self.seed is not None:
            checked_integer("seed", self.seed, 0, 2**64 - 1, "or None")
        if self.vocab_size is not None:
            checked_integer("vocab_size", self.vocab_size, 1, what="or None")


def generators(seed: int | None, count: int) -> list[np.random.Generator]:
    """One source of randomness per row: row i draws the same numbers whatever `count` is.

    PCG64 is named, not left to NumPy's default, so that a seed keeps its meaning.
    """
    children = np.random.SeedSequence(None if seed is None else int(seed)).spawn(count)
    return [np.random.Generator(np.random.PCG64(child)) for child in children]


def sample(logits: np.ndarray, params: SamplingParams, rng: np.random.Generator) -> int:
    """The next token for `logits`, float32 [V].

    Draws one number from `rng`, or none at temperature 0. Raises CheckpointError where the logits
    have no finite largest one: what such a model would say is not a choice.
    """
    logits = logits[: params.vocab_size]
    peak = float(logits.max())  # NaN if any is
    if not np.isfinite(peak):
        raise CheckpointError(
            f"logits: the largest is {peak}, so no token can be chosen; "
            "the weights are damaged, or overflow in this dtype"
        )
    if params.temperature == 0:
        return int(logits.argmax())
    ids = likeliest(logits, params.top_k)
    with np.errstate(over="ignore"):  # a tiny temperature: -inf is what is meant
        weights = np.exp((logits[ids].astype(np.float64) - peak) / float(params.temperature))
    if params.top_p is not None and params.top_p < 1:
        kept = nucleus(weights, float(params.top_p))
        ids, weights = ids[kept], weights[kept]
    if params.min_p is not None:
        kept = weights >= params.min_p * weights.max()
        ids, weights = ids[kept], weights[kept]
    return int(ids[draw(weights, rng)])


def likeliest(logits: np.ndarray, k: int | None) -> np.ndarray:
    """The ids of the k largest of `logits` [V], all of them for None; int64, ascending."""
    V = len(logits)
    if k is None or k >= V:
        return np.arange(V)
    k = int(k)  # V - k may be too large for the type of a NumPy integer
    smallest = np.partition(logits, V - k)[V - k]
    kept = logits > smallest
    tied = np.flatnonzero(logits == smallest)
    kept[tied[: k - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices, ascending, of the fewest `weights` [n] that hold `top_p` of their sum.

    Of n weights, those below (1 - top_p) / n of the sum hold less than 1 - top_p together, so none
    of them belongs to the nucleus: the rest, mostly a few hundred, is all that must be sorted.
    Holtzman et al. 2020, https://arxiv.org/abs/1904.09751, section 3.1.
    """
    total = weights.sum()
    candidates = np.flatnonzero(weights >= (1 - top_p) / len(weights) * total)
    candidates = candidates[np.argsort(-weights[candidates], kind="stable")]
    before = np.cumsum(weights[candidates]) - weights[candidates]
    # the first has exactly nothing before it, so something always stays
    return np.sort(candidates[before < top_p * total])


def draw(weights: np.ndarray, rng: np.random.Generator) -> int:
    """An index into `weights` [n], with a probability in proportion to its weight.

    One uniform number, looked up in the running sum; a weight of 0 is never drawn.
    """
    sums = np.cumsum(weights)
    return int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
