"""Batches of a token file, in an order that depends on the seed alone.

    B = 4  # sequences of a step
    ids, targets = sequences(tokens, B, T=256, seed=0, first=17 * B)  # the batch of step 18

A batch is a function of the seed and its number: a resumed run needs one integer instead of a list.
The tokens form a ring: the last one ends a document, and the first document follows it. An epoch
cuts the ring, from an offset of its own, into N // T windows of T tokens. Each window is read
together with the token after it, the last target:

    a b c d e f g h i j k ■
    ─── ─────── ─────── ───     N = 12, T = 4, offset 2: the windows c d e f, g h i j, k ■ a b

The order of the windows is a permutation that is computed, not stored (`permuted`): any window of
any epoch takes constant time and memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..arguments import checked_integer
from ..errors import InputError
from ..kernels.layout import IGNORED

_ROUNDS = 6  # of `permuted`


def sequences(
    tokens: np.ndarray, count: int, T: int, seed: int, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences number `first`, from 0, to `first + count − 1` of a run.

    tokens   integers [N], N ≥ T + 1
    count    sequences, from 1: a batch, or the part of it that is wanted
    T        tokens of a sequence, from 1
    seed     of the order, from 0
    returns  ids and targets, int64 [count, T] each; targets[b, t] follows ids[b, t]

    The sequences of a run are the windows of the first epoch, those of the second, and so on. An
    epoch has each of its N // T windows once, in an order and from an offset of its own, so that
    the N % T leftover tokens change. A batch may span two epochs.

    Raises InputError for an argument out of its range and for fewer than T + 1 tokens.
    """
    count, T = checked_integer("count", count, 1), checked_integer("T", T, 1)
    _check_tokens(tokens, T + 1)
    seed, first = checked_integer("seed", seed, 0), checked_integer("first", first, 0)
    starts = _window_starts(len(tokens), T, seed, first, count)
    indices = (starts[:, None] + np.arange(T + 1)) % len(tokens)
    windows = tokens[indices].astype(np.int64)
    return windows[:, :-1].copy(), windows[:, 1:].copy()


def windows(tokens: np.ndarray, B: int, T: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All `tokens` in order, each but the first as a target once: for evaluation.

    tokens  integers [N], N ≥ 2
    B, T    sequences of a batch at most, and tokens of a sequence, from 1
    yields  ids and targets, int64 [b, T] each; targets[b, t] follows ids[b, t]. The last sequence
            is padded with ids 0 and targets IGNORED.

    Raises InputError for an argument out of its range and for fewer than two tokens.
    """
    B, T = checked_integer("B", B, 1), checked_integer("T", T, 1)
    _check_tokens(tokens, 2)
    for first in range(0, len(tokens) - 1, B * T):
        part = tokens[first : first + B * T + 1].astype(np.int64)
        count = len(part) - 1
        shape = (-(-count // T), T)
        ids, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        ids.reshape(-1)[:count] = part[:-1]
        targets.reshape(-1)[:count] = part[1:]
        yield ids, targets


def _window_starts(N: int, T: int, seed: int, first: int, count: int) -> np.ndarray:
    """Offsets in `tokens` of the windows first … first + count − 1 of all epochs: int64 [count]."""
    n = N // T
    starts = []
    while count:
        epoch, number = divmod(first, n)
        in_epoch = min(count, n - number)
        *keys, offset = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS + 1, np.uint64)
        order = permuted(np.arange(number, number + in_epoch, dtype=np.uint64), n, keys)
        starts.append(order.astype(np.int64) * T + int(offset % np.uint64(T)))
        first, count = first + in_epoch, count - in_epoch
    return np.concatenate(starts)


def permuted(numbers: np.ndarray, n: int, keys: Sequence[np.uint64]) -> np.ndarray:
    """The images of `numbers`, uint64 [count], under a permutation of 0 … n − 1 given by `keys`.

    A Feistel network: a number is two halves of h bits, (left, right), and each key maps it to
    (right, left ^ f(right, key)). That is invertible for any f, hence a permutation of the numbers
    below 4^h, the smallest such power that is at least n. A result of n or more is mapped again
    until it is below n: the walk follows a cycle of the permutation and returns at the latest to
    its start, so that no two numbers meet (Black and Rogaway, "Ciphers with Arbitrary Finite
    Domains", 2002). Since 4^h is below 4 n, a walk has at most four steps on average.
    """
    half = np.uint64(((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    result = numbers.copy()
    outside = np.full(len(numbers), True)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        result[outside] = left << half | right
        outside = result >= np.uint64(n)
    return result


def _mixed(z: np.ndarray) -> np.ndarray:
    """SplitMix64's mixing function of uint64: each bit of the result depends on every bit of z.

    Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
    """
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


def _check_tokens(tokens: np.ndarray, minimum: int) -> None:
    """Raises InputError unless `tokens` are at least `minimum` integers in one dimension."""
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise InputError(
            f"tokens: {tokens.dtype} of shape {list(tokens.shape)}; must be integers [N]"
        )
    if len(tokens) < minimum:
        raise InputError(
            f"tokens: {len(tokens)}; must be at least {minimum}: give more text, or a smaller T"
        )
