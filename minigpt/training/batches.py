"""Batches of a token file, in an order that depends on the seed alone.

    ids, targets = batch(tokens, B=4, T=256, seed=0, position=17)  # the batch of step 17

A batch is a function of the seed and of its position, so a resumed run needs one integer and no
list. The tokens form a ring: the last one ends a document, and the first document follows it. An
epoch cuts the ring, from an offset of its own, into N // T windows of T tokens, and each window is
read with the token after it, the last target:

    a b c d e f g h i j k ■
    ─── ─────── ─────── ───     N = 12, T = 4, offset 2: the windows c d e f, g h i j, k ■ a b

A permutation that is computed, not stored, orders the windows (`permuted`): any window of any
epoch at once, in constant memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..arguments import is_integer
from ..errors import InputError, short_repr
from ..kernels.layout import IGNORED

_ROUNDS = 6  # of `permuted`


# ---- batches ----
def batch(
    tokens: np.ndarray, B: int, T: int, seed: int, position: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the step number `position` of a training learns from: a function of its arguments.

    tokens    integers [N], N ≥ T + 1
    B, T      rows of a batch, and tokens of a row
    seed      of the order; from 0
    position  how many batches were taken before; from 0
    returns   ids and targets, int64 [B, T] each; targets[b, t] follows ids[b, t]

    The rows of all batches, in order, are the windows of the first epoch, those of the second,
    ...: each window once in an epoch, in an order and from an offset of its own, so that the
    N % T tokens left over are not always the same. An epoch has N // T windows, and a batch may
    well hold the end of one and the beginning of the next.

    Raises InputError for a wrong argument, and where there are too few tokens for one window.
    """
    _check_sizes(tokens, B, T)
    for name, number in (("seed", seed), ("position", position)):
        if not (is_integer(number) and number >= 0):
            raise InputError(f"{name} {short_repr(number)}: must be an integer from 0")
    starts = _starts(len(tokens), int(T), int(seed), int(position) * int(B), int(B))
    places = (starts[:, None] + np.arange(T + 1)) % len(tokens)
    rows = tokens[places].astype(np.int64)
    return rows[:, :-1].copy(), rows[:, 1:].copy()


def windows(tokens: np.ndarray, B: int, T: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All of `tokens` in order, each after the first a target once: for evaluation.

    tokens  integers [N], N ≥ 2
    B, T    rows of a batch at most, and tokens of a row
    yields  ids and targets, int64 [rows, T] each; targets[b, t] follows ids[b, t]. What is
            missing in the last row are ids 0 with the target IGNORED.

    Raises InputError for a wrong argument.
    """
    _check_sizes(tokens, B, T, least=2)
    for first in range(0, len(tokens) - 1, B * T):
        part = tokens[first : first + B * T + 1].astype(np.int64)
        rows = -(-(len(part) - 1) // T)
        ids = np.zeros((rows, T), np.int64)
        targets = np.full((rows, T), IGNORED, np.int64)
        ids.reshape(-1)[: len(part) - 1] = part[:-1]
        targets.reshape(-1)[: len(part) - 1] = part[1:]
        yield ids, targets


def _starts(N: int, T: int, seed: int, first: int, count: int) -> np.ndarray:
    """Where the windows first … first + count − 1 of all epochs begin: int64 [count]."""
    n = N // T
    starts = []
    while count:
        epoch, number = divmod(first, n)
        some = min(count, n - number)
        *keys, offset = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS + 1, np.uint64)
        order = permuted(np.arange(number, number + some, dtype=np.uint64), n, keys)
        starts.append(order.astype(np.int64) * T + int(offset % np.uint64(T)))
        first, count = first + some, count - some
    return np.concatenate(starts)


def permuted(numbers: np.ndarray, n: int, keys: Sequence[np.uint64]) -> np.ndarray:
    """Where a permutation of 0 … n − 1 takes `numbers`, which are of these: uint64 [count].

    A Feistel network: a number is two halves of h bits, (left, right), and each key takes it to
    (right, left ^ f(right, key)), which can be undone, whatever f is: a permutation of the
    numbers below 4^h, the first such power that n does not exceed. One that comes out as n or
    more goes in again, until it is below n: the walk follows a cycle of the permutation, and
    ends at the latest where it began, so that no two numbers meet (Black and Rogaway, "Ciphers
    with Arbitrary Finite Domains", 2002). As 4^h is below 4 n, it takes four steps on average
    at most.
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


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Each of the numbers, uint64, as another that every bit of it has changed.

    SplitMix64's: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
    """
    z = numbers
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _check_sizes(tokens: np.ndarray, B: int, T: int, least: int | None = None) -> None:
    """`least` is how many tokens there must be, by default a window's T + 1."""
    for name, number in (("B", B), ("T", T)):
        if not (is_integer(number) and number >= 1):
            raise InputError(f"{name} {short_repr(number)}: must be an integer from 1")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise InputError(
            f"tokens: {tokens.dtype} of shape {list(tokens.shape)}; must be integers [N]"
        )
    least = T + 1 if least is None else least
    if len(tokens) < least:
        raise InputError(
            f"tokens: {len(tokens)}; must be at least {least}: give more text, or a smaller T"
        )
