"""The mathematics of the kernels in plain NumPy, a few lines each: to read first, and to test by.

The functions take and return ordinary arrays, in whatever float type they are given.
"""

from __future__ import annotations

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def embedding(ids, positions, wte, wpe, scale=1.0):
    """[M], [M], [V, C], [n_positions, C] → [M, C]"""
    return (wte[ids] + wpe[positions]) * scale


def layernorm(x, weight, bias, eps):
    """[M, C], [C], [C] → [M, C]"""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def matmul(x, w, bias):
    """[M, K], [K, N], [N] → [M, N]"""
    return x @ w + bias


def matmul_transposed(x, w, scale=1.0):
    """[M, K], [N, K] → [M, N]"""
    return scale * (x @ w.T)


def gelu(x):
    """x · Φ(x)"""
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def gelu_tanh(x):
    """GELU with Φ approximated by a tanh"""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x):
    """max(x, 0)"""
    return np.maximum(x, 0)


def silu(x):
    """x · σ(x)"""
    return x / (1 + np.exp(-x))


def attention(q, k, v, scale):
    """[T, HS] queries, [S, HS] keys and values, S ≥ T, the last T of them the queries' → [T, HS]"""
    T, S = len(q), len(k)
    scores = scale * (q @ k.T)
    scores = np.where(np.arange(S) <= np.arange(S - T, S)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v
