"""A plain read of memory by a team: the speed limit of a kernel that reads each weight once.

It adds up what it reads, so that the compiler cannot remove the loads, in four independent sums, so
that the additions take less time than the loads.
"""

from __future__ import annotations

import numpy as np

from .jit import entry, jit
from .layout import LANES
from .simd import load, reduce_sum, splat
from .team import barrier, next_task

CHUNK = 1 << 18  # float32 elements of a task: 1 MiB


@entry
def read_forward(team, sums, data, passes):
    """Read `data` `passes` times: sums[i] = Σ data[i · CHUNK : (i + 1) · CHUNK].

    sums  float32 [n]
    data  float32 [n · CHUNK]
    """
    for _ in range(passes):
        chunk = next_task(team)
        while chunk < sums.size:
            sums[chunk] = _chunk_sum(data, chunk * CHUNK)
            chunk = next_task(team)
        barrier(team)


@jit
def _chunk_sum(data, start):
    """Σ data[start : start + CHUNK]"""
    a = b = c = d = splat(np.float32(0))
    for i in range(start, start + CHUNK, 4 * LANES):
        a = a + load(data, i)
        b = b + load(data, i + LANES)
        c = c + load(data, i + 2 * LANES)
        d = d + load(data, i + 3 * LANES)
    return reduce_sum((a + b) + (c + d))
