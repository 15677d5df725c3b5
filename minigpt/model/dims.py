"""The dimensions and constants of a model, as compiled functions take them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..config import GPTConfig
from ..kernels.activation import (
    GELU,
    GELU_ROUNDED,
    GELU_TANH,
    GELU_TANH_ROUNDED,
    RELU,
    SILU,
)

_ACTIVATIONS = {
    "gelu": GELU,
    "gelu_tanh": GELU_TANH,
    "relu": RELU,
    "silu": SILU,
}
# What takes their place where the next product rounds their results.
_ROUNDED = {GELU: GELU_ROUNDED, GELU_TANH: GELU_TANH_ROUNDED}


class Dims(NamedTuple):
    """The dimensions and constants of a model.

    L                number of layers
    C                n_embd, the width of the residual stream
    NH, HS           number of heads and head size, C = NH · HS
    H                n_inner, the width of the MLP
    V                vocabulary size
    n_positions      the longest sequence
    activation       one of kernels/activation.py's
    eps              of all layernorms
    embedding_scale  the factor of wte + wpe: 1, or muP's
    logit_scale      the factor of the logits: 1, or muP's
    """

    L: int
    C: int
    NH: int
    HS: int
    H: int
    V: int
    n_positions: int
    activation: int
    eps: np.float32
    embedding_scale: np.float32
    logit_scale: np.float32


def make_dims(config: GPTConfig, rounded: bool = False) -> Dims:
    """The Dims of a config.

    rounded  whether the MLP's second product rounds the activations, to bfloat16 or to integers, so
             that they need not be exact to float32
    """
    activation = _ACTIVATIONS[config.activation]
    if rounded:
        activation = _ROUNDED.get(activation, activation)
    return Dims(
        L=config.n_layer,
        C=config.n_embd,
        NH=config.n_head,
        HS=config.head_size,
        H=config.n_inner,
        V=config.vocab_size,
        n_positions=config.n_positions,
        activation=int(activation),
        eps=np.float32(config.layer_norm_epsilon),
        embedding_scale=np.float32(config.mup_embeddings_scale),
        logit_scale=np.float32(config.mup_output_alpha * config.mup_width_scale),
    )


def attention_scales(config: GPTConfig) -> np.ndarray:
    """float32 [L]: the factor of each layer's attention scores, 1/√HS in GPT-2.

    reference_gpt.py states the rule independently, on purpose: the tests compare the two.
    """
    scale = 1.0
    if config.scale_attn_weights:
        power = 1.0 if config.mup_scale_qk_dot_by_d else 0.5
        scale = config.head_size**-power
    layers = np.arange(config.n_layer)
    by_layer = 1 / (layers + 1) if config.scale_attn_by_inverse_layer_idx else 1 + 0 * layers
    return (scale * by_layer).astype(np.float32)
