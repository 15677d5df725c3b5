"""Sampling: each rule against a slow and plain implementation of its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import GPTConfig
from minigpt.errors import CheckpointError, InputError
from minigpt.generation.sampler import (
    SamplingParams,
    allowed,
    distribution,
    draw,
    logprob,
    nucleus,
    sample,
    top_k,
    uniform,
)

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def probabilities(logits: np.ndarray, **options: object) -> np.ndarray:
    """The probability of each id, float64 [V]: 0 for those that are not in the distribution."""
    ids, p = distribution(logits, SamplingParams(**{"temperature": 1.0, **options}))
    assert (np.diff(ids) > 0).all()
    dense = np.zeros(len(logits))
    dense[ids] = p
    return dense


def nucleus_by_sorting(weights: np.ndarray, top_p: float) -> list[int]:
    """The definition: take the most likely, the lower id first, until their sum reaches top_p."""
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    kept, total = [], 0.0
    for i in order:
        if total >= top_p * weights.sum():
            break
        kept.append(i)
        total += weights[i]
    return sorted(kept)


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = np.array([1, 5, 5, 2], np.float32)
    assert sample(logits, SamplingParams()) == 1
    ids, p = distribution(logits, SamplingParams())
    assert (ids.tolist(), p.tolist()) == ([1], [1.0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [[0, np.nan], [np.nan, 0], [-np.inf, -np.inf], [np.inf, 0]])
def test_logits_that_are_not_finite_give_no_token(wrong: list, temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    for function in (sample, distribution):
        with pytest.raises(CheckpointError, match="largest is"):
            function(np.array(wrong, np.float32), params)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 99}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 0}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.35}, [0, 1, 0, 0]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 1e-300}, [0, 1, 0, 0]),
        ({"min_p": 0.45}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"min_p": 1.0}, [0, 1, 0, 0]),
        ({"min_p": 0.0}, [0.1, 0.4, 0.2, 0.3]),
        # top-p looks at what top-k left: 0.4 of 0.7 is more than half
        ({"top_k": 2, "top_p": 0.55}, [0, 1, 0, 0]),
        ({"temperature": 1e-320}, [0, 1, 0, 0]),
        ({"temperature": 1e300}, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_the_distribution_of_each_option(options: dict, expected: list[float]) -> None:
    found = probabilities(LOGITS, **options)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert not found[np.array(expected) == 0].any()


@pytest.mark.parametrize(
    ("vocab_size", "ends", "expected"),
    [
        (2, [], [0.2, 0.8, 0, 0]),
        (2, [1], [0.2, 0.8, 0, 0]),
        (2, [3], [0.125, 0.5, 0, 0.375]),
        (1, [2, 3], [1 / 6, 0, 2 / 6, 3 / 6]),
        (4, [3], [0.1, 0.4, 0.2, 0.3]),
        (99, [], [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_only_ids_of_the_vocabulary_and_ends_are_allowed(
    vocab_size: int, ends: list[int], expected: list[float]
) -> None:
    before = LOGITS.copy()
    found = probabilities(allowed(LOGITS, vocab_size, ends))
    np.testing.assert_allclose(found, expected[: len(found)], atol=1e-6)
    assert not any(expected[len(found) :])
    assert np.array_equal(LOGITS, before)


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    params = SamplingParams(temperature=1.0, min_p=0.45)
    tokens = [sample(LOGITS, params, seed=7, position=t) for t in range(4000)]
    found = np.bincount(tokens, minlength=4) / 4000
    np.testing.assert_allclose(found, [0, 4 / 9, 2 / 9, 3 / 9], atol=0.03)
    assert found[0] == 0


def test_tokens_of_minus_infinity_have_no_probability() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    assert probabilities(logits).tolist() == [0, 0.5, 0, 0.5, 0]


def test_of_equally_likely_tokens_the_lower_ids_rank_first() -> None:
    assert top_k(np.array([1, 2, 1, 2, 1], np.float32), 3).tolist() == [0, 1, 3]
    assert top_k(np.zeros(200, np.float32), np.int8(2)).tolist() == [0, 1]
    assert nucleus(np.array([1.0, 2.0, 1.0, 2.0, 1.0]), 0.6).tolist() == [0, 1, 3]


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=40),
    st.sampled_from([0.01, 0.3, 0.5, 0.75, 0.9, 0.99, 0.999]),
)
def test_the_nucleus_is_that_of_a_full_sort(parts: list[int], top_p: float) -> None:
    weights = np.array(parts, np.float64)  # integers, so both sums are exact
    assert nucleus(weights, top_p).tolist() == nucleus_by_sorting(weights, top_p)


def test_draw_follows_the_running_sum() -> None:
    p = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    for u, expected in [(0.0, 1), (0.2499, 1), (0.25, 3), (1 - 2**-53, 3)]:
        assert draw(p, u) == expected


@given(st.lists(st.floats(1e-300, 1), min_size=1, max_size=9), st.floats(0, 1 - 2**-53))
def test_draw_never_leaves_the_array(weights: list[float], u: float) -> None:
    assert 0 <= draw(np.array([*weights, 0.0]), u) < len(weights)


def test_uniform_is_splitmix64() -> None:
    """Its first outputs for the state 0, from the reference implementation of Vigna."""
    from minigpt.generation.sampler import _GAMMA, _MASK, _mix

    states = [n * _GAMMA & _MASK for n in range(3)]
    assert [_mix(state) for state in states] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_uniform_keeps_its_numbers() -> None:
    """A seed means the same text in every version: these values must not change."""
    found = [uniform(0, 0, 0), uniform(1, 2, 3), uniform(2**64 - 1, 511, 2047)]
    assert found == [0.13870941014555427, 0.16492819262929692, 0.32957662782030117]


def test_uniform_numbers_are_uniform_and_independent() -> None:
    """Over positions, rows and seeds: mean, variance, and correlation of neighbours."""
    for numbers in (
        [uniform(5, 0, t) for t in range(20_000)],
        [uniform(5, row, 9) for row in range(20_000)],
        [uniform(seed, 0, 9) for seed in range(20_000)],
    ):
        u = np.array(numbers)
        assert 0 <= u.min() < 0.001
        assert 0.999 < u.max() < 1
        assert abs(u.mean() - 1 / 2) < 0.01
        assert abs(u.var() - 1 / 12) < 0.003
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03
        assert len(set(numbers)) == len(numbers)


def test_seed_row_and_position_are_not_mixed_up() -> None:
    triples = [(a, b, c) for a in range(12) for b in range(12) for c in range(12)]
    assert len({uniform(*triple) for triple in triples}) == len(triples)


@given(st.integers(0, 2**64 - 1), st.integers(0, 600), st.integers(0, 10**6))
def test_a_token_depends_on_seed_row_and_position_alone(seed, row, position) -> None:
    params = SamplingParams(temperature=1.0)
    u = uniform(seed, row, position)
    assert 0 <= u < 1
    assert sample(LOGITS, params, seed, row, position) == draw(probabilities(LOGITS), u)


def test_logprob_is_over_all_tokens() -> None:
    logits = np.array([3.0, -1.0, 0.5, -np.inf], np.float32)
    exact = logits.astype(np.longdouble)
    exact = exact - np.log(np.exp(exact).sum())
    for token in range(3):
        assert logprob(logits, token) == pytest.approx(float(exact[token]), abs=1e-14)
    assert logprob(logits, 3) == -np.inf
    assert logprob(np.array([1e30, 0], np.float32), 0) == 0.0


def test_a_seed_of_none_is_fresh_each_time() -> None:
    assert SamplingParams(seed=np.uint64(3)).seed_or_fresh() == 3
    seeds = {SamplingParams().seed_or_fresh() for _ in range(4)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 10**400},
        {"temperature": "1"},
        {"temperature": True},
        {"temperature": None},
        {"top_k": -1},
        {"top_k": 1.0},
        {"top_k": True},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": float("nan")},
        {"top_p": "0.5"},
        {"min_p": -0.01},
        {"min_p": 1.5},
        {"min_p": float("nan")},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 1.5},
        {"seed": False},
        {"seed": 10**5000},
        {"max_new_tokens": -1},
        {"max_new_tokens": 1.0},
        {"max_new_tokens": True},
        {"max_new_tokens": None},
        {"vocab_size": 0},
        {"vocab_size": 3.0},
        {"vocab_size": True},
    ],
)
def test_an_option_out_of_its_range_is_named(options: dict) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(options))} .*must be"):
        SamplingParams(**options)


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(
        max_new_tokens=np.int8(3),
        temperature=np.float32(0.8),
        top_k=np.int64(3),
        top_p=np.float64(0.9),
        min_p=np.float32(0.1),
        seed=np.uint64(1),
        vocab_size=np.uint8(4),
    )
    assert sample(LOGITS, params, params.seed_or_fresh()) in (1, 2, 3)


@pytest.mark.parametrize(
    "eos", [-1, 10, 1.0, "9", True, [9, 10], np.array([1.0, 2.0]), b"config", iter("a")]
)
def test_eos_must_be_tokens(eos: object) -> None:
    config = GPTConfig.from_dict(
        {"n_layer": 1, "n_head": 1, "n_embd": 1, "n_positions": 4, "vocab_size": 10}, "config"
    )
    with pytest.raises(InputError, match=r"^eos_token_id .*must be an integer from 0 to 9"):
        SamplingParams(eos_token_id=eos).ends(config)


@pytest.mark.parametrize(
    ("eos", "expected"),
    [
        ("config", (7, 3)),
        (None, ()),
        (np.int8(9), (9,)),
        ([9, 2, 9], (9, 2)),
        (np.array([1, 2], np.uint8), (1, 2)),
        (range(3), (0, 1, 2)),
        (iter([4, 5]), (4, 5)),
        ([], ()),
    ],
)
def test_one_or_several_tokens_end_a_text(eos: object, expected: tuple[int, ...]) -> None:
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 1, "n_positions": 4, "vocab_size": 10}
    config = GPTConfig.from_dict({**sizes, "eos_token_id": [7, 3]}, "config")
    params = SamplingParams(eos_token_id=eos)
    assert params.ends(config) == params.ends(config) == expected


def test_numpy_numbers_become_plain_ones() -> None:
    """Else sums with them would overflow in their type."""
    params = SamplingParams(np.int8(100), np.float32(0.5), top_k=np.uint64(3), seed=np.int16(7))
    values = (params.max_new_tokens, params.temperature, params.top_k, params.seed)
    assert values == (100, 0.5, 3, 7)
    assert [type(value) for value in values] == [int, float, int, int]
