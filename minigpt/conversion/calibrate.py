"""Importance of the rows of each matrix, measured on a text: int4 quantization is fitted to it.

reference_gpt.py computes the activations of the text, one layer after the other: only one layer's
parameters are in memory. The importance of row k of a matrix is the mean square of input k of its
linear layer, because the error of the output grows with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..checkpoint import Checkpoint
from ..config import GPTConfig
from ..errors import InputError
from ..kernels.layout import bf16_to_f32
from ..kernels.reference import embedding_forward, layernorm_forward
from ..reference_gpt import block_forward
from ..weights.checks import checked_names
from ..weights.loading import pieces
from ..weights.table import HEAD, layer_shapes

SEQUENCE = 512  # tokens that are read as one
LARGEST = 4096  # tokens that are read in all: more change little
# Of the mean importance of a matrix, what a row has at least: an error in it is still an error.
_LEAST = 1e-3


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

    if config.activation_function == "gelu":
        # The tanh formula is faster and near enough: only mean squares are needed.
        config = replace(config, activation_function="gelu_new")
    T = min(SEQUENCE, config.n_positions, len(ids))
    B = min(LARGEST, len(ids)) // T
    batch = np.array(ids[: B * T]).reshape(B, T)  # [B, T]
    wte, wpe, scale = tensor("wte.weight"), tensor("wpe.weight"), config.mup_embeddings_scale
    x = embedding_forward(batch, np.arange(T), wte, wpe, scale)  # [B, T, C]
    del wte, wpe
    squares: dict[str, np.ndarray] = {}  # {matrix: Σ input², float64 [K]}

    def add_squares(name: str, inputs: np.ndarray) -> None:
        total = np.square(inputs, dtype=np.float64).sum(axis=(0, 1))  # [B, T, K] → [K]
        squares[f"{name}.weight"] = squares.get(f"{name}.weight", 0) + total

    for n in range(config.n_layer):
        layer = {f"h.{n}.{name}": tensor(f"h.{n}.{name}") for name in layer_shapes(config)}
        for b in range(B):  # one sequence at a time: the activations of all take too much memory
            x[b : b + 1] = block_forward(x[b : b + 1], layer, config, n, add_squares)
        if progress:
            progress(n + 1, config.n_layer)
    weight, bias = tensor("ln_f.weight"), tensor("ln_f.bias")
    add_squares("lm_head", layernorm_forward(x, weight, bias, config.layer_norm_epsilon))
    squares["wte.weight"] = squares[HEAD]
    return {name: _importance(total / (B * T)) for name, total in squares.items()}


def _importance(mean_square: np.ndarray) -> np.ndarray:
    """float32; at least a part of its own mean."""
    floor = _LEAST * mean_square.mean() + 1e-30
    return np.maximum(mean_square, floor).astype(np.float32)


def _as_float(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """A tensor as float32."""
    if len(checkpoint.tensors[name].shape) == 1:
        parts = [checkpoint.read(name)]
    else:
        parts = [piece for _, piece in pieces(checkpoint, name)]
    wide = [bf16_to_f32(p) if p.dtype == np.uint16 else p.astype(np.float32) for p in parts]
    checkpoint.release()
    return np.concatenate(wide)
