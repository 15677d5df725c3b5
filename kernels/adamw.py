"""AdamW (Loshchilov & Hutter 2019), and what it needs of all gradients: their norm, and zeros."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .jit import entry
from .layout import LANES
from .simd import fma, load_first, reduce_sum, splat, store_first, vsqrt
from .team import barrier, next_task

BLOCK_SIZE = 1 << 14  # elements of a task; sum_squares has one sum for each


class AdamWFactors(NamedTuple):
    """The factors of one step, float32, each rounded once from its exact value.

    clip                     the factor of the gradients that limits their norm, at most 1
    lr, beta_1, beta_2, eps  as in `adamw`
    one_minus_beta_i         1 − βᵢ
    correction_i             1 − βᵢᵗ at step t: moments begin at zero, and this corrects their bias
    decay                    1 − lr · weight_decay
    """

    clip: np.float32
    lr: np.float32
    beta_1: np.float32
    one_minus_beta_1: np.float32
    correction_1: np.float32
    beta_2: np.float32
    one_minus_beta_2: np.float32
    correction_2: np.float32
    eps: np.float32
    decay: np.float32


@entry
def zero(team, g):
    """g = 0, float32, flat."""
    task = next_task(team)
    while task * BLOCK_SIZE < g.size:
        end = min(g.size, (task + 1) * BLOCK_SIZE)
        for i in range(task * BLOCK_SIZE, end, LANES):
            store_first(splat(np.float32(0)), g, i, min(LANES, end - i))
        task = next_task(team)
    barrier(team)


@entry
def sum_squares(team, sums, g):
    """sums[i] = Σ g² over elements i · BLOCK_SIZE … of g, BLOCK_SIZE of them; float32, flat."""
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
def adamw(team, w, g, m, v, factors):
    """One step for the weights w, with gradients g and moments m and v, float32, flat:

        g ← clip · g
        m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
        w ← decay · w − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps)

    factors  AdamWFactors; g itself does not change
    """
    f = factors
    task = next_task(team)
    while task * BLOCK_SIZE < w.size:
        end = min(w.size, (task + 1) * BLOCK_SIZE)
        for i in range(task * BLOCK_SIZE, end, LANES):
            lanes = min(LANES, end - i)
            gi = load_first(g, i, lanes) * splat(f.clip)
            mi = fma(load_first(m, i, lanes), splat(f.beta_1), gi * splat(f.one_minus_beta_1))
            vi = fma(load_first(v, i, lanes), splat(f.beta_2), gi * gi * splat(f.one_minus_beta_2))
            root = vsqrt(vi / splat(f.correction_2)) + splat(f.eps)
            change = mi / splat(f.correction_1) / root
            store_first(mi, m, i, lanes)
            store_first(vi, v, i, lanes)
            wi = load_first(w, i, lanes) * splat(f.decay)
            store_first(fma(splat(-f.lr), change, wi), w, i, lanes)
        task = next_task(team)
    barrier(team)
