"""The learning rate of each step: a linear warmup, then cosine or linear decay.

 lr ┤    ╭──╮
    │   ╱    ╲          cosine: slow, fast, slow;  linear: a straight line
    │  ╱      ╲
min ┤ ╱        ╰─────   constant from the last step on
    └─┬──┬──────┬────
      1  warmup  steps
"""

from __future__ import annotations

import math

from .config import RunConfig


def learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of `step`, counted from 1.

    It rises linearly to config.lr in the first warmup_steps, decays to min_lr at the step
    config.steps, and stays there.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if step >= config.steps:
        return config.min_lr
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    factor = cosine if config.decay == "cosine" else 1 - progress
    return config.min_lr + (config.lr - config.min_lr) * factor
