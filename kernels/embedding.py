"""From token ids and positions to vectors, and the gradients of both tables."""

from __future__ import annotations

from .jit import jit
from .layout import LANES
from .matmul import weight_at
from .simd import get, load_first, put, splat, store_first
from .team import barrier, next_task


@jit
def packed_embedding_forward(team, x, ids, positions, wte, wpe, scale):
    """x[m, :] = (wte[ids[m], :] + wpe[positions[m], :]) · scale, with wte as the head reads it.

    x               View [M, C], float32
    ids, positions  int64 [M], within the tables
    wte             the packed or quantized weights [C, V]: wte transposed
    wpe             float32 or bfloat16 [n_positions · C]
    """
    C = x.N
    m = next_task(team)
    while m < x.M:
        for c in range(C):
            value = weight_at(wte, c, ids[m], C) + get(wpe, positions[m] * C + c)
            put(value * scale, x.data, m * x.ld + c)
        m = next_task(team)
    barrier(team)


@jit
def embedding_forward(team, x, ids, positions, wte, wpe, scale):
    """x[m, :] = (wte[ids[m], :] + wpe[positions[m], :]) · scale, with plain tables.

    x               View [M, C], float32
    ids, positions  int64 [M], within the tables
    wte, wpe        float32 [V · C], [n_positions · C]
    """
    C = x.N
    m = next_task(team)
    while m < x.M:
        for c in range(C):
            x.data[m * x.ld + c] = (wte[ids[m] * C + c] + wpe[positions[m] * C + c]) * scale
        m = next_task(team)
    barrier(team)


@jit
def embedding_backward(team, dwte, dwpe, dx, ids, positions, scale):
    """Add each row of dx to the rows of its token and its position:

        dwte[ids[m], :] += dx[m, :] · scale       dwpe[positions[m], :] += dx[m, :] · scale

    dwte, dwpe  float32 [V · C], [n_positions · C]
    dx          View [M, C], float32

    A task is LANES columns of all rows: one thread alone adds to them, in the order of m.
    """
    C = dx.N
    c = next_task(team) * LANES
    while c < C:
        lanes = min(LANES, C - c)
        for m in range(dx.M):
            d = load_first(dx.data, m * dx.ld + c, lanes) * splat(scale)
            token, position = ids[m] * C + c, positions[m] * C + c
            store_first(load_first(dwte, token, lanes) + d, dwte, token, lanes)
            store_first(load_first(dwpe, position, lanes) + d, dwpe, position, lanes)
        c = next_task(team) * LANES
    barrier(team)
