"""From ids and positions to vectors."""

from __future__ import annotations

from .jit import jit
from .simd import widen
from .team import barrier, claim


@jit
def embedding_forward(team, x, ids, positions, wte, wpe, M, C, scale):
    """x[m, :] = (wte[ids[m], :] + wpe[positions[m], :]) · scale

    x               float32 [M · C]
    ids, positions  int64 [M], inside the tables
    wte, wpe        [V · C], [n_positions · C]
    """
    m = claim(team)
    while m < M:
        token, position = ids[m] * C, positions[m] * C
        for c in range(C):
            x[m * C + c] = (widen(wte[token + c]) + widen(wpe[position + c])) * scale
        m = claim(team)
    barrier(team)


@jit
def gather_forward(team, y, x, rows, N, C):
    """y[n, :] = x[rows[n], :]

    y, x  float32 [N · C], [M · C]
    rows  int64 [N], each < M
    """
    n = claim(team)
    while n < N:
        for c in range(C):
            y[n * C + c] = x[rows[n] * C + c]
        n = claim(team)
    barrier(team)
