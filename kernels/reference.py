"""The mathematics of the kernels in plain NumPy, a few lines each: to read first, and to test by.

The functions take and return ordinary arrays, in whatever float type they are given.
"""

from __future__ import annotations

import math

import numpy as np

from .layout import IGNORED, LANES, N_BLOCK, QUANT_BLOCK, bf16_to_f32, padded

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
    whole = np.zeros((padded(K), padded(N, N_BLOCK)), np.float32)
    whole[:K, :N] = w
    if dtype == np.float32:
        return whole.reshape(len(whole), -1, LANES).transpose(1, 0, 2).ravel()
    pairs = bfloat16(whole).reshape(len(whole) // 2, 2, -1, LANES)
    return pairs.transpose(2, 0, 3, 1).ravel()


def bfloat16(x):
    """float32 → the upper halves of its bits, rounded to the nearest, halves to even (no NaN)"""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def quantized(w, dtype):
    """[K, N] → whole numbers [K, N] and scales (in int4: scales, offsets), each [K / QUANT_BLOCK,
    N];
    "int8": the largest of a block and column is 127; "int4": least and greatest are 0 and 15"""
    K, N = w.shape
    blocks = np.zeros((padded(K, QUANT_BLOCK) // QUANT_BLOCK, QUANT_BLOCK, N), np.float32)
    blocks.reshape(-1, N)[:K] = w
    if dtype == "int8":
        least, most, offset = -127, 127, np.zeros((len(blocks), N), np.float32)
        scale = bf16_to_f32(bfloat16(np.abs(blocks).max(1) / np.float32(127)))
    else:
        least, most, offset = 0, 15, bf16_to_f32(bfloat16(blocks.min(1)))
        scale = bf16_to_f32(bfloat16((blocks.max(1) - blocks.min(1)) / np.float32(15)))
    q = (blocks - offset[:, None]) / np.where(scale == 0, 1, scale)[:, None]
    q = np.clip(np.rint(q), least, most).reshape(-1, N)[:K].astype(np.int64)
    return (q, scale) if dtype == "int8" else (q, scale, offset)


def codes(q, scale, offset=None):
    """What `quantized` returns → numbers and scales as layout.py tells, flat"""
    K, N = q.shape
    whole = np.zeros((padded(K, QUANT_BLOCK), padded(N, N_BLOCK)), np.int64)
    whole[:K, :N] = q
    parts = [scale] if offset is None else [scale, offset]
    wide = np.zeros((len(parts), len(whole) // QUANT_BLOCK, padded(N, N_BLOCK)), np.float32)
    wide[:, :, :N] = parts
    scales = wide.reshape(*wide.shape[:2], -1, LANES).transpose(2, 1, 0, 3)
    if offset is None:
        lines = whole.reshape(-1, 4, whole.shape[1] // LANES, LANES)
        return lines.transpose(2, 0, 3, 1).astype(np.int8).ravel(), bfloat16(scales).ravel()
    lines = whole.reshape(-1, 2, 4, whole.shape[1] // LANES, LANES)
    pairs = lines[:, 0] + 16 * lines[:, 1]
    return pairs.transpose(2, 0, 3, 1).astype(np.uint8).ravel(), bfloat16(scales).ravel()


def dequantize_panels(q, scale, offset=None):
    """What `quantized` returns → the weights [K, N] that they stand for"""
    rows = np.arange(len(q)) // QUANT_BLOCK
    return q * scale[rows] + (0 if offset is None else offset[rows])


def quantized_rows(x):
    """[M, K] → whole numbers [M, K] and what 1 of each is worth [M, K / QUANT_BLOCK]; the largest
    of a
    row's block is 127"""
    M, K = x.shape
    blocks = np.zeros((M, padded(K, QUANT_BLOCK) // QUANT_BLOCK, QUANT_BLOCK), np.float32)
    blocks.reshape(M, -1)[:, :K] = x
    span = np.abs(blocks).max(-1)
    per_unit = np.where(span > 0, np.float32(127) / np.where(span > 0, span, 1), 0)
    p = np.clip(np.rint(blocks * per_unit.astype(np.float32)[..., None]), -127, 127)
    return p.reshape(M, -1)[:, :K].astype(np.int64), span / np.float32(127)


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


# ---- backward: dx is the gradient of a loss by x, from the gradient dy by what x became --------


def embedding_backward(dx, ids, positions, V, n_positions, scale=1.0):
    """[M, C] → dwte [V, C], dwpe [n_positions, C]"""
    dwte, dwpe = (
        np.zeros((V, dx.shape[1]), dx.dtype),
        np.zeros((n_positions, dx.shape[1]), dx.dtype),
    )
    np.add.at(dwte, ids, dx * scale)
    np.add.at(dwpe, positions, dx * scale)
    return dwte, dwpe


def layernorm_backward(dy, x, weight, eps):
    """→ dx, dweight, dbias"""
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + eps)
    n = (x - x.mean(-1, keepdims=True)) * rstd
    dn = dy * weight
    dx = rstd * (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True))
    return dx, (dy * n).sum(0), dy.sum(0)


def matmul_backward(dy, x, w):
    """→ dx, dw, dbias"""
    return dy @ w.T, x.T @ dy, dy.sum(0)


def gelu_slope(x):
    """Φ(x) + x · φ(x)"""
    return 0.5 * (1 + _erf(x / math.sqrt(2))) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def gelu_tanh_slope(x):
    """The same where Φ is approximated by a tanh"""
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * math.sqrt(2 / math.pi) * (1 + 0.134145 * x**2)


def relu_slope(x):
    """1 where x > 0"""
    return (x > 0).astype(x.dtype)


def silu_slope(x):
    """σ(x) · (1 + x · (1 − σ(x)))"""
    s = 1 / (1 + np.exp(-x))
    return s * (1 + x * (1 - s))


def attention_backward(do, q, k, v, scale):
    """→ dq, dk, dv of as many queries as keys, [T, HS] each"""
    T = len(q)
    scores = np.where(np.tri(T, dtype=bool), scale * (q @ k.T), -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = do @ v.T
    ds = p * (dp - (do * (p @ v)).sum(-1, keepdims=True))
    return scale * (ds @ k), scale * (ds.T @ q), p.T @ do


def crossentropy(logits, targets):
    """[M, V], [M] → nats [M]; 0 where the target is IGNORED"""
    most = logits.max(-1)
    norms = most + np.log(np.exp(logits - most[:, None]).sum(-1))
    nats = norms - logits[np.arange(len(targets)), np.maximum(targets, 0)]
    return np.where(targets == IGNORED, 0, nats)


def crossentropy_backward(logits, targets):
    """→ dlogits of the sum of nats"""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    p[np.arange(len(targets)), np.maximum(targets, 0)] -= 1
    return np.where(targets[:, None] == IGNORED, 0, p)


def adamw(w, g, m, v, step, lr, beta_1, beta_2, eps, weight_decay):
    """One step, counted from 1 → w, m, v"""
    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * g**2
    change = (m / (1 - beta_1**step)) / (np.sqrt(v / (1 - beta_2**step)) + eps)
    return (1 - lr * weight_decay) * w - lr * change, m, v
