"""Matrices in flat memory: what kernels read activations from and write them to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit import jit
from .layout import LANES, row_stride
from .simd import load_first, store_first
from .team import barrier, next_task


class View(NamedTuple):
    """The matrix [M, N] with element (m, n) at data[m · ld + n].

    data  flat: float32, or bfloat16 as uint16
    ld    the leading dimension: elements from one row to the next, at least N
    """

    data: np.ndarray
    M: int
    N: int
    ld: int


@jit
def view(data, M, N):
    """The matrix [M, N] at the beginning of `data`, rows row_stride(N) apart."""
    return View(data, M, N, row_stride(N))


@jit
def rows_of(x, first, M):
    """Rows first … first + M − 1 of x."""
    return View(x.data[first * x.ld :], M, x.N, x.ld)


@jit
def columns_of(x, first, N):
    """Columns first … first + N − 1 of x."""
    return View(x.data[first:], x.M, N, x.ld)


@jit
def copy_rows(team, y, x):
    """y = x, both [M, N]; rounded or widened where only one of them is bfloat16."""
    m = next_task(team)
    while m < x.M:
        for n in range(0, x.N, LANES):
            lanes = min(LANES, x.N - n)
            store_first(load_first(x.data, m * x.ld + n, lanes), y.data, m * y.ld + n, lanes)
        m = next_task(team)
    barrier(team)


@jit
def clear_rows(team, y):
    """y = 0"""
    m = next_task(team)
    while m < y.M:
        y.data[m * y.ld : m * y.ld + y.N] = 0
        m = next_task(team)
    barrier(team)
