"""The formulas of a GPT in plain NumPy: each `*_forward` beside its `*_backward`.

Functions take and return ordinary arrays and compute in the float type of their arguments. Leading
axes are free: [..., C] is [M, C] or [B, T, C]. In a `*_backward`, dy is the gradient of the loss
with respect to the result of the `*_forward`; it returns the gradients with respect to the
arguments.

minigpt/reference_gpt.py puts these parts together into a GPT, and the tests compare the kernels
with them. Packing and quantization of operands follow at the end.
"""

from __future__ import annotations

import math

import numpy as np

from .layout import IGNORED, LANES, N_BLOCK, QUANT_BLOCK, bf16_to_f32, f32_to_bf16, padded

Array = np.ndarray

_erf = np.vectorize(math.erf, otypes=[np.float64])


def embedding_forward(
    ids: Array, positions: Array, wte: Array, wpe: Array, scale: float = 1.0
) -> Array:
    """ids [..., T], positions [T], wte [V, C], wpe [n_positions, C] → [..., T, C]"""
    return (wte[ids] + wpe[positions]) * scale


def embedding_backward(
    dy: Array, ids: Array, positions: Array, V: int, n_positions: int, scale: float = 1.0
) -> tuple[Array, Array]:
    """→ dwte [V, C], dwpe [n_positions, C]"""
    dwte = np.zeros((V, dy.shape[-1]), dy.dtype)
    dwpe = np.zeros((n_positions, dy.shape[-1]), dy.dtype)
    np.add.at(dwte, ids, dy * scale)
    np.add.at(dwpe, np.broadcast_to(positions, np.shape(ids)), dy * scale)
    return dwte, dwpe


def layernorm_forward(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """x [..., C], weight [C], bias [C] → [..., C]"""
    n, _ = _normalized(x, eps)
    return n * weight + bias


def layernorm_backward(
    dy: Array, x: Array, weight: Array, eps: float
) -> tuple[Array, Array, Array]:
    """→ dx [..., C], dweight [C], dbias [C]"""
    n, rstd = _normalized(x, eps)
    dn = dy * weight
    dx = rstd * (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True))
    return dx, _rows(dy * n).sum(0), _rows(dy).sum(0)


def _normalized(x: Array, eps: float) -> tuple[Array, Array]:
    """n = (x − mean) / std [..., C], and rstd = 1 / std [..., 1], with std = √(variance + eps)"""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    std = np.sqrt(variance + eps)
    return (x - mean) / std, 1 / std


def matmul_forward(x: Array, w: Array, bias: Array | float) -> Array:
    """x [..., K], w [K, N], bias [N] → [..., N]"""
    return x @ w + bias


