"""The mathematics of the kernels in plain NumPy, a few lines each: to read first, and to test by.

The functions take and return ordinary arrays, in whatever float type they are given.
"""

from __future__ import annotations

import math

import numpy as np

from .layout import GROUP, LANES, padded

_erf = np.vectorize(math.erf, otypes=[np.float64])


def embedding(ids, positions, wte, wpe, scale=1.0):
    """[M], [M], [V, C], [n_positions, C] → [M, C]"""
    return (wte[ids] + wpe[positions]) * scale


def layernorm(x, weight, bias, eps):
    """[M, C], [C], [C] → [M, C]"""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def panels(w, dtype):
    """[K, N] → the same in panels (layout.py), flat: float32, or the bits of bfloat16 in uint16"""
    K, N = w.shape
    whole = np.zeros((padded(K), padded(N, GROUP)), np.float32)
    whole[:K, :N] = w
    if dtype == np.float32:
        return whole.reshape(len(whole), -1, LANES).transpose(1, 0, 2).ravel()
    pairs = bfloat16(whole).reshape(len(whole) // 2, 2, -1, LANES)
    return pairs.transpose(2, 0, 3, 1).ravel()


def bfloat16(x):
    """float32 → the upper halves of its bits, rounded to the nearest, halves to even (no NaN)"""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def matmul(x, w, bias):
    """[M, K], [K, N], [N] → [M, N]"""
    return x @ w + bias


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
