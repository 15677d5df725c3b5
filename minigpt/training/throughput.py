"""How fast a model learns on this machine, found by letting it."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from ..config import GPTConfig
from .config import Settings
from .train import Learner, make_engine

_TOKENS = 2048  # of a trial
_TRIALS = 3
_FOR_UPDATES = 0.9  # of the time; the rest is for evaluations and checkpoints


def steps_in(
    minutes: float,
    config: GPTConfig,
    tensors: dict[str, np.ndarray],
    settings: Settings,
    threads: int | None = None,
) -> int:
    """How many updates of a new run can be made in a time, at least 1. Takes some seconds.

    tensors  float32 by the table's names; they stay as they are
    """
    learner = make_engine(config, tensors, threads, settings.dtype, settings.recompute)
    rows = min(settings.batch_size, max(1, _TOKENS // settings.context))
    shape = (rows, settings.context)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, shape)
    _trial(learner, ids)  # compiles
    trials = [_trial(learner, ids) for _ in range(_TRIALS)]
    gradient, update = (min(times) for times in zip(*trials, strict=True))
    seconds = gradient * settings.batch_size / rows + update
    return max(1, int(60 * minutes * _FOR_UPDATES / seconds))


def _trial(learner: Learner, ids: np.ndarray) -> tuple[float, float]:
    """The seconds of a gradient and of an update, which changes nothing: its rate is 0."""
    start = perf_counter()
    learner.clear()
    learner.accumulate(ids, ids, 1 / ids.size)
    middle = perf_counter()
    learner.update(step=1, lr=0.0, beta_1=0.9, beta_2=0.95, eps=1e-8, weight_decay=0.0, clip=1.0)
    return middle - start, perf_counter() - middle
