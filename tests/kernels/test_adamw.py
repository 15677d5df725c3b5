"""AdamW against reference.py, at sizes around the border of a task."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.adamw import BLOCK_SIZE, AdamWFactors, adamw, sum_squares
from minigpt.kernels.team import Team

pytestmark = pytest.mark.kernel

SETTINGS = {"lr": 0.01, "beta_1": 0.9, "beta_2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


@pytest.fixture(scope="module", params=[1, 3])
def team(request):
    return Team(request.param)


def factors(step, clip=1.0):
    n = SETTINGS
    return AdamWFactors(
        *(
            np.float32(x)
            for x in (
                clip, n["lr"], n["beta_1"], 1 - n["beta_1"], 1 - n["beta_1"] ** step,
                n["beta_2"], 1 - n["beta_2"], 1 - n["beta_2"] ** step, n["eps"],
                1 - n["lr"] * n["weight_decay"],
            )
        )
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 17, BLOCK_SIZE, 2 * BLOCK_SIZE + 5])
def test_three_steps_are_reference(team, rng, size):
    w = rng.standard_normal(size).astype(np.float32)
    m, v, scratch = np.zeros_like(w), np.zeros_like(w), np.empty((team.size, 0), np.float32)
    expected = [w.astype(np.float64), 0, 0]
    for step in (1, 2, 3):
        g = rng.standard_normal(size).astype(np.float32)
        g64 = 0.5 * g.astype(np.float64)
        expected = reference.adamw(expected[0], g64, *expected[1:], step, **SETTINGS)
        team.run(adamw, scratch, w, g, m, v, factors(step, clip=0.5))
    for result, array in zip((w, m, v), expected, strict=True):
        np.testing.assert_allclose(result, array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 17, 2 * BLOCK_SIZE + 5])
def test_sum_squares_has_one_sum_per_block(team, rng, size):
    g = rng.standard_normal(size).astype(np.float32)
    sums = np.full(-(-size // BLOCK_SIZE), np.nan, np.float32)
    team.run(sum_squares, np.empty((team.size, 0), np.float32), sums, g)
    blocks = [g[i : i + BLOCK_SIZE].astype(np.float64) for i in range(0, size, BLOCK_SIZE)]
    np.testing.assert_allclose(sums, [(block**2).sum() for block in blocks], rtol=1e-5)
