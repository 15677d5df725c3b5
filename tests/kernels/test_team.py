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
from minigpt.kernels.jit import entry
from minigpt.kernels.simd import atomic_load, pause
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
            raise ValueError("expected error")
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
    with pytest.raises(ValueError, match="expected error"):
        team.run(fail_in_one, scratch(3), rank, 3)
    done = np.zeros(4, np.int64)
    for alone in (True, False):
        team.run(count_tasks, scratch(3), done, 2, alone=alone)
    assert (done == 4).all()


def test_an_exception_of_a_thread_that_runs_alone():
    team, done = Team(2), np.zeros(4, np.int64)
    with pytest.raises(ValueError, match="expected error"):
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
