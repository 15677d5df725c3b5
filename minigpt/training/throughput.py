"""Estimate how many steps fit into a given time, by timing a few on this machine."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from ..arguments import MAX_INTEGER
from ..model.optimizer import AdamW
from .config import RunConfig
from .train import Learner

_TOKENS = 2048  # of a timed micro-batch
_TRIALS = 3
_STEP_SHARE = 0.9  # of the time; the rest is for evaluations and checkpoints


def estimated_steps(learner: Learner, config: RunConfig, minutes: float) -> int:
    """The number of steps of `config` that `learner` makes in `minutes`, at least 1.

    Takes some seconds, and leaves the weights as they are.
    """
    micro_batch = min(config.batch_size, max(1, _TOKENS // config.context))
    vocab_size = len(learner.tensors["wte.weight"])
    ids = np.random.default_rng(0).integers(0, vocab_size, (micro_batch, config.context))
    _time_step(learner, ids)  # compiles
    trials = [_time_step(learner, ids) for _ in range(_TRIALS)]
    gradient_s, update_s = (min(times) for times in zip(*trials, strict=True))
    step_s = gradient_s * config.batch_size / micro_batch + update_s
    return max(1, int(min(60 * minutes * _STEP_SHARE / step_s, MAX_INTEGER)))


def _time_step(learner: Learner, ids: np.ndarray) -> tuple[float, float]:
    """Seconds of forward and backward, and of the optimizer at a learning rate of 0."""
    start = perf_counter()
    learner.zero_grad()
    learner.backward(ids, ids, 1 / ids.size)
    middle = perf_counter()
    learner.step(AdamW(step=1, lr=0.0, weight_decay=0.0))
    return middle - start, perf_counter() - middle
