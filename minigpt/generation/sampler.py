"""From logits to the next token: greedy, or drawn by temperature, top-k, top-p and min-p.

The order is Hugging Face's: first the temperature, then top-k, top-p and min-p, each over the
tokens that the one before it left. Of two equally likely tokens the lower id ranks first, so top-k
leaves exactly k tokens, and the same logits give the same choice on every machine.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..arguments import checked_integer, checked_number, checked_token_ids
from ..errors import CheckpointError

if TYPE_CHECKING:
    from ..config import GPTConfig

Eos = int | Iterable[int] | None | Literal["config"]


@dataclass(frozen=True)
class SamplingParams:
    """The options of a generation, checked; p = softmax(logits / temperature).

    max_new_tokens  generate at most this many tokens; an integer from 0
    temperature     divides the logits: below 1 sharpens, above 1 flattens the distribution
                    (Ackley, Hinton and Sejnowski 1985, https://doi.org/10.1207/s15516709cog0901_7);
                    0 takes the token of the largest logit; top_k, top_p, min_p and seed are then
                    ignored
    top_k           keep the k most likely tokens; an integer from 1, or 0 or None for all
                    (Fan et al. 2018, https://arxiv.org/abs/1805.04833, section 5.1)
    top_p           keep the smallest set of most likely tokens with Σ p ≥ top_p; above 0 and at
                    most 1, or None for all
                    (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751, section 3.1)
    min_p           keep the tokens with p ≥ min_p · max p; from 0 to 1, or None for all
                    (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082, section 3)
    seed            an integer from 0 to 2⁶⁴ − 1: the same seed draws the same tokens; None: fresh
                    entropy
    eos_token_id    the token that ends the sequence, or several; "config": the model config's
                    eos_token_ids; None: no token
    vocab_size      sample from the ids below this one, and from those that end the sequence; None:
                    below the model's sampled_vocab_size

    Raises InputError for a value of the wrong type or out of its range; `ends` checks
    eos_token_id.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    eos_token_id: Eos = "config"
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        above_0, largest = math.nextafter(0, 1), sys.float_info.max
        self._check("max_new_tokens", checked_integer, 0)
        self._check("temperature", checked_number, "a number of at least 0", 0, largest)
        self._check("top_k", checked_integer, 0, None, "or None")
        self._check("top_p", checked_number, "above 0 and at most 1, or None", above_0, 1)
        self._check("min_p", checked_number, "from 0 to 1, or None", 0, 1)
        self._check("seed", checked_integer, 0, 2**64 - 1, "or None")
        self._check("vocab_size", checked_integer, 1, None, "or None")
        if isinstance(self.eos_token_id, Iterator):  # which can be read only once
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))

    def _check(self, name: str, check: Callable[..., object], *bounds: object) -> None:
        """Put the checked value, a plain Python number, in place of the given one."""
        value = getattr(self, name)
        if value is not None or name in ("max_new_tokens", "temperature"):
            object.__setattr__(self, name, check(name, value, *bounds))

    def ends(self, config: GPTConfig) -> tuple[int, ...]:
        """The ids that end a sequence of this model. Raises InputError."""
        eos = self.eos_token_id
        if isinstance(eos, str) and eos == "config":
            return config.eos_token_ids
        return () if eos is None else checked_token_ids("eos_token_id", eos, config.vocab_size)

    @property
    def unused(self) -> list[str]:
        """The names of the filters that are set, and do nothing at temperature 0."""
        if self.temperature:
            return []
        is_set = {
            "top_k": bool(self.top_k),
            "top_p": self.top_p is not None and self.top_p < 1,
            "min_p": bool(self.min_p),
        }
        return [name for name, value in is_set.items() if value]

    def seed_or_fresh(self) -> int:
        """The seed, or 64 bits from the operating system where it is None."""
        return int.from_bytes(os.urandom(8), "little") if self.seed is None else int(self.seed)


def allowed(logits: np.ndarray, vocab_size: int, ends: Collection[int]) -> np.ndarray:
    """The logits of the ids that may be chosen: those below vocab_size, and `ends`.

    logits  float32 [V]

    Returns a view or a copy of at most V logits, in which ids between have −∞.
    """
    beyond = [end for end in ends if end >= vocab_size]
    if not beyond:
        return logits[:vocab_size]
    chosen = logits[: max(beyond) + 1].copy()
    chosen[vocab_size:] = -np.inf
    chosen[beyond] = logits[beyond]
    return chosen


