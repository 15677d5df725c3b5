"""Batches: every window once in an epoch, in an order that depends on the seed alone."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.errors import InputError
from minigpt.kernels.layout import IGNORED
from minigpt.training.batches import permuted, sequences, windows

SIZES = {
    "N": st.integers(2, 200),
    "B": st.integers(1, 20),
    "T": st.integers(1, 40),
    "seed": st.integers(0, 2**70),
    "position": st.integers(0, 2**70),
}


@settings(max_examples=200, deadline=None)
@given(N=SIZES["N"], T=SIZES["T"], seed=SIZES["seed"], epoch=SIZES["position"])
def test_an_epoch_has_each_window_once(N: int, T: int, seed: int, epoch: int) -> None:
    T = min(T, N - 1)
    n = N // T
    ids, targets = sequences(np.arange(N), n, T, seed, epoch * n)  # each token is its own offset
    starts = ids[:, 0]
    offset = next(o for o in range(T) if o in starts)  # a window begins below T
    assert sorted((starts - offset) % N) == [k * T for k in range(n)]
    np.testing.assert_array_equal(ids, (starts[:, None] + np.arange(T)) % N)
    np.testing.assert_array_equal(targets, (ids + 1) % N)


@settings(max_examples=100, deadline=None)
@given(**SIZES)
def test_batches_continue_across_epochs(N: int, B: int, T: int, seed: int, position: int) -> None:
    """B sequences equal B times one sequence, and leave the tokens unchanged."""
    T = min(T, N - 1)
    tokens = np.arange(N, dtype=np.uint16)
    ids, targets = sequences(tokens, B, T, seed, position)
    for b in range(B):
        one_ids, one_targets = sequences(tokens, 1, T, seed, position + b)
        np.testing.assert_array_equal(ids[b], one_ids[0])
        np.testing.assert_array_equal(targets[b], one_targets[0])
    np.testing.assert_array_equal(tokens, np.arange(N))


def test_batches_are_contiguous_int64() -> None:
    for array in sequences(np.arange(9, dtype=np.uint16), 3, 4, 0, 0):
        assert array.dtype == np.int64
        assert array.shape == (3, 4)
        assert array.flags.c_contiguous and array.flags.writeable


def test_epochs_and_seeds_have_orders_and_offsets_of_their_own() -> None:
    N, T, n = 1000, 10, 100
    starts = [
        sequences(np.arange(N), n, T, seed, epoch * n)[0][:, 0]
        for seed in (0, 1)
        for epoch in range(10)
    ]
    assert len({tuple(order // T) for order in starts}) == 20
    assert len({order[0] // T for order in starts}) > 10
    assert len({order[0] % T for order in starts}) > 5


def test_the_batches_of_a_seed_never_change() -> None:
    """A run that is resumed by another version or on another machine reads the same data."""
    ids, targets = sequences(np.arange(100), 4, 5, 7, 9 * 4)
    assert ids[:, 0].tolist() == [77, 37, 72, 52]
    assert targets[:, -1].tolist() == [82, 42, 77, 57]


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_permuted_is_a_permutation(n: int, seed: int) -> None:
    keys = np.random.SeedSequence(seed).generate_state(6, np.uint64)
    order = permuted(np.arange(n, dtype=np.uint64), n, keys)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_all_orders_of_four_are_about_equally_frequent() -> None:
    orders = Counter(
        tuple(
            permuted(
                np.arange(4, dtype=np.uint64),
                4,
                np.random.SeedSequence(seed).generate_state(6, np.uint64),
            ).tolist()
        )
        for seed in range(4800)
    )
    assert len(orders) == 24
    assert 140 < min(orders.values()) <= max(orders.values()) < 260  # 200 ± 14


def test_neighbours_end_up_far_apart() -> None:
    """In a random order of n, about two pairs of neighbours remain; the mean distance is n / 3."""
    n = 10_000
    keys = np.random.SeedSequence(1).generate_state(6, np.uint64)
    steps = np.abs(np.diff(permuted(np.arange(n, dtype=np.uint64), n, keys).astype(np.int64)))
    assert (steps == 1).sum() < 12
    assert abs(steps.mean() / n - 1 / 3) < 0.01


def test_memory_does_not_grow_with_the_number_of_windows() -> None:
    """A batch from 10¹² windows, in the 1000th epoch."""
    tokens = np.broadcast_to(np.uint16(7), 10**12)
    tracemalloc.start()
    sequences(tokens, 4, 1, 0, 1000 * 10**12)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize(
    "change", [{"count": 0}, {"T": 0}, {"seed": -1}, {"first": -1}, {"count": 1.5}]
)
def test_an_argument_out_of_its_range(change: dict[str, float]) -> None:
    valid: dict[str, int] = {"count": 1, "T": 4, "seed": 0, "first": 0}
    sequences(np.arange(5), **valid)
    (name,) = change
    with pytest.raises(InputError, match=f"^{name} "):
        sequences(np.arange(5), **valid | change)  # type: ignore[arg-type]


def test_tokens_that_are_too_few_or_no_integers() -> None:
    with pytest.raises(InputError, match="tokens: 4; must be at least 5"):
        sequences(np.arange(4), 1, 4, 0, 0)
    with pytest.raises(InputError, match="tokens: 1; must be at least 2"):
        next(windows(np.arange(1), 1, 4))
    for tokens in (np.zeros((5, 5), np.int64), np.zeros(9)):
        with pytest.raises(InputError, match=r"must be integers \[N\]"):
            sequences(tokens, 1, 4, 0, 0)


@settings(max_examples=100, deadline=None)
@given(N=SIZES["N"], B=SIZES["B"], T=SIZES["T"])
def test_windows_have_each_token_but_the_first_as_a_target_once(N: int, B: int, T: int) -> None:
    ids, targets = [], []
    for some_ids, some_targets in windows(np.arange(N, dtype=np.uint16), B, T):
        assert some_ids.shape == some_targets.shape
        assert some_ids.shape[0] <= B and some_ids.shape[1] == T
        assert some_ids.dtype == some_targets.dtype == np.int64
        ids.append(some_ids.ravel())
        targets.append(some_targets.ravel())
    scored = np.concatenate(targets) != IGNORED
    assert np.concatenate(ids)[scored].tolist() == list(range(N - 1))
    assert np.concatenate(targets)[scored].tolist() == list(range(1, N))
    assert len(scored) - scored.sum() < T
