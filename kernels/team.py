"""A team of threads that run one kernel together.

A team is the calling thread and size − 1 workers. All of them call the same compiled function at
the same time, without the GIL, each with its own rank. A kernel is a sequence of phases. The work
of a phase is cut into tasks; each thread takes the next free task until none is left, and then
waits for the others at a barrier:

    task = next_task(team)
    while task < tasks:
        ...
        task = next_task(team)
    barrier(team)

Which thread computes a task never changes the result, so results do not depend on the number of
threads, and a thread that another process slows down simply takes fewer tasks.

At a barrier a thread spins, then sleeps between looks. While every thread has a processor to
itself, spinning is right: the others arrive within microseconds. When other programs share the
processors it is wrong: a spinning thread uses up its time slice, and then waits for the next one
when there is work. So the team adapts its spin limit: a wait that lasts beyond it, because a thread
was interrupted, resets it to the minimum, and each short wait raises it by one.
"""

from __future__ import annotations

import os
import threading
import weakref
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .jit import compile_for, inline, jit
from .simd import SLEEP_TIME, atomic_add, atomic_load, atomic_store, borrowed, pause, sleep

# Offsets in Member.sync, each in a cache line of its own.
_ARRIVED, _ROUND, _NEXT_TASK, _ABORT, _SPIN_LIMIT, _SYNC_SIZE = 0, 8, 16, 24, 32, 40

# How often a waiting thread looks before it sleeps. The maximum takes about 40 µs, longer than the
# last task of a phase whose tasks are small enough.
_MAX_SPINS, _MIN_SPINS = 4_000, 50
_LONG_WAIT = 2  # sleeps after which a wait counts as an interruption


class Member(NamedTuple):
    """A thread's view of its team: the first argument of every kernel.

    rank     this thread, 0 … size − 1; 0 is the caller
    size     the number of threads
    sync     int64 [40], common to the team: the state of the barrier and the task counter
    scratch  float32 [n], this thread's own working memory
    """

    rank: int
    size: int
    sync: np.ndarray
    scratch: np.ndarray


@inline
def borrowed_member(team):
    """The member with borrowed arrays, for an entry that hands it to many kernels."""
    return Member(team.rank, team.size, borrowed(team.sync), borrowed(team.scratch))


@inline
def next_task(team):
    """Take the next task of this phase and return its number, counted from 0."""
    return atomic_add(team.sync, _NEXT_TASK, 1)


@jit
def barrier(team):
    """Wait for all threads of the team; the next phase counts its tasks from 0 again."""
    sync = team.sync
    this_round = atomic_load(sync, _ROUND)
    if atomic_add(sync, _ARRIVED, 1) == team.size - 1:
        atomic_store(sync, _ARRIVED, 0)
        atomic_store(sync, _NEXT_TASK, 0)
        atomic_store(sync, _ROUND, this_round + 1)
        return
    spin_limit = atomic_load(sync, _SPIN_LIMIT)
    looks = 0
    while atomic_load(sync, _ROUND) == this_round and atomic_load(sync, _ABORT) == 0:
        looks += 1
        if looks < spin_limit:
            pause()
        else:
            sleep(SLEEP_TIME)
    if looks > spin_limit + _LONG_WAIT:
        atomic_store(sync, _SPIN_LIMIT, _MIN_SPINS)
    elif spin_limit < _MAX_SPINS:
        atomic_store(sync, _SPIN_LIMIT, spin_limit + 1)


_Job: TypeAlias = tuple[Any, Member, tuple[Any, ...]]  # function, member, arguments after it
_Jobs: TypeAlias = "SimpleQueue[_Job | None]"  # None ends the worker
_Results: TypeAlias = "SimpleQueue[BaseException | None]"  # None: the job ended without an error


class Team:
    """`size` threads; `run` calls one compiled function in all of them.

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
        self._jobs: list[_Jobs] = []
        # Not at exit: other modules' exit handlers may still compute, and workers are daemons.
        weakref.finalize(self, _end_workers, self._jobs).atexit = False
        self._reset()
        self._start_workers()

    def _reset(self) -> None:
        """The state of a team without workers, also that of a forked child."""
        self._usable = False
        self._threads: list[threading.Thread] = []
        self._sync = np.zeros(_SYNC_SIZE, np.int64)
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def _start_workers(self) -> None:
        self._sync = np.zeros(_SYNC_SIZE, np.int64)
        self._sync[_SPIN_LIMIT] = _MAX_SPINS
        self._done: _Results = SimpleQueue()
        self._jobs[:] = [SimpleQueue() for _ in range(self.size - 1)]
        self._threads = []
        for jobs in self._jobs:
            thread = threading.Thread(
                target=_work,
                args=(jobs, self._done, self._owner),
                name="minigpt-worker",
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)
        self._usable = True

    def _stop_workers(self) -> None:
        """Abort what the workers are running and join them."""
        self._sync[_ABORT] = 1
        _end_workers(self._jobs)
        for thread in self._threads:
            thread.join()

    def run(self, function: Any, scratch: np.ndarray, *arguments: Any) -> None:
        """Call `function(member, *arguments)` in every thread and wait for all of them.

        function  an `entry` of jit.py; it must end with a barrier
        scratch   float32 [size, n]: row i is the working memory of thread i

        Raises the first exception that a thread raised.
        """
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if not self._usable:
                self._stop_workers()
                self._start_workers()
            self._sync[:_SPIN_LIMIT] = 0
            members = [
                Member(rank, self.size, self._sync, scratch[rank]) for rank in range(self.size)
            ]
            if function not in self._compiled:
                # Not in all threads at once: after Ctrl-C no thread must go on compiling.
                compile_for(function, (members[0], *arguments))
                self._compiled.add(function)
            # Ctrl-C can come between any two steps and leave workers running and results unread:
            # unless the end is reached, the next call starts new workers.
            self._usable = False
            try:
                for jobs, member in zip(self._jobs, members[1:], strict=True):
                    jobs.put((function, member, arguments))
                function(members[0], *arguments)
                errors = [self._done.get() for _ in self._jobs]
            except BaseException:
                self._sync[_ABORT] = 1  # releases the workers that wait for this thread
                raise
            self._usable = True
        for error in errors:
            if error is not None:
                raise error


def _end_workers(jobs: list[_Jobs]) -> None:
    """End each worker after the jobs that it has."""
    for queue in jobs:
        queue.put(None)


def _work(jobs: _Jobs, done: _Results, owner: object) -> None:
    """The loop of a worker: take a job, run it, report its error or None; end at the job None."""
    while (job := jobs.get()) is not None:
        function, member, arguments = job
        error = None
        try:
            function(member, *arguments)
        except BaseException as raised:
            member.sync[_ABORT] = 1
            error = raised
        # A sleeping worker must hold no reference to anything of its last job.
        del job, function, member, arguments
        done.put(error)
        del error
