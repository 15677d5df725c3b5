"""From ids and positions to vectors, and the gradients back."""

from __future__ import annotations

from .jit import jit
from .layout import LANES
from .matmul import weight
from .simd import get, load_first, put, splat, store_first
from .team import barrier, next_task


@jit
def embedding_forward(team, x, ldx, ids, positions, wte, wpe, M, C, scale):
    """x[m, :] = (wte[ids[m], :] + wpe[positions[m], :]) · scale

    x               float32 [M, C], rows `ldx` apart
    ids, positions  int64 [M], inside the tables
    wte             wteᵀ [C, V], as the head multiplies with it
    wpe             [n_positions · C]
    """
    m = next_task(team)
    while m < M:
        for c in range(C):
            put(
                (weight(wte, c, ids[m], C) + get(wpe, positions[m] * C + c)) * scale, x, m * ldx + c
            )
        m = next_task(team)
    barrier(team)


@jit
def rows_forward(team, x, ldx, ids, positions, wte, wpe, M, C, scale):
    """embedding_forward from tables as they are trained: wte, wpe float32, flat [V, C], [.., C]."""
    m = next_task(team)
    while m < M:
        for c in range(C):
            x[m * ldx + c] = (wte[ids[m] * C + c] + wpe[positions[m] * C + c]) * scale
        m = next_task(team)
    barrier(team)


@jit
def rows_backward(team, dwte, dwpe, dx, ldx, ids, positions, M, C, scale):
    """What is to be added to the tables: each row of dx to that of its token and of its position.

        dwte[ids[m], :] += dx[m, :] · scale       dwpe[positions[m], :] += dx[m, :] · scale

    A task is some columns of all rows: nobody else adds to them, and each sum has its order.
    """
    c = next_task(team) * LANES
    while c < C:
        lanes = min(LANES, C - c)
        for m in range(M):
            d = load_first(dx, m * ldx + c, lanes) * splat(scale)
            token, position = ids[m] * C + c, positions[m] * C + c
            store_first(load_first(dwte, token, lanes) + d, dwte, token, lanes)
            store_first(load_first(dwpe, position, lanes) + d, dwpe, position, lanes)
        c = next_task(team) * LANES
    barrier(team)


@jit
def gather_forward(team, y, x, ld, rows, N, C):
    """y[n, :] = x[rows[n], :]

    y, x  float32 [N, C], [M, C], rows `ld` apart
    rows  int64 [N], each < M
    """
    n = next_task(team)
    while n < N:
        for c in range(C):
            y[n * ld + c] = x[rows[n] * ld + c]
        n = next_task(team)
    barrier(team)
