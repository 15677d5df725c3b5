"""Teams: every task runs once, exceptions reach the caller, nothing hangs, forks work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from minigpt.kernels.jit import entry
from minigpt.kernels.team import Team, barrier, next_task

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
    for _ in range(phases):
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
    assert (done == 1000).all()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_an_exception_in_one_thread_reaches_the_caller(rank):
    team = Team(3)
    with pytest.raises(ValueError, match="expected error"):
        team.run(fail_in_one, scratch(3), rank, 3)
    done = np.zeros(4, np.int64)
    team.run(count_tasks, scratch(3), done, 2)
    assert (done == 2).all()


class InterruptedQueue:
    """A queue whose get and put raise KeyboardInterrupt after they have done their work."""

    def __init__(self, queue):
        self.queue = queue

    def get(self):
        self.queue.get()
        raise KeyboardInterrupt

    def put(self, job):
        self.queue.put(job)
        raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["job sent", "result read"])
def test_a_team_works_again_after_an_interrupt(moment):
    team, done = Team(3), np.zeros(4, np.int64)
    jobs, results = team._jobs[0], team._done
    if moment == "job sent":
        team._jobs[0] = InterruptedQueue(jobs)
    else:
        team._done = InterruptedQueue(results)
    with pytest.raises(KeyboardInterrupt):
        team.run(count_tasks, scratch(3), np.zeros(4, np.int64), 2)
    team._jobs[0], team._done = jobs, results
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
    others = set(threading.enumerate())
    team = Team(4)
    started = set(threading.enumerate()) - others
    assert len(started) == 3
    del team
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


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
