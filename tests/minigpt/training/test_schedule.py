"""The learning rate of each step: warmup, decay, and the constant end."""

from __future__ import annotations

import math

import pytest

from minigpt.training.config import RunConfig
from minigpt.training.schedule import learning_rate


def config(decay: str) -> RunConfig:
    return RunConfig(lr=1.0, min_lr=0.1, warmup_steps=4, steps=12, decay=decay)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_warmup_rises_and_decay_falls_to_the_minimum(decay: str) -> None:
    rates = [learning_rate(config(decay), step) for step in range(1, 15)]
    rise, end = [0.25, 0.5, 0.75, 1.0], [0.1, 0.1, 0.1]
    fall = {
        "linear": [1 - 0.9 * n / 8 for n in range(1, 8)],
        "cosine": [0.1 + 0.45 * (1 + math.cos(math.pi * n / 8)) for n in range(1, 8)],
    }
    assert rates == pytest.approx(rise + fall[decay] + end)


@pytest.mark.parametrize(
    ("step", "config", "expected"),
    [
        (1, RunConfig(lr=1.0, min_lr=0.0, warmup_steps=0, steps=4, decay="linear"), 0.75),
        (1, RunConfig(lr=1.0, min_lr=0.5, warmup_steps=0, steps=1), 0.5),
        (3, RunConfig(lr=1.0, min_lr=0.5, warmup_steps=3, steps=3), 1.0),
    ],
)
def test_without_warmup_or_decay(step: int, config: RunConfig, expected: float) -> None:
    assert learning_rate(config, step) == expected
