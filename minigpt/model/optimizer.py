"""The settings of an optimizer step; importing them compiles nothing."""

from __future__ import annotations

from typing import NamedTuple


class AdamW(NamedTuple):
    """One step of AdamW (Loshchilov & Hutter 2019), as Learner.step takes it.

    step           the number of the step, from 1
    lr             the learning rate of this step
    beta_1         decay of the first moment, the mean of gradients
    beta_2         decay of the second moment, the mean of squared gradients
    eps            added to the root of the second moment
    weight_decay   of matrices; biases and layernorms do not decay
    max_grad_norm  gradients whose norm, all together, is larger are scaled down to it; 0 for never
    """

    step: int
    lr: float
    beta_1: float = 0.9
    beta_2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
