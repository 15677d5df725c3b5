"""AdamW (Loshchilov & Hutter 2019), the norm of gradients that clipping needs, and their end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit import entry
from .layout import LANES
from .simd import fma, load_first, reduce_sum, splat, store_first, vsqrt
from .team import barrier, next_task

BLOCK_SIZE = 1 << 14  # elements of a task; their squares are summed together


class AdamWStep(NamedTuple):
    """The numbers of one step, float32, each rounded once from the exact one.

    clip            what the gradients are multiplied with, so that their norm is not too large
    lr, eps         as in the formula
    beta_i, rest_i  βᵢ and 1 − βᵢ
    bias_i          1 − βᵢ ^ step: what the moments, which began with zero, still lack
    keep            1 − lr · weight decay
    """

    clip: np.float32
    lr: np.float32
    beta_1: np.float32
    rest_1: np.float32
    bias_1: np.float32
    beta_2: np.float32
    rest_2: np.float32
    bias_2: np.float32
    eps: np.float32
    keep: np.float32


@entry
def clear(team, g):
    """g = 0, flat float32."""
    task = next_task(team)
    while task * BLOCK_SIZE < g.size:
        end = min(g.size, (task + 1) * BLOCK_SIZE)
        for i in range(task * BLOCK_SIZE, end, LANES):
            store_first(splat(np.float32(0)), g, i, min(LANES, end - i))
        task = next_task(team)
    barrier(team)


@entry
def sum_squares(team, sums, g):
    """sums[i] = Σ g² over the i-th BLOCK_SIZE elements of g, flat float32."""
    task = next_task(team)
    while task * BLOCK_SIZE < g.size:
        total = splat(np.float32(0))
        end = min(g.size, (task + 1) * BLOCK_SIZE)
        for i in range(task * BLOCK_SIZE, end, LANES):
            x = load_first(g, i, min(LANES, end - i))
            total = fma(x, x, total)
        sums[task] = reduce_sum(total)
        task = next_task(team)
    barrier(team)


@entry
def adamw(team, w, g, m, v, step):
    """One step for the weights w, flat float32, as their gradients g, moments m and v:

        g ← clip · g
        m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
        w ← keep · w − lr · (m / bias_1) / (√(v / bias_2) + eps)

    step  an AdamWStep
    """
    task = next_task(team)
    while task * BLOCK_SIZE < w.size:
        end = min(w.size, (task + 1) * BLOCK_SIZE)
        for i in range(task * BLOCK_SIZE, end, LANES):
            lanes = min(LANES, end - i)
            gi = load_first(g, i, lanes) * splat(step.clip)
            mi = fma(load_first(m, i, lanes), splat(step.beta_1), gi * splat(step.rest_1))
            vi = fma(load_first(v, i, lanes), splat(step.beta_2), gi * gi * splat(step.rest_2))
            root = vsqrt(vi / splat(step.bias_2)) + splat(step.eps)
            change = mi / splat(step.bias_1) / root
            store_first(mi, m, i, lanes)
            store_first(vi, v, i, lanes)
            wi = load_first(w, i, lanes) * splat(step.keep)
            store_first(fma(splat(-step.lr), change, wi), w, i, lanes)
        task = next_task(team)
    barrier(team)
