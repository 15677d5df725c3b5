"""A plain read of memory by a team: the limit of everything that reads each weight once.

Nothing is computed that could take longer than the reading. Four sums that do not wait for each
other keep the loads coming; a sum is what the compiler cannot leave out.
"""

from __future__ import annotations

import numpy as np

from .jit import entry, jit
from .layout import LANES
from .simd import load, reduce_sum, splat
from .team import barrier, next_task

CHUNK = 1 << 18  # float32 that one thread reads at a time: 1 MiB


@entry
def read_forward(team, sums, data, passes):
    """Read `data` from end to end, `passes` times: sums[i] = Σ data[i · CHUNK + 0 … CHUNK − 1].

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
    a = b = c = d = splat(np.float32(0))
    for i in range(start, start + CHUNK, 4 * LANES):
        a = a + load(data, i)
        b = b + load(data, i + LANES)
        c = c + load(data, i + 2 * LANES)
        d = d + load(data, i + 3 * LANES)
    return reduce_sum((a + b) + (c + d))
