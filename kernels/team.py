"""A team of threads that run one kernel together.

A team is the calling thread and size − 1 workers. All of them call the same compiled function at
the same time, without the GIL, each with its own rank. A kernel is a sequence of phases. The work
of a phase is cut into tasks; each thread takes the next free task until none is left, and then
waits at a barrier until all tasks are done:

    task = next_task(team)
    while task < tasks:
        ...
        task = next_task(team)
    barrier(team)

Which thread computes a task never changes the result, so results do not depend on the number of
threads. Nobody waits for a thread that has taken no task of the phase: one that starts late, or
that another process keeps from running, finds the phase done and passes on. A kernel
therefore writes shared memory in tasks only, and values that it reads outside of tasks affect tasks
alone.

A thread that is suspended in the middle of a task does keep the others waiting. team_limit.py
decides how many threads take part when that happens.
"""

from __future__ import annotations

import _thread
import os
import weakref
from queue import SimpleQueue
from time import perf_counter, thread_time
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .jit import jit
from .simd import (
    CLOCK_UNIT,
    SLEEP_TIME,
    atomic_add,
    atomic_compare_exchange,
    atomic_load,
    clock,
    pause,
    sleep,
)
from .team_limit import TeamLimit
from .threads import compile_in_thread, is_mine, new_lock, start_thread

# Member.sync begins with the state of the phase, and with the counter of a thread that runs alone.
# Each thread's own numbers follow, in cache lines of their own, which only this thread accesses:
#   _PHASE   the phase it is in
#   _JOINED  whether the others wait for it at the end of this phase
#   _TASKS   the tasks that it has taken since the caller last looked
#   _WAITED  the time that it has waited since then
_STATE, _ALONE, _OWN = 0, 16, 32
_PHASE, _JOINED, _TASKS, _WAITED, _OWN_SIZE = 0, 1, 2, 3, 16

# The state is one number, which changes as a whole: the phase, the number of threads that have
# joined it, and the next task.
_JOIN = 1 << 31
_TASK_MASK = _JOIN - 1
_JOINED_MASK = (1 << 9) - 1
_PHASE_SHIFT = 40
_ABORTED = ((1 << 23) - 1) << _PHASE_SHIFT  # a phase that no thread is in: all pass on
_MAX_FIRST_PHASE = 1 << 22  # of a run; then the numbers begin at 0 again

_NO_TASK = 1 << 40  # more than any phase has

# How often a waiting thread looks before it sleeps: about 40 µs, longer than the last task of a
# phase whose tasks are small enough. Waiting counts as such from the first µs on.
_MAX_SPINS, _SHORT_WAIT = 4_000, 100


class Member(NamedTuple):
    """A thread's view of its team: the first argument of every kernel.

    rank     this thread, 0 … size − 1; 0 is the caller
    size     the number of threads; 1 for a thread that runs alone
    sync     int64 [_OWN + size · _OWN_SIZE], common to the team
    scratch  float32 [n], this thread's own working memory
    """

    rank: int
    size: int
    sync: np.ndarray
    scratch: np.ndarray


@jit
def next_task(team):
    """Take the next task of this phase and return its number, counted from 0."""
    sync = team.sync
    if team.size == 1:
        task = sync[_ALONE]
        sync[_ALONE] = task + 1
        return task
    return _next_shared_task(sync, _OWN + team.rank * _OWN_SIZE)


@jit
def _next_shared_task(sync, own):
    """next_task of a thread whose numbers begin at `own`; _NO_TASK where the phase is over."""
    if not _join(sync, own):
        return _NO_TASK
    state = atomic_add(sync, _STATE, 1)
    if state >> _PHASE_SHIFT != sync[own + _PHASE]:  # aborted
        return _NO_TASK
    sync[own + _TASKS] += 1
    return state & _TASK_MASK


@jit
def join(team):
    """Whether the phase is not over; then it lasts until this thread is at the barrier.

    For work in memory of this thread's own that its tasks read.
    """
    return team.size == 1 or _join(team.sync, _OWN + team.rank * _OWN_SIZE)


@jit
def _join(sync, own):
    """`join` for the thread whose numbers begin at `own`."""
    if sync[own + _JOINED]:
        return True
    phase, state = sync[own + _PHASE], atomic_load(sync, _STATE)
    while state >> _PHASE_SHIFT == phase:
        found = atomic_compare_exchange(sync, _STATE, state, state + _JOIN)
        if found == state:
            sync[own + _JOINED] = 1
            sync[own + _TASKS] -= 1  # next_task counts once more, when no task is left
            return True
        state = found
    return False


