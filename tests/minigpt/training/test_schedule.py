"""The learning rate of each step: n steps, n positive rates, the peak among them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.training.config import RunConfig
from minigpt.training.schedule import Plan, learning_rate, next_position

DECAYS = pytest.mark.parametrize("decay", ["linear", "cosine"])


def rates(config: RunConfig, steps: int | None = None) -> list[float]:
    return [learning_rate(config, step) for step in range(1, (steps or config.steps) + 1)]


@DECAYS
def test_warmup_rises_and_decay_falls_towards_the_minimum(decay: str) -> None:
    """The minimum would be the rate of step 13; later steps have that of the last one, 12."""
    config = RunConfig(lr=1.0, min_lr=0.1, warmup_steps=4, steps=12, decay=decay)
    rise = [0.25, 0.5, 0.75, 1.0]
    fall = {
        "linear": [1 - 0.9 * n / 9 for n in range(1, 9)],
        "cosine": [0.1 + 0.45 * (1 + math.cos(math.pi * n / 9)) for n in range(1, 9)],
    }[decay]
    assert rates(config, 14) == pytest.approx([*rise, *fall, fall[-1], fall[-1]])


@pytest.mark.parametrize(
    ("warmup_steps", "steps", "expected"),
    [
        (0, 1, [1.0]),
        (1, 1, [1.0]),
        (9, 1, [1.0]),
        (0, 2, [1.0, 0.5]),
        (2, 2, [0.5, 1.0]),
        (9, 2, [0.5, 1.0]),
        (0, 3, [1.0, 2 / 3, 1 / 3]),
        (1, 3, [1.0, 2 / 3, 1 / 3]),
        (2, 3, [0.5, 1.0, 0.5]),
    ],
)
def test_runs_of_few_steps(warmup_steps: int, steps: int, expected: list[float]) -> None:
    config = RunConfig(lr=1.0, min_lr=0.0, warmup_steps=warmup_steps, steps=steps, decay="linear")
    assert rates(config) == pytest.approx(expected)


@settings(max_examples=300, deadline=None)
@given(
    lr=st.floats(1e-20, 1e20),
    share=st.floats(0, 1),
    warmup_steps=st.integers(0, 100) | st.integers(0, 2**53),
    steps=st.integers(1, 80),
    decay=st.sampled_from(["linear", "cosine"]),
)
def test_every_rate_is_positive_and_one_is_the_peak(
    lr: float, share: float, warmup_steps: int, steps: int, decay: str
) -> None:
    config = RunConfig(
        lr=lr, min_lr=lr * share, warmup_steps=warmup_steps, steps=steps, decay=decay
    )
    found = rates(config)
    assert min(found) > 0
    assert max(found) == lr
    peak = found.index(lr)
    assert peak + 1 == min(max(warmup_steps, 1), steps)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert min(found[peak:]) >= config.min_lr * (1 - 1e-12)
    assert learning_rate(config, 10 * steps) == found[-1]


@DECAYS
@pytest.mark.parametrize("steps", [10**9, 2**53 - 1])
def test_the_last_of_very_many_steps_has_a_rate_above_0(decay: str, steps: int) -> None:
    config = RunConfig(lr=1e-3, min_lr=0.0, warmup_steps=1000, steps=steps, decay=decay)
    assert 0 < learning_rate(config, steps) < learning_rate(config, steps - 1) < 1e-11


@pytest.mark.parametrize(
    ("step", "config", "expected"),
    [
        (1, RunConfig(lr=1.0, min_lr=0.0, steps=4, decay="linear", legacy=True), 0.75),
        (1, RunConfig(lr=1.0, min_lr=0.5, steps=1, legacy=True), 0.5),
        (3, RunConfig(lr=1.0, min_lr=0.5, warmup_steps=3, steps=3, legacy=True), 1.0),
        (9, RunConfig(lr=1.0, min_lr=0.0, warmup_steps=2, steps=9, legacy=True), 0.0),
        (5, RunConfig(lr=1.0, min_lr=0.2, warmup_steps=2, steps=8, legacy=True), 0.6),
    ],
)
def test_runs_that_an_earlier_version_began_keep_their_rates(
    step: int, config: RunConfig, expected: float
) -> None:
    """Their last step has min_lr, and without warmup their first is below lr."""
    assert learning_rate(config, step) == pytest.approx(expected, abs=1e-15)


# ---- by the clock ----


def positions(config: RunConfig, estimates: list[int]) -> tuple[list[float], bool]:
    """The positions of a run that estimates its number of steps after each step.

    And whether its last step was estimated to be the last before it was made.
    """
    plan, found, foreseen = Plan(config.steps, 0.0), list[float](), False
    while len(found) < plan.steps:
        step = len(found) + 1
        foreseen = step == plan.steps
        found.append(next_position(config, plan, step))
        steps = estimates[step - 1] if step <= len(estimates) else plan.steps
        plan = Plan(max(step, steps), found[-1])
    return found, foreseen


def test_an_estimate_that_stays_leaves_the_schedule_as_it_is() -> None:
    config = RunConfig(warmup_steps=4, steps=30)
    assert positions(config, [])[0] == pytest.approx(list(range(1, 31)))


@settings(max_examples=200, deadline=None)
@given(
    warmup_steps=st.integers(0, 30),
    steps=st.integers(1, 60),
    estimates=st.lists(st.integers(0, 90), max_size=90),
    decay=st.sampled_from(["linear", "cosine"]),
)
def test_whatever_the_estimates_the_peak_is_reached_and_the_rate_falls_after_it(
    warmup_steps: int, steps: int, estimates: list[int], decay: str
) -> None:
    config = RunConfig(lr=1.0, min_lr=0.0, warmup_steps=warmup_steps, steps=steps, decay=decay)
    places, foreseen = positions(config, estimates)
    found = [learning_rate(config, place) for place in places]
    assert min(found) > 0
    peak = found.index(max(found))
    assert found[peak:] == sorted(found[peak:], reverse=True)
    if foreseen or places[-1] >= warmup_steps:
        assert max(found) == 1.0


@DECAYS
@pytest.mark.parametrize("steps", [40, 250, 1000])
def test_a_run_of_more_or_fewer_steps_than_planned_ends_at_the_minimum(
    steps: int, decay: str
) -> None:
    """It is estimated to be as long as planned for a while, and then to have so many steps."""
    config = RunConfig(lr=1.0, min_lr=0.1, warmup_steps=20, steps=200, decay=decay)
    found, _ = positions(config, [200] * 25 + [steps] * steps)
    assert len(found) == steps
    last = learning_rate(config, found[-1])
    assert 0.1 <= last < 0.17