def sample(
    logits: np.ndarray, params: SamplingParams, seed: int = 0, row: int = 0, position: int = 0
) -> int:
    """The next token for `logits`, float32 [V].

    seed, row, position  choose the random number, see `uniform`; temperature 0 needs none

    Raises CheckpointError where the largest logit is not finite.
    """
    if params.temperature == 0:
        return _argmax(logits)
    ids, probabilities = distribution(logits, params)
    return int(ids[draw(probabilities, uniform(seed, row, position))])


def distribution(logits: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """The distribution that the next token is drawn from.

    logits  float32 [V]

    Returns ids, int64 [n], ascending, and their probabilities, float64 [n], of sum 1; one id at
    temperature 0. Raises CheckpointError where the largest logit is not finite.
    """
    best = _argmax(logits)
    if params.temperature == 0:
        return np.array([best]), np.ones(1)
    ids = top_k(logits, params.top_k)
    max_logit = float(logits[best])
    with np.errstate(all="ignore"):  # a tiny temperature: the exponent −∞ is right
        weights = np.exp((logits[ids].astype(np.float64) - max_logit) / float(params.temperature))
    if params.top_p is not None and params.top_p < 1:
        kept = nucleus(weights, float(params.top_p))
        ids, weights = ids[kept], weights[kept]
    if params.min_p is not None:
        likely = weights >= params.min_p * weights.max()
        ids, weights = ids[likely], weights[likely]
    with np.errstate(all="ignore"):  # as above, whatever an application makes NumPy raise
        return ids, weights / weights.sum()


def _argmax(logits: np.ndarray) -> int:
    """The first id of the largest logit. Raises CheckpointError where that is not finite."""
    best = int(logits.argmax())  # of the first NaN, if any is
    if not math.isfinite(logits[best]):
        raise CheckpointError(
            f"logits: the largest is {logits[best]}, so no token can be chosen; "
            "the weights are damaged, or overflow in this dtype"
        )
    return best


def top_k(logits: np.ndarray, k: int | None) -> np.ndarray:
    """The ids of the k largest of `logits` [V], all of them for 0 or None; int64, ascending."""
    V = len(logits)
    if not k or k >= V:
        return np.arange(V)
    k = int(k)  # V - k may not fit the type of a NumPy integer
    kth_largest = np.partition(logits, V - k)[V - k]
    kept = logits > kth_largest
    ties = np.flatnonzero(logits == kth_largest)
    kept[ties[: k - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices, ascending, of the fewest `weights` [n] that have `top_p` of their sum.

    Of n weights, those below (1 − top_p) / n of the sum add up to less than 1 − top_p of it, so
    none of them belongs to the nucleus: only the others, mostly a few hundred, need sorting.
    Holtzman et al. 2020, https://arxiv.org/abs/1904.09751, section 3.1.
    """
    total = float(weights.sum())
    candidates = np.flatnonzero(weights >= (1 - top_p) / len(weights) * total)
    candidates = candidates[np.argsort(-weights[candidates], kind="stable")]
    sum_before = np.cumsum(weights[candidates]) - weights[candidates]
    # the first has the sum 0 before it, so at least one remains
    return np.sort(candidates[sum_before < top_p * total])


# ---- random numbers --------------------------------------------------------------------------

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, row: int, position: int) -> float:
    """A random number in [0, 1), a multiple of 2⁻⁵³, which depends on these three integers alone.

    It belongs to the token at `position` of a sequence, from 0, the prompt included; `row` is the
    sequence's index in its batch. Therefore a token's draw never depends on the other sequences,
    nor on how many tokens a pass computes.

    It is output number `position` of the generator SplitMix64 (Steele, Lea and Flood 2014,
    https://doi.org/10.1145/2660193.2660195), whose state begins with a hash of seed and row:
    integer arithmetic, the same on every platform and with every version of NumPy.
    """
    state = _mix(_mix(seed) + row) + position * _GAMMA
    return (_mix(state) >> 11) * 2.0**-53


def _mix(state: int) -> int:
    """SplitMix64's output for a state: advance it by gamma, then mix its 64 bits."""
    z = (state + _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def draw(probabilities: np.ndarray, u: float) -> int:
    """The index into `probabilities`, float64 [n], at which their running sum passes u ∈ [0, 1).

    A probability of 0 is never drawn.
    """
    with np.errstate(under="ignore"):
        sums = np.cumsum(probabilities)
        return int(np.searchsorted(sums, u * sums[-1], side="right"))


def logprob(logits: np.ndarray, token_id: int) -> float:
    """ln softmax(logits)[token_id] in float64, for logits float32 [V]."""
    with np.errstate(all="ignore"):
        shifted = logits.astype(np.float64) - float(logits.max())
        return float(shifted[token_id]) - math.log(np.exp(shifted).sum())
