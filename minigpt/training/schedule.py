"""The learning rate of each step: a linear warmup, then cosine or linear decay.

 lr ┤    ╭──╮
    │   ╱    ╲          cosine: slow, fast, slow;  linear: a straight line
    │  ╱      ╲
min ┤ ╱        ╰·····   the rate of the last step, from there on
    └─┬──┬──────┬────
      1  warmup  steps

A run by the clock, which has minutes in place of steps, follows the same curve. How many steps fit
into its time is estimated anew after each step (`Plan`), and a step advances on the curve by its
share of what is left of it: the curve ends where the time does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .config import RunConfig


class Plan(NamedTuple):
    """Where a run by the clock is on the curve of its config, and where it ends.

    steps     the steps that the run will have made, by the latest estimate
    position  the step of the config whose learning rate the last step had: a fraction where the
              estimate has changed
    """

    steps: int
    position: float


def learning_rate(config: RunConfig, step: float) -> float:
    """The learning rate of `step`, from 1; of a run by the clock also between two steps.

    It rises linearly to config.lr, which it reaches at the step warmup_steps: at the first step if
    that is 0, and at the last one if there are fewer. From there it decays towards min_lr, where it
    would arrive one step after the last: each of the config's steps has a rate above 0, also if
    min_lr is 0. Later steps have the rate of the last one.

    With t from 0 at the peak to 1 one step after the last, the decay from lr to min_lr is

        linear  min_lr + (lr − min_lr) (1 − t)
        cosine  min_lr + (lr − min_lr) (1 + cos πt) / 2 = min_lr + (lr − min_lr) sin²(π/2 · (1 − t))
    """
    if config.legacy:
        return _legacy_learning_rate(config, step)
    peak = min(max(config.warmup_steps, 1), config.steps)
    step = min(step, config.steps)
    if step < peak:
        return config.lr * step / peak
    if step == peak:
        return config.lr
    left = (config.steps + 1 - step) / (config.steps + 1 - peak)
    # sin² and not 1 + cos, which is rounded to 0 near the end of a long run
    factor = left if config.decay == "linear" else math.sin(math.pi / 2 * left) ** 2
    return config.min_lr + (config.lr - config.min_lr) * factor


def _legacy_learning_rate(config: RunConfig, step: float) -> float:
    """The rate in runs that an earlier version began: min_lr at the last step already."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if step >= config.steps:
        return config.min_lr
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    factor = cosine if config.decay == "cosine" else 1 - progress
    return config.min_lr + (config.lr - config.min_lr) * factor


def next_position(config: RunConfig, plan: Plan, step: int) -> float:
    """Where on the curve `step` is, the step after the one that `plan` was made at.

    It advances by its share of what is left, and does not skip the peak; the last step has reached
    it. Steps beyond the plan stay where the last one was.
    """
    if step > plan.steps:
        return plan.position
    end, peak = config.steps + 1, min(max(config.warmup_steps, 1), config.steps)
    position = plan.position + (end - plan.position) / (plan.steps + 2 - step)
    is_last = step == plan.steps
    return float(peak) if plan.position < peak and (position > peak or is_last) else position
