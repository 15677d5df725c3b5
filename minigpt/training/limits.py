"""When a call that trains ends: its limits, and the clock that watches them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from ..arguments import checked_count, checked_number
from ..errors import InputError


@dataclass(frozen=True)
class Limits:
    """When a call of `resume_run` ends; a later call goes on from there.

    steps     total steps of the run, from 1. Default: those of its config. Beyond these the
              learning rate stays at its minimum
    minutes   time of this call, above 0. Default: no limit
    patience  evaluations in a row without a lower validation loss, from 1. Default: no limit
    """

    steps: int | None = None
    minutes: float | None = None
    patience: int | None = None


def checked_limits(limits: Limits) -> Limits:
    """The limits as plain Python numbers; raises InputError for one out of its range."""
    if not isinstance(limits, Limits):
        raise InputError(f"limits: {type(limits).__name__}; must be Limits")
    steps, minutes, patience = limits.steps, limits.minutes, limits.patience
    above_0, finite = math.nextafter(0, 1), math.nextafter(math.inf, 0)
    if steps is not None:
        steps = checked_count("steps", steps, 1)
    if minutes is not None:
        minutes = checked_number("minutes", minutes, "a number above 0", above_0, finite)
    if patience is not None:
        patience = checked_count("patience", patience, 1)
    return Limits(steps, minutes, patience)


class Clock:
    """The time of a call of `resume_run`, and whether it is over."""

    def __init__(
        self, seconds_before: float, minutes: float | None, stop: Callable[[], bool] | None
    ) -> None:
        self._start = perf_counter()
        self._before = seconds_before
        self._limit = math.inf if minutes is None else 60 * minutes
        self._stop = stop
        self._first: tuple[int, float] | None = None

    def elapsed(self) -> float:
        """Seconds of this call."""
        return perf_counter() - self._start

    def total_seconds(self) -> float:
        """Training time of the run in all its calls."""
        return self._before + self.elapsed()

    def left(self) -> float:
        """Seconds until this call's limit."""
        return self._limit - self.elapsed()

    def is_over(self) -> bool:
        """Whether the limit is reached or a stop is asked for."""
        return self.left() <= 0 or (self._stop is not None and self._stop())

    def steps_per_s(self, step: int) -> float:
        """Speed after `step`, without this call's first step, in which kernels are compiled."""
        if self._first is None:
            self._first = step, self.elapsed()
            return 1 / max(self.elapsed(), 1e-9)
        first, seconds = self._first
        return (step - first) / max(self.elapsed() - seconds, 1e-9)
