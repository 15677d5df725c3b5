"""From ids and positions to vectors."""

from __future__ import annotations

from .jit import jit
from .matmul import weight
from .simd import get, put
from .team import barrier, claim


@jit
def embedding_forward(team, x, ldx, ids, positions, wte, wpe, M, C, scale):
    """x[m, :] = (wte[ids[m], :] + wpe[positions[m], :]) · scale

    x               float32 [M, C], rows `ldx` apart
    ids, positions  int64 [M], inside the tables
    wte             wteᵀ [C, V], as the head multiplies with it
    wpe             [n_positions · C]
    """
    m = claim(team)
    while m < M:
        for c in range(C):
            put(
                (weight(wte, c, ids[m], C) + get(wpe, positions[m] * C + c)) * scale, x, m * ldx + c
            )
        m = claim(team)
    barrier(team)


@jit
def gather_forward(team, y, x, ld, rows, N, C):
    """y[n, :] = x[rows[n], :]

    y, x  float32 [N, C], [M, C], rows `ld` apart
    rows  int64 [N], each < M
    """
    n = claim(team)
    while n < N:
        for c in range(C):
            y[n * ld + c] = x[rows[n] * ld + c]
        n = claim(team)
    barrier(team)
