"""Running one kernel from Python: a team of one thread, or more, and working memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import pytest

from minigpt.kernels.team import Team


@pytest.fixture(scope="session", params=[1, 3], ids=["1 thread", "3 threads"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """run(kernel, *arguments): the kernel with a team of 1 or of 3 threads before them."""
    team = Team(request.param)
    scratch = np.full((request.param, 1 << 17), np.nan, np.float32)
    compiled = cache(_as_entry)

    def run(kernel: Any, *arguments: Any) -> None:
        team.run(compiled(kernel), scratch, arguments)

    return run


def _as_entry(kernel: Any) -> Any:
    """A function that Python may call in every thread, for a kernel that compiled code calls."""

    @numba.njit(nogil=True)  # not `entry`: what tests compile is not kept
    def call(member, arguments):
        kernel(member, *arguments)

    return call


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def derivatives() -> Callable[..., np.ndarray]:
    """derivatives(f, x): ∂f/∂x of a number f(x) by central differences, x float64 of any shape."""

    def derivatives(
        f: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5
    ) -> np.ndarray:
        found = np.empty_like(x)
        for offset in np.ndindex(x.shape):
            moved = [x.copy(), x.copy()]
            moved[0][offset] += step
            moved[1][offset] -= step
            found[offset] = (f(moved[0]) - f(moved[1])) / (2 * step)
        return found

    return derivatives
