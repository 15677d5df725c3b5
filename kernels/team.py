"""Threads that work on one kernel together.

A team is the calling thread and size − 1 more. All of them run the same compiled function at
once, without the GIL; each is told its rank. Inside, a kernel is a row of phases: the phase's
work is cut into tasks, whoever is free claims the next one, and all meet at a barrier.

    task = claim(team)
    while task < tasks:
        ...
        task = claim(team)
    barrier(team)

Who computes a task never changes what is computed, so results do not depend on the number of
threads; and a thread that another process slows down simply claims fewer tasks. At a barrier a
thread spins for some microseconds, then yields, then sleeps: an idle or waiting team costs other
programs nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numba.core import types

from .jit import inline, jit
from .simd import atomic_add, atomic_load, atomic_store, pause

# Places in Member.sync, each in a cache line of its own.
_ARRIVED, _ROUND, _NEXT, _ABORT, _SYNC_SIZE = 0, 8, 16, 24, 32

_SPINS = 4_000  # about 40 µs: longer than the tail of a well shared phase
_YIELDS = 200

# The same symbols that C would link; found in the running process.
if sys.platform == "win32":
    _yield_processor = types.ExternalFunction("SwitchToThread", types.int32())
    _sleep = types.ExternalFunction("Sleep", types.void(types.uint32))
    _NAP = 1  # milliseconds
else:
    _yield_processor = types.ExternalFunction("sched_yield", types.int32())
    _sleep = types.ExternalFunction("usleep", types.int32(types.uint32))
    _NAP = 50  # microseconds


class Member(NamedTuple):
    """What a compiled kernel knows of the team it runs in.

    rank     0 … size − 1
    size     the number of threads
    sync     int64 [32], shared: the barrier and the task counter
    scratch  float32 [n], this thread's own working memory
    """

    rank: int
    size: int
    sync: np.ndarray
    scratch: np.ndarray


@inline
def claim(team):
    """The number of the next task that nobody has taken yet in this phase."""
    return atomic_add(team.sync, _NEXT, 1)


@jit
def barrier(team):
    """Wait until every thread of the team is here; then the next phase's tasks count from 0."""
    sync = team.sync
    this_round = atomic_load(sync, _ROUND)
    if atomic_add(sync, _ARRIVED, 1) == team.size - 1:
        atomic_store(sync, _ARRIVED, 0)
        atomic_store(sync, _NEXT, 0)
        atomic_store(sync, _ROUND, this_round + 1)
        return
    waits = 0
    while atomic_load(sync, _ROUND) == this_round and atomic_load(sync, _ABORT) == 0:
        waits += 1
        if waits < _SPINS:
            pause()
        elif waits < _SPINS + _YIELDS:
            _yield_processor()
        else:
            _sleep(_NAP)


class Team:
    """`size` threads; `run` has them all execute one compiled function.

    One call runs at a time: a second caller waits. The threads sleep between calls, end with
    the team, and are started anew in a forked child, which has none.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._jobs: list[SimpleQueue] = []
        self._start()
        weakref.finalize(self, _dismiss, self._jobs)

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sync = np.zeros(_SYNC_SIZE, np.int64)
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._running = 0
        self._jobs[:] = [SimpleQueue() for _ in range(self.size - 1)]
        for jobs in self._jobs:
            name = "minigpt-worker"
            threading.Thread(target=_work, args=(jobs, self._done), name=name, daemon=True).start()

    def run(self, function: Callable[..., None], scratch: np.ndarray, *arguments: Any) -> None:
        """Call `function(member, *arguments)` in every thread and wait for all of them.

        function  made by `jit.entry`; it must end with a barrier
        scratch   float32 [size, n], a row of working memory for each thread
        """
        if self._pid != os.getpid():
            self._start()
        with self._lock:
            self._wait()  # for what an interrupted call may have left behind
            self._sync[:] = 0
            members = [
                Member(rank, self.size, self._sync, scratch[rank]) for rank in range(self.size)
            ]
            try:
                for jobs, member in zip(self._jobs, members[1:], strict=True):
                    self._running += 1
                    jobs.put((function, member, arguments))
                function(members[0], *arguments)
            except BaseException:
                self._sync[_ABORT] = 1  # nobody shall wait for us
                raise
            finally:
                self._wait()

    def _wait(self) -> None:
        """Until every worker has come back; raises what one of them raised."""
        failure = None
        while self._running:
            failure = self._done.get() or failure
            self._running -= 1
        if failure is not None:
            raise failure


def _dismiss(jobs: list[SimpleQueue]) -> None:
    """Send the workers home."""
    for queue in jobs:
        queue.put(None)


def _work(jobs: SimpleQueue, done: SimpleQueue) -> None:
    """A worker's life: take a job, do it, say so; until the job is None."""
    while (job := jobs.get()) is not None:
        function, member, arguments = job
        try:
            function(member, *arguments)
            failure = None
        except BaseException as error:
            member.sync[_ABORT] = 1
            failure = error
        # Nothing of the job may stay alive in a thread that sleeps.
        del job, function, member, arguments
        done.put(failure)
        del failure
