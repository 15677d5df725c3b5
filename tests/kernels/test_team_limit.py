"""The number of threads that take part follows their speed, by a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minigpt.kernels.team_limit import TeamLimit


class Machine:
    """Runs of a team; a run of `seconds_by` threads and its kind takes that long."""

    def __init__(self, size: int) -> None:
        self.limit = TeamLimit(size)
        self.now = 0.0

    def work(self, until: float, seconds: Callable[[int], float], lost: float) -> dict[int, float]:
        """Run until a time; returns the share of the time with each number of threads.

        seconds  of a run, by the number of threads
        lost     the part of each run that the caller loses
        """
        start, times = self.now, dict.fromkeys(range(1, self.limit.size + 1), 0.0)
        while self.now < until:
            threads, kind = self.limit.threads, "kind" if self.limit.comparing else None
            time = seconds(threads)
            self.now += time
            times[threads] += time
            self.limit.add(self.now, time, lost * time, kind)
        return {threads: time / (self.now - start) for threads, time in times.items()}


def quiet(threads: int) -> float:
    return 2e-3 / threads


def busy(threads: int) -> float:
    return 3e-3 if threads == 1 else 8e-3


@pytest.mark.parametrize("size", [2, 3, 16])
def test_all_threads_on_a_quiet_machine(size):
    assert Machine(size).work(10, quiet, lost=0.05)[size] == pytest.approx(1)


@pytest.mark.parametrize("size", [2, 3, 16])
def test_one_thread_where_more_are_slower(size):
    machine = Machine(size)
    machine.work(2, busy, lost=0.5)
    assert machine.work(20, busy, lost=0.5)[1] > 0.9


def test_they_come_back_within_seconds():
    machine = Machine(2)
    machine.work(10, busy, lost=0.5)
    machine.work(12, quiet, lost=0)
    assert machine.work(30, quiet, lost=0)[2] == pytest.approx(1)


def test_all_threads_on_a_busy_machine_where_that_is_faster():
    machine = Machine(2)
    machine.work(3, quiet, lost=0.5)
    assert machine.work(60, quiet, lost=0.5)[2] > 0.98


def test_the_best_number_between_one_and_all():
    """Four of sixteen processors are taken: a thread without one delays all others."""

    def seconds(threads):
        return 24e-3 / threads if threads <= 12 else 8e-3

    machine = Machine(16)
    machine.work(5, seconds, lost=0.3)
    times = machine.work(30, seconds, lost=0.3)
    assert times[12] > 0.8


def test_only_runs_of_equal_work_are_compared():
    """The runs of one thread happen to be short ones; that must not make it look faster."""
    limit = TeamLimit(2)
    now = 0.0
    while limit.threads == 2:
        now += 10e-3
        limit.add(now, 10e-3, 5e-3, "long")
    while limit.threads == 1 and limit.comparing:
        now += 1e-3
        limit.add(now, 1e-3, 0, "short")
    assert limit.threads == 2


@pytest.mark.parametrize(("second", "kept"), [(80e-3, 2), (5e-3, 1)])
def test_one_lucky_spell_changes_nothing(second, kept):
    """One thread is faster in its first spell. That counts if it is so in both together."""
    limit, now = TeamLimit(2), 0.0

    def run(seconds):
        nonlocal now
        now += seconds
        limit.add(now, seconds, seconds / 2, "kind" if limit.comparing else None)

    while not limit.comparing:
        run(10e-3)
    spells = []
    while limit.comparing:
        if not spells or spells[-1] != limit.threads:
            spells.append(limit.threads)
        run(10e-3 if limit.threads == 2 else 5e-3 if len(spells) == 2 else second)
    assert spells == [2, 1, 2, 1]
    assert limit.threads == kept


def test_a_quiet_moment_does_not_forget_all_comparisons():
    """The rest between them shrinks step by step."""
    machine = Machine(2)
    machine.work(60, quiet, lost=0.5)
    rest = machine.limit._rest
    machine.work(machine.limit._rest_ends + 0.03, quiet, lost=0)
    assert rest / 8 < machine.limit._rest < rest
