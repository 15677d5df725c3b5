"""Rows out of tables."""

from __future__ import annotations

import numpy as np

from minigpt.kernels import reference
from minigpt.kernels.embedding import embedding_forward, gather_forward


def test_embedding_is_numpys(run, rng):
    wte, wpe = rng.standard_normal((2, 11, 5)).astype(np.float32)
    ids, positions = np.array([10, 0, 3, 3]), np.array([0, 1, 2, 10])
    x = np.full(4 * 5, np.nan, np.float32)
    run(embedding_forward, x, ids, positions, wte.ravel(), wpe.ravel(), 4, 5, np.float32(0.25))
    truth = reference.embedding(ids, positions, wte, wpe, np.float32(0.25))
    np.testing.assert_array_equal(x.reshape(4, 5), truth)


def test_gather_takes_the_rows_in_their_order(run, rng):
    x = rng.standard_normal((6, 3)).astype(np.float32)
    rows = np.array([5, 0, 5])
    y = np.full(3 * 3, np.nan, np.float32)
    run(gather_forward, y, x.ravel(), rows, 3, 3)
    np.testing.assert_array_equal(y.reshape(3, 3), x[rows])