@jit
def barrier(team):
    """Wait until all tasks of the phase are done; the next phase counts its tasks from 0 again."""
    if team.size == 1:
        team.sync[_OWN + _TASKS] += team.sync[_ALONE] - 1
        team.sync[_ALONE] = 0
    else:
        _shared_barrier(team.sync, _OWN + team.rank * _OWN_SIZE)


@jit
def _shared_barrier(sync, own):
    phase = sync[own + _PHASE]
    next_phase = phase + 1
    if _join(sync, own):
        sync[own + _JOINED] = 0
        state = atomic_load(sync, _STATE)
        while state >> _PHASE_SHIFT == phase:
            last = state // _JOIN & _JOINED_MASK == 1
            left = next_phase << _PHASE_SHIFT if last else state - _JOIN
            found = atomic_compare_exchange(sync, _STATE, state, left)
            if found == state:
                if not last:
                    _wait(sync, phase, own)
                break
            state = found
    sync[own + _PHASE] = next_phase


@jit
def _wait(sync, phase, own):
    """Wait for the end of the phase: spin, then sleep between looks."""
    looks, start = 0, 0
    while atomic_load(sync, _STATE) >> _PHASE_SHIFT == phase:
        looks += 1
        if looks < _MAX_SPINS:
            pause()
            if looks == _SHORT_WAIT:
                start = clock()
        else:
            sleep(SLEEP_TIME)
    if looks >= _SHORT_WAIT:
        sync[own + _WAITED] += clock() - start


# function, member, its first phase, the arguments after the member
_Job: TypeAlias = tuple[Any, Member, int, tuple[Any, ...]]
_MAX_QUEUED = 4  # jobs for a worker that does not come to take them


class _Worker:
    """What a team knows of a worker.

    jobs     the calls that it makes; None ends it
    ended    a lock that is free when it has ended
    started  whether it began
    """

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.ended = _thread.allocate_lock()
        self.ended.acquire()
        self.started = False


