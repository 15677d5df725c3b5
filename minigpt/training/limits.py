"""When a call that trains ends: its limits, and the clock that measures it."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from time import perf_counter

from ..arguments import checked_count, checked_number
from ..errors import InputError


@dataclass(frozen=True)
class Limits:
    """When a call of `resume_run` ends; a later call goes on from there.

    steps     total steps of the run, from 1. Default: those planned. Beyond these the learning rate
              stays what it was in the last of them
    minutes   time of this call, above 0; a run by the clock plans its steps anew, to end with it.
              Default: no limit
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
    """The time of a call of `resume_run`."""

    def __init__(self, seconds_before: float, minutes: float | None) -> None:
        self._start = perf_counter()
        self._before = seconds_before
        self._limit = math.inf if minutes is None else 60 * minutes
        self._ends = array("d")  # seconds after each step of this call

    def elapsed(self) -> float:
        """Seconds of this call."""
        return perf_counter() - self._start

    def total_seconds(self) -> float:
        """Training time of the run in all its calls."""
        return self._before + self.elapsed()

    def left(self) -> float:
        """Seconds until this call's limit, below 0 after it."""
        return self._limit - self.elapsed()

    def end_step(self) -> None:
        """Note that a step has ended now."""
        self._ends.append(self.elapsed())

    def seconds_per_step(self) -> float | None:
        """The mean of the later half of this call's steps, with the evaluations between them.

        None before two steps: the first is not counted, because kernels may be compiled in it.
        """
        if len(self._ends) < 2:
            return None
        first = len(self._ends) // 2
        seconds = self._ends[-1] - self._ends[first - 1]
        return max(seconds, 1e-9) / (len(self._ends) - first)
