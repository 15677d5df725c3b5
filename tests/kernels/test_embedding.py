"""Rows out of tables."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.embedding import embedding_forward, gather_forward


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_embedding_is_numpys(run, rng, dtype):
    V, C, ld = 70, 5, 8
    wte, wpe = (rng.standard_normal((n, C)).astype(np.float32) for n in (V, 11))
    ids, positions = np.array([69, 0, 17, 17]), np.array([0, 1, 2, 10])
    x = np.full((4, ld), np.nan, np.float32)
    held = reference.panels(wte.T, dtype)
    scale = np.float32(0.25)
    run(embedding_forward, x.reshape(-1), ld, ids, positions, held, wpe.ravel(), 4, C, scale)
    if dtype == np.uint16:
        wte = (reference.bfloat16(wte).astype(np.uint32) << 16).view(np.float32)
    truth = reference.embedding(ids, positions, wte, wpe, scale)
    np.testing.assert_array_equal(x[:, :C], truth)
    assert np.isnan(x[:, C:]).all()


def test_gather_takes_the_rows_in_their_order(run, rng):
    x = rng.standard_normal((6, 4)).astype(np.float32)
    rows = np.array([5, 0, 5])
    y = np.full((3, 4), np.nan, np.float32)
    run(gather_forward, y.reshape(-1), x.ravel(), 4, rows, 3, 3)
    np.testing.assert_array_equal(y[:, :3], x[rows, :3])
    assert np.isnan(y[:, 3]).all()