class Team:
    """`size` threads; `run` calls one compiled function in all of them, or in some.

    One call runs at a time: a second caller waits. Workers sleep between calls and end with the
    team. A forked child, which inherits no threads, starts its own at the first call.
    """

    def __init__(self, size: int, owner: object = None) -> None:
        """Start size − 1 workers; raises RuntimeError where the system starts no more threads.

        owner  an object with the memory that addresses among the arguments point to: workers hold
               a reference to it, so that the memory lives as long as one of them runs
        """
        self.size = size
        self._owner = owner
        self._compiled: set[Any] = set()
        self._lock = new_lock()
        self._sync: np.ndarray = _new_sync(size)
        self._limit = TeamLimit(size)
        self._workers: list[_Worker] = []
        # Not at exit: other modules' exit handlers may still compute, and workers are daemons.
        weakref.finalize(self, _end_workers, self._workers).atexit = False
        _teams.add(self)
        self._start_workers()

    @property
    def interrupted(self) -> bool:
        """Whether this thread is inside `run`: a signal handler has interrupted it there."""
        return is_mine(self._lock)

    def run(self, function: Any, scratch: np.ndarray, *arguments: Any, alone: bool = False) -> None:
        """Call `function(member, *arguments)` in the threads and wait until all tasks are done.

        function  an `entry` of jit.py; it must end with a barrier, and have at most 2²² of them
        scratch   float32 [size, n]: row i is the working memory of thread i
        alone     in this thread alone: for work that is done before others would have begun

        Raises the first exception that a thread raised, and RuntimeError where a signal handler
        calls the team that it interrupted.
        """
        if self.interrupted:
            raise RuntimeError("a signal handler called the team that it interrupted")
        with self._lock:
            if function not in self._compiled:
                member = Member(0, 1, self._sync, scratch[0])
                compile_in_thread(function, (member, *arguments))
                self._compiled.add(function)
            if not self._usable:
                self._stop_workers()  # some may still be in a task of the run that ended early
            if alone or self._limit.size == 1:
                self._call_alone(function, scratch, arguments)
                return
            if self._limit.comparing:
                self._count_tasks()
            busy, start = thread_time(), perf_counter()
            if self._limit.threads > 1 and (self._usable or self._start_again()):
                waited = self._call_together(function, scratch, arguments)
            else:
                waited = self._call_alone(function, scratch, arguments)
            now = perf_counter()
            idle = now - start - (thread_time() - busy)
            kind = (function, self._count_tasks()) if self._limit.comparing else None
            self._limit.add(now, now - start, max(waited, idle), kind)

    def _call_alone(self, function: Any, scratch: np.ndarray, arguments: tuple[Any, ...]) -> float:
        """Run the function in this thread; returns 0, the seconds that it waited."""
        try:
            function(Member(0, 1, self._sync, scratch[0]), *arguments)
        except BaseException:
            self._sync[_ALONE] = 0
            raise
        return 0.0

    def _call_together(
        self, function: Any, scratch: np.ndarray, arguments: tuple[Any, ...]
    ) -> float:
        """Run the function in several threads; returns the seconds that this one waited."""
        phase = int(self._sync[_STATE]) >> _PHASE_SHIFT
        if phase > _MAX_FIRST_PHASE:
            self._sync, phase = _new_sync(self.size), 0  # a late worker keeps the former
        sync = self._sync
        caller, *members = (
            Member(rank, self.size, sync, scratch[rank]) for rank in range(self._limit.threads)
        )
        # Ctrl-C can come between any two steps and leave workers running: unless the end is
        # reached, the next call starts new ones.
        self._usable = False
        try:
            for worker, member in zip(self._workers, members, strict=False):
                if worker.jobs.qsize() < _MAX_QUEUED:
                    worker.jobs.put((function, member, phase, arguments))
            _call(function, caller, phase, arguments)
        except BaseException:
            sync[_STATE] = _ABORTED
            raise
        if self._errors:
            raise self._errors[0]
        waited = int(sync[_OWN + _WAITED]) * CLOCK_UNIT
        sync[_OWN + _WAITED] = 0
        self._usable = True
        return waited

    def _count_tasks(self) -> int:
        """The number of tasks since it was called last."""
        counts = self._sync[_OWN + _TASKS :: _OWN_SIZE]
        total = int(counts.sum())
        counts[:] = 0
        return total

    # ---- workers ----

    def _reset(self) -> None:
        """The state of a team without workers, also that of a forked child."""
        self._usable = False
        self._workers.clear()
        self._errors: list[BaseException] = []
        self._sync = _new_sync(self.size)
        self._limit = TeamLimit(self.size)

    def _start_workers(self) -> None:
        self._reset()
        for _ in range(self.size - 1):
            worker = _Worker()
            self._workers.append(worker)
            start_thread(_work, worker.jobs, worker.ended, self._errors, self._owner)
            worker.started = True
        self._usable = True

    def _stop_workers(self) -> None:
        """Abort what the workers are running, and wait for their end."""
        self._sync[_STATE] = _ABORTED
        _end_workers(self._workers)
        for worker in self._workers:
            if worker.started:
                with worker.ended:
                    pass
        self._workers.clear()

    def _start_again(self) -> bool:
        """Start new workers after an interruption or a fork; False if the system starts none."""
        try:
            self._start_workers()
        except RuntimeError:  # at the end of the process
            self._stop_workers()
            self._reset()
            self._limit = TeamLimit(1)
        return self._usable


def _new_sync(size: int) -> np.ndarray:
    return np.zeros(_OWN + size * _OWN_SIZE, np.int64)


def _end_workers(workers: list[_Worker]) -> None:
    """End each worker after the jobs that it has."""
    for worker in workers:
        worker.jobs.put(None)


def _work(
    jobs: SimpleQueue[_Job | None], ended: Any, errors: list[BaseException], owner: object
) -> None:
    """The loop of a worker: take a job and run it; end at the job None."""
    while (job := jobs.get()) is not None:
        if not jobs.empty():  # a later run has begun, so this one is over
            continue
        function, member, phase, arguments = job
        try:
            _call(function, member, phase, arguments)
        except BaseException as error:
            errors.append(error)
            member.sync[_STATE] = _ABORTED
        # A sleeping worker must hold no reference to anything of its last job.
        del job, function, member, arguments
    ended.release()


def _call(function: Any, member: Member, phase: int, arguments: tuple[Any, ...]) -> None:
    """Run a function in a thread of a team whose first phase is `phase`."""
    own = _OWN + member.rank * _OWN_SIZE
    member.sync[own + _PHASE] = phase
    member.sync[own + _JOINED] = 0
    function(member, *arguments)


_teams: weakref.WeakSet[Team] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for team in list(_teams):
        team._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