def matmul_backward(dy: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
    """→ dx [..., K], dw [K, N], dbias [N]"""
    return dy @ w.T, _rows(x).T @ _rows(dy), _rows(dy).sum(0)


def softmax_forward(x: Array) -> Array:
    """p = e^x / Σ e^x over the last axis; subtracts the maximum first, so that e^x stays finite"""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_backward(dp: Array, p: Array) -> Array:
    """→ dx, from p = softmax_forward(x)"""
    return p * (dp - (dp * p).sum(-1, keepdims=True))


def attention_forward(q: Array, k: Array, v: Array, scale: float) -> Array:
    """q [..., T, HS]; k, v [..., S, HS], S ≥ T: query t is at position S − T + t → [..., T, HS]"""
    return _attention_weights(q, k, scale) @ v


def attention_backward(
    dy: Array, q: Array, k: Array, v: Array, scale: float
) -> tuple[Array, Array, Array]:
    """→ dq, dk, dv"""
    p = _attention_weights(q, k, scale)
    ds = softmax_backward(dy @ _transposed(v), p)
    return scale * (ds @ k), scale * (_transposed(ds) @ q), _transposed(p) @ dy


def _attention_weights(q: Array, k: Array, scale: float) -> Array:
    """softmax(scale · q kᵀ) under the causal mask, [..., T, S]"""
    T, S = q.shape[-2], k.shape[-2]
    causal = np.arange(S) <= np.arange(S - T, S)[:, None]
    return softmax_forward(np.where(causal, scale * (q @ _transposed(k)), -np.inf))


def gelu_forward(x: Array) -> Array:
    """x · Φ(x), exact, by erf"""
    return (0.5 * x * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype)


def gelu_backward(dy: Array, x: Array) -> Array:
    """dy · (Φ(x) + x · φ(x))"""
    Phi = 0.5 * (1 + _erf(x / math.sqrt(2)))
    phi = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return (dy * (Phi + x * phi)).astype(x.dtype)


def gelu_tanh_forward(x: Array) -> Array:
    """x · Φ(x), where a tanh approximates Φ"""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_tanh_backward(dy: Array, x: Array) -> Array:
    """dy · the derivative of gelu_tanh_forward"""
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    dt = (1 - t**2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return dy * (0.5 * (1 + t) + 0.5 * x * dt)


def relu_forward(x: Array) -> Array:
    """max(x, 0)"""
    return np.maximum(x, 0)


def relu_backward(dy: Array, x: Array) -> Array:
    """dy where x > 0, else 0"""
    return dy * (x > 0)


def silu_forward(x: Array) -> Array:
    """x · σ(x)"""
    return x / _reciprocal_sigmoid(x)


def silu_backward(dy: Array, x: Array) -> Array:
    """dy · σ(x) · (1 + x · (1 − σ(x)))"""
    s = 1 / _reciprocal_sigmoid(x)
    return dy * s * (1 + x * (1 - s))


def _reciprocal_sigmoid(x: Array) -> Array:
    """1 / σ(x) = 1 + e^−x; inf, without a warning, where that is too large for the float type"""
    with np.errstate(over="ignore"):
        return 1 + np.exp(-x)


def crossentropy_forward(logits: Array, targets: Array) -> Array:
    """logits [..., V], targets [...] → −log p[target] in nats [...]; 0 where a target is IGNORED"""
    maximum = logits.max(-1)
    lse = maximum + np.log(np.exp(logits - maximum[..., None]).sum(-1))
    target_logits = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return np.where(targets == IGNORED, 0, lse - target_logits)


def crossentropy_backward(logits: Array, targets: Array) -> Array:
    """→ dlogits [..., V] of the sum of the losses: p − 1 at the target, p elsewhere"""
    V = logits.shape[-1]
    dlogits = softmax_forward(logits) - (np.arange(V) == targets[..., None])
    return np.where(targets[..., None] == IGNORED, 0, dlogits)


def adamw(
    w: Array, g: Array, m: Array, v: Array, step: int, lr: float,
    beta_1: float, beta_2: float, eps: float, weight_decay: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """One step of AdamW on one tensor → the new w, m, v

    w, g  a weight tensor and its gradient, of the same shape
    m, v  the moments, running means of g and of g², of that shape; 0 before step 1
    step  counted from 1
    lr    the learning rate of this step

    beta_1, beta_2  the decay rates of m and v
    eps             added to √v
    weight_decay    decay per step, times lr; 0 for tensors that do not decay
    """
    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * g**2
    change = (m / (1 - beta_1**step)) / (np.sqrt(v / (1 - beta_2**step)) + eps)
    return (1 - lr * weight_decay) * w - lr * change, m, v


def _rows(x: Array) -> Array:
    """[..., C] → [M, C]"""
    return x.reshape(-1, x.shape[-1])


def _transposed(x: Array) -> Array:
    """[..., M, N] → [..., N, M]"""
    return x.swapaxes(-1, -2)


# ---- packing and quantization: layout.py in plain NumPy ------------------------------------------


def pack_panels(w: Array, dtype: type) -> Array:
    """[K, N] → its panels (layout.py), 1-D: np.float32, or the bits of bfloat16 in np.uint16"""
    K, N = w.shape
    matrix = np.zeros((padded(K), padded(N, N_BLOCK)), np.float32)
    matrix[:K, :N] = w
    if dtype == np.float32:
        return matrix.reshape(len(matrix), -1, LANES).transpose(1, 0, 2).ravel()
    pairs = f32_to_bf16(matrix).reshape(len(matrix) // 2, 2, -1, LANES)
    return pairs.transpose(2, 0, 3, 1).ravel()


def quantize(w: Array, dtype: str) -> tuple[Array, ...]:
    """[K, N] → integers [K, N] and scales (int4: scales, offsets), each [K / QUANT_BLOCK, N]

    "int8" maps the maximum |w| of a block to 127, "int4" its minimum and maximum to 0 and 15. This
    int4 is a baseline, against which tests compare the smaller error of gemm/quantize.py.
    """
    K, N = w.shape
    blocks = np.zeros((padded(K, QUANT_BLOCK) // QUANT_BLOCK, QUANT_BLOCK, N), np.float32)
    blocks.reshape(-1, N)[:K] = w
    if dtype == "int8":
        low, high, offset = -127, 127, np.zeros((len(blocks), N), np.float32)
        scale = bf16_to_f32(f32_to_bf16(np.abs(blocks).max(1) / np.float32(127)))
    else:
        low, high, offset = 0, 15, bf16_to_f32(f32_to_bf16(blocks.min(1)))
        scale = bf16_to_f32(f32_to_bf16((blocks.max(1) - blocks.min(1)) / np.float32(15)))
    exact = (blocks - offset[:, None]) / np.where(scale == 0, 1, scale)[:, None]
    q = np.clip(np.rint(exact), low, high).reshape(-1, N)[:K].astype(np.int64)
    return (q, scale) if dtype == "int8" else (q, scale, offset)


def pack_quantized(q: Array, scale: Array, offset: Array | None = None) -> tuple[Array, Array]:
    """The result of `quantize` → qweight and scales of layout.py, 1-D"""
    K, N = q.shape
    matrix = np.zeros((padded(K, QUANT_BLOCK), padded(N, N_BLOCK)), np.int64)
    matrix[:K, :N] = q
    parts = [scale] if offset is None else [scale, offset]
    wide = np.zeros((len(parts), len(matrix) // QUANT_BLOCK, padded(N, N_BLOCK)), np.float32)
    wide[:, :, :N] = parts
    scales = f32_to_bf16(wide.reshape(*wide.shape[:2], -1, LANES).transpose(2, 1, 0, 3)).ravel()
    if offset is None:
        lines = matrix.reshape(-1, 4, matrix.shape[1] // LANES, LANES)
        return lines.transpose(2, 0, 3, 1).astype(np.int8).ravel(), scales
    halves = matrix.reshape(-1, 2, 4, matrix.shape[1] // LANES, LANES)
    lines = halves[:, 0] + 16 * halves[:, 1]
    return lines.transpose(2, 0, 3, 1).astype(np.uint8).ravel(), scales


def dequantize(q: Array, scale: Array, offset: Array | None = None) -> Array:
    """The result of `quantize` → the weights [K, N] that it represents"""
    rows = np.arange(len(q)) // QUANT_BLOCK
    return q * scale[rows] + (0 if offset is None else offset[rows])


def quantize_activations(x: Array) -> tuple[Array, Array]:
    """[M, K] → integers [M, K] and scales [M, K / QUANT_BLOCK]; a block's maximum |x| is 127"""
    M, K = x.shape
    blocks = np.zeros((M, padded(K, QUANT_BLOCK) // QUANT_BLOCK, QUANT_BLOCK), np.float32)
    blocks.reshape(M, -1)[:, :K] = x
    absmax = np.abs(blocks).max(-1)
    inverse_scale = np.where(absmax > 0, np.float32(127) / np.where(absmax > 0, absmax, 1), 0)
    p = np.clip(np.rint(blocks * inverse_scale.astype(np.float32)[..., None]), -127, 127)
    return p.reshape(M, -1)[:, :K].astype(np.int64), absmax / np.float32(127)
