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
threads; and a thread that another process slows down simply claims fewer tasks.

At a barrier a thread spins, then sleeps and looks again. Where the processors are the team's own,
spinning is right: the others are only microseconds behind. Where they are shared it is wrong: a
thread that spins uses up the time it is given, and is kept waiting for more when it has something
to do. So the team's patience is a number that it learns: a wait so long that somebody must have
been interrupted ends it at once, and every short one gives a little of it back.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numba import typeof
from numba.core import types

from .jit import inline, jit
from .simd import atomic_add, atomic_load, atomic_store, pause

# Places in Member.sync, each in a cache line of its own.
_ARRIVED, _ROUND, _NEXT, _ABORT, _PATIENCE, _SYNC_SIZE = 0, 8, 16, 24, 32, 40

# Patience is how often a thread looks before it sleeps: at most some 40 µs long, which is more
# than the tail of a well shared phase.
_MOST, _LEAST = 4_000, 50
_LONG = 2  # naps after which a wait was an interruption

# The same symbols that C would link; found in the running process.
if sys.platform == "win32":
    _sleep = types.ExternalFunction("Sleep", types.void(types.uint32))
    _NAP = 0  # milliseconds: let another thread run, if one wants to
else:
    _sleep = types.ExternalFunction("usleep", types.int32(types.uint32))
    _NAP = 5  # microseconds, to which the system adds some


class Member(NamedTuple):
    """What a compiled kernel knows of the team it runs in.

    rank     0 … size − 1
    size     the number of threads
    sync     int64 [40], shared: the barrier and the task counter
    scratch  float32 [n], this thread's own working memory
    """

    rank: int
    size: int
    sync: np.ndarray
    scratch: np.ndarray


@inline
def next_task(team):
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
    patience = atomic_load(sync, _PATIENCE)
    waits = 0
    while atomic_load(sync, _ROUND) == this_round and atomic_load(sync, _ABORT) == 0:
        waits += 1
        if waits < patience:
            pause()
        else:
            _sleep(_NAP)
    if waits > patience + _LONG:
        atomic_store(sync, _PATIENCE, _LEAST)
    elif patience < _MOST:
        atomic_store(sync, _PATIENCE, patience + 1)


class Team:
    """`size` threads; `run` has them all execute one compiled function.

    One call runs at a time: a second caller waits. The threads sleep between calls, end with
    the team, and are started anew in a forked child, which has none.

    keep  what the addresses among the arguments point into: it lives as long as a thread works
    """

    def __init__(self, size: int, keep: object = None) -> None:
        """Raises RuntimeError where the system gives no more threads."""
        self.size = size
        self._keep = keep
        self._compiled: set[Any] = set()
        self._jobs: list[SimpleQueue] = []
        # Not at exit: what other modules do there may still compute, and the threads are daemons.
        weakref.finalize(self, _dismiss, self._jobs).atexit = False
        self._begin()
        self._hire()

    def _begin(self) -> None:
        """With no threads; also in a forked child, where those of the parent are not."""
        self._whole = False
        self._threads: list[threading.Thread] = []
        self._sync = np.zeros(_SYNC_SIZE, np.int64)
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def _hire(self) -> None:
        self._sync = np.zeros(_SYNC_SIZE, np.int64)
        self._sync[_PATIENCE] = _MOST
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._jobs[:] = [SimpleQueue() for _ in range(self.size - 1)]
        self._threads = []
        for jobs in self._jobs:
            arguments = (jobs, self._done, self._keep)
            name = "minigpt-worker"
            thread = threading.Thread(target=_work, args=arguments, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._whole = True

    def _dismiss(self) -> None:
        """Send all workers home, whatever they are doing, and wait until they have gone."""
        self._sync[_ABORT] = 1
        _dismiss(self._jobs)
        for thread in self._threads:
            thread.join()

    def run(self, function: Any, scratch: np.ndarray, *arguments: Any) -> None:
        """Call `function(member, *arguments)` in every thread and wait for all of them.

        function  made by `jit.entry`; it must end with a barrier
        scratch   float32 [size, n], a row of working memory for each thread
        """
        if self._pid != os.getpid():
            self._begin()
        with self._lock:
            if not self._whole:
                self._dismiss()
                self._hire()
            self._sync[:_PATIENCE] = 0
            members = [
                Member(rank, self.size, self._sync, scratch[rank]) for rank in range(self.size)
            ]
            if function not in self._compiled:
                # Here, not in all threads at once: Ctrl-C then leaves none that goes on compiling.
                function.compile(tuple(typeof(a) for a in (members[0], *arguments)))
                self._compiled.add(function)
            # Ctrl-C can come between any two steps, and leave who knows how many threads at work
            # and results unread. So whoever does not reach the end leaves the team to be renewed.
            self._whole = False
            try:
                for jobs, member in zip(self._jobs, members[1:], strict=True):
                    jobs.put((function, member, arguments))
                function(members[0], *arguments)
                failures = [self._done.get() for _ in self._jobs]
            except BaseException:
                self._sync[_ABORT] = 1  # nobody shall wait for us
                raise
            self._whole = True
        for failure in failures:
            if failure is not None:
                raise failure


def _dismiss(jobs: list[SimpleQueue]) -> None:
    """Send the workers home."""
    for queue in jobs:
        queue.put(None)


def _work(jobs: SimpleQueue, done: SimpleQueue, keep: object) -> None:
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
