"""The learning rate over a training run: up in a straight line, then down along a curve.

 lr ┤    ╭──╮
    │   ╱    ╲          cosine: slow, fast, slow;  linear: a straight line
    │  ╱      ╲
min ┤ ╱        ╰─────   and there it stays
    └─┬──┬──────┬────
      1  warmup  steps
"""

from __future__ import annotations

import math

DECAYS = ("cosine", "linear")


def learning_rate(
    step: int, lr: float, min_lr: float, warmup: int, steps: int, decay: str
) -> float:
    """The learning rate of update `step`, counted from 1.

    It grows to `lr` in the first `warmup` updates, falls to `min_lr` until update `steps`, and
    stays there. decay  one of DECAYS.
    """
    if step <= warmup:
        return lr * step / warmup
    if step >= steps:
        return min_lr
    done = (step - warmup) / (steps - warmup)
    left = (1 + math.cos(math.pi * done)) / 2 if decay == "cosine" else 1 - done
    return min_lr + (lr - min_lr) * left
