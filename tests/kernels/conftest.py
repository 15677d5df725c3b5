"""Fixtures: run one kernel from Python, a random generator, numerical gradients, a fresh Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigpt.kernels.jit import entry, jit
from minigpt.kernels.simd import atomic_load, pause
from minigpt.kernels.team import _STATE, _TASK_MASK, Team, barrier, next_task

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(1, id="1 thread"),
        pytest.param(3, id="3 threads", marks=pytest.mark.threads),
    ],
)
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """run(kernel, *arguments): call a kernel in a team of 1 or 3 threads."""
    team = Team(request.param)
    team._limit.add = lambda *_: None  # all threads take part, however busy the machine is
    scratch = np.full((request.param, 1 << 17), np.nan, np.float32)

    def run(kernel: Any, *arguments: Any) -> None:
        team.run(_as_entry(kernel), scratch, arguments)

    return run


@jit
def meet(member):
    """A phase in which each thread takes one task and waits until all are taken."""
    next_task(member)
    while member.size > 1 and 0 < atomic_load(member.sync, _STATE) & _TASK_MASK < member.size:
        pause()
    barrier(member)


@cache  # both teams run the same machine code
def _as_entry(kernel: Any) -> Any:
    """An entry that calls a kernel which only compiled code can call, when all threads are there.

    A kernel on a small test would be over before the workers begin.
    """

    @entry  # its closure keeps it out of the cache
    def call(member, arguments):
        meet(member)
        kernel(member, *arguments)

    return call


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def derivatives() -> Callable[..., np.ndarray]:
    """derivatives(f, x): ∂f/∂x of a scalar f(x) by central differences; x is float64."""

    def derivatives(
        f: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5
    ) -> np.ndarray:
        result = np.empty_like(x)
        for index in np.ndindex(x.shape):
            above, below = x.copy(), x.copy()
            above[index] += step
            below[index] -= step
            result[index] = (f(above) - f(below)) / (2 * step)
        return result

    return derivatives


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_python(*arguments, **environment): a new Python process without a kernel cache."""

    def run_python(
        *arguments: str, timeout: float | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "MINIGPT_CACHE": "", **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    return run_python
