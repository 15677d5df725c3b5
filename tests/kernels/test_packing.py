"""Weights to panels, against the twin: both types, both orders, all edges, in pieces."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.layout import LANES, padded, panels_size, unpacked
from minigpt.kernels.packing import pack

SHAPES = [(1, 1), (2, 16), (3, 17), (64, 40), (65, 130), (129, 64)]
TYPES = [np.float32, np.uint16]


def packed(run, stored, transposed, dtype, cut):
    """`stored` in two pieces, cut along its rows."""
    K, N = stored.shape[::-1] if transposed else stored.shape
    panels = np.zeros(panels_size(K, N), dtype)
    cut = min(cut, len(stored))
    for first, piece in ((0, stored[:cut]), (cut, stored[cut:])):
        rows, columns = piece.shape
        if transposed:
            sizes = 0, first, K, rows, padded(K), 1, columns
        else:
            sizes = first, 0, rows, N, padded(K), columns, 1
        run(pack, panels, piece.reshape(-1), *sizes)
    return panels


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("stored_as", TYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("K", "N"), SHAPES)
def test_pack_is_the_twin(run, rng, K, N, transposed, stored_as, dtype):
    w = rng.standard_normal((K, N)).astype(np.float32)
    stored = w
    if stored_as == np.uint16:
        stored = reference.bfloat16(w)
        w = (stored.astype(np.uint32) << 16).view(np.float32)
    stored = np.ascontiguousarray(stored.T) if transposed else stored
    panels = packed(run, stored, transposed, dtype, 2 * LANES)
    np.testing.assert_array_equal(panels, reference.panels(w, dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("K", "N"), SHAPES)
def test_unpacked_is_the_way_back(rng, K, N, dtype):
    w = rng.standard_normal((K, N)).astype(np.float32)
    expected = w if dtype == np.float32 else reference.bfloat16(w)
    np.testing.assert_array_equal(unpacked(reference.panels(w, dtype), K, N), expected)


def test_nan_stays_nan_in_bfloat16(run):
    odd = np.array([np.nan, np.inf, -np.inf, 3.4e38], np.float32)
    odd.view(np.uint32)[0] = 0x7FFFFFFF  # all ones: adding to round would carry into the sign
    panels = packed(run, odd.reshape(1, 4), False, np.uint16, 1)
    found = unpacked(panels, 1, 4)[0]
    assert found.tolist() == [0x7FC0, 0x7F80, 0xFF80, 0x7F80]
