"""Teams: every task runs once, exceptions reach the caller, nothing hangs, forks work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from minigpt.kernels import team as team_module
from minigpt.kernels.jit import entry, jit
from minigpt.kernels.simd import atomic_load, clock, pause
from minigpt.kernels.team import (
    _MAX_FIRST_PHASE,
    _PHASE_SHIFT,
    _STATE,
    _TASK_MASK,
    Team,
    _call,
    barrier,
    next_task,
)

ROOT = Path(__file__).resolve().parents[2]


@entry
def count_tasks(team, done, phases):
    for _ in range(phases):
        task = next_task(team)
        while task < done.size:
            done[task] += 1
            task = next_task(team)
        barrier(team)


@entry
def fail_in_one(team, rank, phases):
    """All threads take one task, so that the others wait for the one that fails."""
    for _ in range(phases):
        next_task(team)
        while team.size > 1 and 0 < atomic_load(team.sync, _STATE) & _TASK_MASK < team.size:
            pause()  # until all have one, or the call is aborted
        if team.rank == rank:
            phases = (0, 0)[phases]  # an IndexError; kernels have no `raise`, which would allocate
        barrier(team)


@entry
def mix(team, x, phases, delay):
    """x[p + 1, i] = 3 · x[p, i] + x[p, i + 1], so that a row needs the whole row before it.

    delay  up to so many looks at the clock before each step, by the rank and the numbers themselves
    """
    n = x.shape[1]
    for p in range(phases):
        wait(delay, team.rank + p)
        task = next_task(team)
        while task < n:
            wait(delay, x[p, task])
            x[p + 1, task] = 3 * x[p, task] + x[p, (task + 1) % n]
            task = next_task(team)
        wait(delay, team.rank + 2 * p)
        barrier(team)


@jit
def wait(delay, seed):
    """Mostly not at all, sometimes for some microseconds."""
    start = clock()
    for _ in range(delay if (seed * 2654435761) >> 7 & 7 == 0 else 0):
        if clock() == start - 1:  # never; else the loop is compiled away
            break


def mixed(row, phases):
    """What `mix` computes, by NumPy."""
    rows = [row]
    for _ in range(phases):
        rows.append(3 * rows[-1] + np.roll(rows[-1], -1))
    return np.stack(rows)


@entry
def slow_task(team, done):
    """A task that takes a while."""
    task = next_task(team)
    while task < 1:
        done[0] = 1
        for _ in range(2_000_000):
            pause()
        done[0] = 2
        task = next_task(team)
    barrier(team)


def scratch(size):
    return np.zeros((size, 1), np.float32)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_task_runs_once_in_every_phase(size):
    team, done = Team(size), np.zeros(17, np.int64)
    for _ in range(20):
        team.run(count_tasks, scratch(size), done, 50)
    team.run(count_tasks, scratch(size), done, 50, alone=True)
    assert (done == 1050).all()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_an_exception_in_one_thread_reaches_the_caller(rank):
    team = Team(3)
    with pytest.raises(IndexError, match="tuple index"):
        team.run(fail_in_one, scratch(3), rank, 3)
    done = np.zeros(4, np.int64)
    for alone in (True, False):
        team.run(count_tasks, scratch(3), done, 2, alone=alone)
    assert (done == 4).all()


def test_an_exception_of_a_thread_that_runs_alone():
    team, done = Team(2), np.zeros(4, np.int64)
    with pytest.raises(IndexError, match="tuple index"):
        team.run(fail_in_one, scratch(2), 0, 3, alone=True)
    team.run(count_tasks, scratch(2), done, 2, alone=True)
    assert (done == 2).all()


def test_nobody_waits_for_a_worker_that_does_not_come():
    """And its jobs, which hold the memory of past calls, do not pile up."""
    team, done = Team(2), np.zeros(9, np.int64)
    worker = team._workers[0]
    jobs, worker.jobs = worker.jobs, SimpleQueue()
    for _ in range(20):
        team.run(count_tasks, scratch(2), done, 3)
    assert (done == 60).all()
    assert 1 <= worker.jobs.qsize() <= 4
    worker.jobs = jobs


def test_a_worker_that_comes_late_changes_nothing():
    """After its run, or while the team is many phases ahead in another run; and it is soon over."""
    team, old, done = Team(2), np.zeros(9, np.int64), np.zeros(9, np.int64)
    held = SimpleQueue()
    jobs, team._workers[0].jobs = team._workers[0].jobs, held
    team.run(count_tasks, scratch(2), old, 50)
    late = held.get()
    team.run(count_tasks, scratch(2), done, 50)
    state = team._sync[_STATE]
    _call(*late)
    assert team._sync[_STATE] == state
    run = threading.Thread(target=team.run, args=(count_tasks, scratch(2), done, 100_000))
    run.start()
    passed = 0
    while run.is_alive():
        _call(*late)
        passed += 1
    assert (old == 50).all()
    assert (done == 100_050).all()
    assert passed
    team._workers[0].jobs = jobs


def test_a_worker_that_joins_in_the_middle_of_a_run_works():
    """The caller is in its run; the worker walks through all phases that are over."""
    team, done = Team(2), np.zeros(9, np.int64)
    held = SimpleQueue()
    jobs, team._workers[0].jobs = team._workers[0].jobs, held
    team.run(count_tasks, scratch(2), done, 1)
    held.get()
    run = threading.Thread(target=team.run, args=(count_tasks, scratch(2), done, 300_000))
    run.start()
    job = held.get(timeout=60)
    time.sleep(2e-3)
    _call(*job)
    run.join()
    assert (done == 300_001).all()
    team._workers[0].jobs = jobs


@pytest.mark.parametrize("size", [2, 3, 8])
def test_delays_change_no_result(size, monkeypatch):
    """Random delays before, in and after tasks and before workers begin; runs of all kinds, of
    other data each time, with different numbers of threads."""
    rng = np.random.default_rng(size)
    naps = iter(rng.exponential(2e-4, 100_000).tolist())

    def call(function, member, *rest):
        if rng_of_calls.random() < 0.3:
            time.sleep(next(naps))
        _call(function, member, *rest)

    rng_of_calls = np.random.default_rng(1)
    monkeypatch.setattr(team_module, "_call", call)
    team = Team(size)
    monkeypatch.setattr(team._limit, "add", lambda *_: None)
    for _ in range(150):
        n, phases, delay = (int(rng.integers(1, high)) for high in (40, 30, 300))
        row = rng.integers(0, 1 << 20, n)
        x = np.zeros((phases + 1, n), np.int64)
        x[0] = row
        team._limit.threads = int(rng.integers(1, size + 1))
        team.run(mix, scratch(size), x, phases, delay, alone=bool(rng.random() < 0.2))
        result = x.copy()
        assert (result == mixed(row, phases)).all()
        assert team._sync[_STATE] & ((1 << _PHASE_SHIFT) - 1) == 0


def test_the_numbers_of_phases_begin_again_before_they_end():
    team, done = Team(2), np.zeros(9, np.int64)
    team._sync[_STATE] = (_MAX_FIRST_PHASE - 1) << _PHASE_SHIFT
    for _ in range(3):
        team.run(count_tasks, scratch(2), done, 3)
    assert (done == 9).all()
    assert 0 <= team._sync[_STATE] >> _PHASE_SHIFT <= 6


class InterruptedQueue:
    """A queue whose put raises KeyboardInterrupt after it has done its work."""

    def __init__(self, queue):
        self.queue = queue
        self.qsize = queue.qsize

    def put(self, job):
        self.queue.put(job)
        if job is not None:
            raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["a job is sent", "all is done"])
def test_a_team_works_again_after_an_interrupt(moment, monkeypatch):
    team, done = Team(3), np.zeros(4, np.int64)

    def call(function, member, *rest):
        _call(function, member, *rest)
        if member.rank == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "all is done":
            patch.setattr(team_module, "_call", call)
        else:
            worker = team._workers[0]
            patch.setattr(worker, "jobs", InterruptedQueue(worker.jobs))
        with pytest.raises(KeyboardInterrupt):
            team.run(count_tasks, scratch(3), np.zeros(4, np.int64), 2)
    team.run(count_tasks, scratch(3), done, 2)
    assert (done == 2).all()


def test_after_an_interrupt_no_worker_is_left_in_a_task(monkeypatch):
    """It would write to what the next run reads, also where that is run by the caller alone."""
    team, done = Team(2), np.zeros(1, np.int64)
    worker = team._workers[0]
    team.run(slow_task, scratch(2), np.zeros(1, np.int64), alone=True)

    class Queue(InterruptedQueue):
        def put(self, job):
            self.queue.put(job)
            end = time.monotonic() + 60
            while job is not None and not done[0]:
                assert time.monotonic() < end
            if job is not None:
                raise KeyboardInterrupt

    monkeypatch.setattr(worker, "jobs", Queue(worker.jobs))
    with pytest.raises(KeyboardInterrupt):
        team.run(slow_task, scratch(2), done)
    assert done[0] == 1  # the worker is in its task
    team.run(count_tasks, scratch(2), np.zeros(4, np.int64), 2, alone=True)
    assert done[0] == 2
    assert not worker.ended.locked()


COMPILER = """
import os, signal, sys, threading, time
import numpy as np
from minigpt.kernels.jit import entry
from minigpt.kernels.team import Team, barrier, next_task

