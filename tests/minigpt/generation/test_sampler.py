"""The next token: against a slow, plain reading of each rule, and for every odd value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.errors import CheckpointError, InputError
from minigpt.generation.sampler import SamplingParams, draw, generators, likeliest, nucleus, sample

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def drawn(logits: np.ndarray, count: int = 4000, **options: object) -> np.ndarray:
    """How often each token comes, as a fraction."""
    params = SamplingParams(**{"temperature": 1.0, **options})
    rng = np.random.Generator(np.random.PCG64(7))
    tokens = [sample(logits, params, rng) for _ in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def nucleus_by_sorting(weights: np.ndarray, top_p: float) -> list[int]:
    """The definition: take the likeliest, the lower id first, until top_p is reached."""
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    kept, total = [], 0.0
    for i in order:
        if total >= top_p * weights.sum():
            break
        kept.append(i)
        total += weights[i]
    return sorted(kept)


def test_greedy_takes_the_first_of_the_largest_and_draws_nothing() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    before = rng.bit_generator.state
    assert sample(np.array([1, 5, 5, 2], np.float32), SamplingParams(), rng) == 1
    assert rng.bit_generator.state == before


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [[0, np.nan], [np.nan, 0], [-np.inf, -np.inf], [np.inf, 0]])
def test_no_token_is_made_of_logits_that_are_no_choice(wrong: list, temperature: float) -> None:
    params = SamplingParams(temperature)
    with pytest.raises(CheckpointError, match="largest is"):
        sample(np.array(wrong, np.float32), params, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 99}, [0.1, 0.4, 0.2, 0.3]),
        ({"vocab_size": 2}, [0.2, 0.8, 0, 0]),
        ({"vocab_size": 3, "top_k": 2}, [0, 2 / 3, 1 / 3, 0]),
        ({"vocab_size": 99}, [0.1, 0.4, 0.2, 0.3]),
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
def test_tokens_come_as_often_as_they_should(options: dict, expected: list[float]) -> None:
    found = drawn(LOGITS, **options)
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert not found[np.array(expected) == 0].any()


def test_tokens_of_minus_infinity_never_come() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    np.testing.assert_allclose(drawn(logits), [0, 0.5, 0, 0.5, 0], atol=0.03)


def test_of_equals_the_lower_ids_are_the_likeliest() -> None:
    assert likeliest(np.array([1, 2, 1, 2, 1], np.float32), 3).tolist() == [0, 1, 3]
    assert likeliest(np.zeros(200, np.float32), np.int8(2)).tolist() == [0, 1]
    assert nucleus(np.array([1.0, 2.0, 1.0, 2.0, 1.0]), 0.6).tolist() == [0, 1, 3]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=40),
    st.sampled_from([0.01, 0.3, 0.5, 0.75, 0.9, 0.99, 0.999]),
)
def test_the_nucleus_is_that_of_a_full_sort(parts: list[int], top_p: float) -> None:
    weights = np.array(parts, np.float64)  # whole numbers, so that both sums are exact
    assert nucleus(weights, top_p).tolist() == nucleus_by_sorting(weights, top_p)


def test_draw_follows_the_running_sum() -> None:
    class Fixed:
        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    weights = np.array([0.0, 1.0, 0.0, 3.0, 0.0])
    just_below_1 = 1 - 2**-53
    for value, expected in [(0.0, 1), (0.2499, 1), (0.25, 3), (just_below_1, 3)]:
        assert draw(weights, Fixed(value)) == expected  # type: ignore[arg-type]


def test_a_row_draws_the_same_numbers_alone_and_in_a_batch() -> None:
    alone, many = generators(5, 1), generators(5, 3)
    first = [rng.random() for rng in many]
    assert alone[0].random() == first[0]
    assert len(set(first)) == 3
    assert generators(6, 1)[0].random() != first[0]
    assert generators(None, 1)[0].random() != generators(None, 1)[0].random()


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
        {"top_k": 0},
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
        np.float32(0.8), np.int64(3), np.float64(0.9), np.float32(0.1), np.uint64(1)
    )
    assert sample(LOGITS, params, generators(params.seed, 1)[0]) in (1, 2, 3)
