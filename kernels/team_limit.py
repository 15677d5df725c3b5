"""How many threads of a team take part: fewer while that is faster, because the machine is busy.

A thread that the system suspends in the middle of a task makes the others wait for it, for
milliseconds where a task takes microseconds. That hardly happens on a machine with a processor for
each thread. Where other programs run, too, one thread can be faster than two; how many are best
depends on what runs, and changes with it. So it is measured as soon as the caller loses part of its
time: the present number of threads for a spell, then a smaller or larger one, and both once more if
the other seems faster, as a spell can have luck. The faster is kept for a rest, and each comparison
that it wins again doubles the rest.
"""

from __future__ import annotations

from collections.abc import Hashable

_WINDOW = 20e-3  # seconds of work over which lost time is measured
_MAX_LOST = 0.1  # the lost fraction that begins a comparison
_SPELL = 40e-3  # seconds of work of each number in a comparison: ten time slices of the system
_MARGIN = 1.1  # the ratio by which more threads must be faster than fewer
_MIN_REST, _MAX_REST = 80e-3, 1.0  # seconds, with fewer threads than there are
_MAX_REST_ALL = 10.0  # seconds, with all threads


class TeamLimit:
    """How many of `size` threads take part in a run; it learns from the runs before.

    threads    the number of threads for the next run, from 1 to size
    comparing  whether it needs to know the kind of the next run
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.threads = size
        self.comparing = False
        self._up = False  # whether the next comparison is with a larger number
        self._rest = _MIN_REST
        self._rest_ends = 0.0
        self._time = self._lost = 0.0  # of this window or spell
        self._spell = 0  # of this comparison; the present number has the even ones
        self._spells: list[dict[Hashable, tuple[float, int]]] = []  # {kind: (seconds, runs)}

    def add(self, now: float, time: float, lost: float, kind: Hashable = None) -> None:
        """Learn from a run that has ended at the time `now`, in seconds.

        time  the seconds that it took
        lost  those of them in which the caller waited for others or for a processor
        kind  while `comparing`: something that is equal for runs of equal work
        """
        self._time += time
        self._lost += lost
        if self.comparing:
            times = self._spells[self._spell % 2]
            seconds, runs = times.get(kind, (0.0, 0))
            times[kind] = seconds + time, runs + 1
            if self._time > _SPELL:
                self._end_spell(now)
        elif self._time > _WINDOW:
            self._end_window(now)

    def _end_window(self, now: float) -> None:
        """Begin a comparison where there is reason to, once the rest is over."""
        if now >= self._rest_ends:
            if self.threads < self.size or self._lost > _MAX_LOST * self._time:
                self.comparing = True
                self._present, self._spell, self._spells = self.threads, 0, [{}, {}]
            else:
                self._rest = max(_MIN_REST, self._rest / 2)
        self._time = self._lost = 0.0

    def _end_spell(self, now: float) -> None:
        """Go from the present number of threads to the other; after that keep the faster."""
        self._time = self._lost = 0.0
        self._spell += 1
        if self._spell % 2:
            self.threads = self._other()
            return
        ratio = _time_ratio(*self._spells)
        is_faster = ratio > (_MARGIN if self.threads > self._present else 1 / _MARGIN)
        if is_faster and self._spell == 2:
            self.threads = self._present
            return
        self.comparing = False
        if is_faster:
            self._rest = _MIN_REST
        else:
            longest = _MAX_REST_ALL if self._present == self.size else _MAX_REST
            self._rest = min(longest, 2 * self._rest)
            self.threads = self._present
            self._up = not self._up
        self._rest_ends = now + self._rest

    def _other(self) -> int:
        """The number to compare the present one with."""
        up = self.threads == 1 or (self._up and self.threads < self.size)
        return (
            min(self.size, max(self.threads + 1, self.threads * 4 // 3))
            if up
            else (self.threads * 3 // 4)
        )


def _time_ratio(
    first: dict[Hashable, tuple[float, int]], second: dict[Hashable, tuple[float, int]]
) -> float:
    """The time of the first spell ÷ that of the second, for equal work; 0 if it had none."""
    times = [0.0, 0.0]
    for kind in first.keys() & second.keys():
        weight = min(first[kind][1], second[kind][1])
        for i, spell in enumerate((first, second)):
            seconds, runs = spell[kind]
            times[i] += weight * seconds / runs
    return times[0] / times[1] if times[1] else 0.0