def make(n):
    @entry
    def count(team, done):
        task = next_task(team)
        while task < done.size:
            done[task] += n
            task = next_task(team)
        barrier(team)
    return count

def works(team, n):
    done = np.zeros(5, np.int64)
    team.run(make(n), np.zeros((2, 1), np.float32), done)
    return (done == n).all()
"""

FORKS = """
def compile():
    team = Team(2)
    for n in range(100):
        assert works(team, n)
team = Team(2)
assert works(team, 7)
threading.Thread(target=compile, daemon=True).start()
for n in range(4):
    time.sleep(0.05 + 0.04 * n)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if works(team, 8) and works(Team(2), 9) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, n
print("done", flush=True)
os._exit(0)
"""

INTERRUPTS = """
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
rng = np.random.default_rng(0)
interrupts = 0
for n in range(60):
    delay = float(rng.choice([1e-4, 1e-3, 3e-2, 0.2]) * rng.random()) + 1e-6
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        team = Team(2)
        works(team, n)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupts += 1
    if n % 20 == 19:
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert works(team, n) and works(Team(2), n)
assert interrupts > 20, interrupts
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.slow
@pytest.mark.parametrize("program", [FORKS, INTERRUPTS], ids=["forks", "interrupts"])
def test_while_kernels_are_compiled(program, run_python, tmp_path):
    """Forked children compute, compile and end; interrupts leave a team that does, too."""
    file = tmp_path / "program.py"
    file.write_text(COMPILER + program, encoding="utf-8")
    done = run_python("-W", "ignore", str(file), PYTHONPATH=str(ROOT), timeout=240)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_team_works_in_exit_handlers():
    """Exit handlers run in reverse order, so this one runs after any that Team could register."""
    program = """
import atexit
atexit.register(lambda: print(len(model.generate([1], max_new_tokens=2)[0])))
from minigpt import GPTModel
model = GPTModel.from_pretrained("tests/golden/gelu-new", threads=2)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split()) == (0, [b"3"]), done.stderr


def test_concurrent_calls_run_one_after_the_other():
    team, done = Team(2), np.zeros(8, np.int64)
    calls = [
        threading.Thread(target=lambda: team.run(count_tasks, scratch(2), done, 200))
        for _ in range(4)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert (done == 800).all()


def test_workers_end_with_the_team():
    team = Team(4)
    workers = list(team._workers)
    assert [worker.ended.locked() for worker in workers] == [True] * 3
    del team
    assert all(worker.ended.acquire(timeout=10) for worker in workers)


def test_an_idle_team_uses_no_cpu_time():
    team, done = Team(3), np.zeros(8, np.int64)
    team.run(count_tasks, scratch(3), done, 10)
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_its_own_workers():
    team, done = Team(2), np.zeros(8, np.int64)
    team.run(count_tasks, scratch(2), done, 3)
    child = os.fork()
    if child == 0:
        team.run(count_tasks, scratch(2), done, 3)
        os._exit(0 if (done == 6).all() else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
