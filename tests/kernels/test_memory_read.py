"""The plain read of memory reads every element once."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels.memory_read import CHUNK, read_forward

pytestmark = pytest.mark.kernel


def test_every_element_is_read_once(run, rng):
    """Sums of small integers are exact, so an element left out or read twice changes one."""
    data = rng.integers(1, 16, (5, CHUNK)).astype(np.float32)
    sums = np.full(5, np.nan, np.float32)
    run(read_forward, sums, data.ravel(), 2)
    np.testing.assert_array_equal(sums, data.sum(axis=1, dtype=np.int64))
