"""What the rows of each matrix are multiplied with, in real use: what int4 is fitted to.

A text is read through the model in plain NumPy, all of it through one layer after the other, so
that never more than a layer is in memory. The importance of row k of a matrix is the mean square
of what it is multiplied with: an error in that row then counts as much as it changes the product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint
from ..config import GPTConfig
from ..errors import InputError
from ..kernels import reference
from ..kernels.layout import bf16_to_f32
from ..model.dims import attention_scales
from ..weights.checks import checked_names
from ..weights.loading import pieces
from ..weights.table import HEAD, layer_shapes

SEQUENCE = 512  # tokens that are read as one
LARGEST = 4096  # tokens that are read in all: more change little
# Of the mean importance of a matrix, what a row has at least: an error in it is still an error.
_LEAST = 1e-3

# Only mean squares are asked for, for which the tanh formula is near enough to the exact one.
_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": reference.gelu_tanh,
    "gelu_new": reference.gelu_tanh,
    "gelu_pytorch_tanh": reference.gelu_tanh,
    "gelu_fast": reference.gelu_tanh,
    "relu": reference.relu,
    "silu": reference.silu,
}


def importance(
    checkpoint: Checkpoint,
    config: GPTConfig,
    ids: list[int],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """{name: float32 [K]}: of each matrix that is multiplied with, the importance of its rows.

    ids       tokens of a text like those that the model will meet; the first LARGEST are taken
    progress  is told how many of how many layers are done

    Raises InputError for no tokens at all, or one that is none of the model's.
    """
    if not ids or not 0 <= min(ids) <= max(ids) < config.vocab_size:
        raise InputError("the text to calibrate with: has no tokens, or some that the model lacks")
    _, stored = checked_names(checkpoint, config)

    def tensor(name: str) -> np.ndarray:
        return _as_float(checkpoint, stored[name])

    T = min(SEQUENCE, config.n_positions, len(ids))
    count = min(LARGEST, len(ids)) // T
    rows = np.array(ids[: count * T]).reshape(count, T)
    x = (tensor("wte.weight")[rows] + tensor("wpe.weight")[:T]) * config.mup_embeddings_scale
    found: dict[str, np.ndarray] = {}
    for n, scale in enumerate(attention_scales(config)):
        layer = {name: tensor(f"h.{n}.{name}") for name in layer_shapes(config)}
        x, factors = _layer(x, layer, config, float(scale))
        found |= {f"h.{n}.{name}": _mean_square(factor) for name, factor in factors.items()}
        if progress:
            progress(n + 1, config.n_layer)
    last = reference.layernorm(
        x, tensor("ln_f.weight"), tensor("ln_f.bias"), config.layer_norm_epsilon
    )
    found["wte.weight"] = found[HEAD] = _mean_square(last)
    return found


def _layer(
    x: np.ndarray, layer: dict[str, np.ndarray], config: GPTConfig, scale: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """x [B, T, C] after a layer, and {matrix: what it is multiplied with, [B, T, K]}."""
    factors = {}

    def normed(name: str) -> np.ndarray:
        weight, bias = layer[f"{name}.weight"], layer[f"{name}.bias"]
        return reference.layernorm(x, weight, bias, config.layer_norm_epsilon)

    def product(name: str, factor: np.ndarray) -> np.ndarray:
        factors[f"{name}.weight"] = factor
        return reference.matmul(factor, layer[f"{name}.weight"], layer[f"{name}.bias"])

    qkv = product("attn.c_attn", normed("ln_1"))
    x = x + product("attn.c_proj", _attention(qkv, config.n_head, scale))
    hidden = _ACTIVATIONS[config.activation_function](product("mlp.c_fc", normed("ln_2")))
    return x + product("mlp.c_proj", hidden), factors


def _attention(qkv: np.ndarray, NH: int, scale: float) -> np.ndarray:
    """[B, T, 3C] → [B, T, C]"""
    B, T, C3 = qkv.shape
    q, k, v = qkv.reshape(B, T, 3, NH, -1).transpose(2, 0, 3, 1, 4)
    out = np.empty_like(q)
    for b in range(B):
        for h in range(NH):
            out[b, h] = reference.attention(q[b, h], k[b, h], v[b, h], scale)
    return out.transpose(0, 2, 1, 3).reshape(B, T, C3 // 3)


def _mean_square(factor: np.ndarray) -> np.ndarray:
    """Over all but the last axis, float32; not less than a part of its own mean."""
    squares = np.square(factor, dtype=np.float64).mean(axis=tuple(range(factor.ndim - 1)))
    return np.maximum(squares, _LEAST * squares.mean() + 1e-30).astype(np.float32)


def _as_float(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """A tensor as float32."""
    if len(checkpoint.tensors[name].shape) == 1:
        parts = [checkpoint.read(name)]
    else:
        parts = [piece for _, piece in pieces(checkpoint, name)]
    wide = [bf16_to_f32(p) if p.dtype == np.uint16 else p.astype(np.float32) for p in parts]
    checkpoint.release()
    return np.concatenate(wide)
