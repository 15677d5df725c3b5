"""A transformer block, compiled: forward for inference and training, and backward, its mirror.

    x += c_proj(attention(c_attn(ln_1(x))))
    x += c_proj(activation(c_fc(ln_2(x))))

where c_attn, c_fc and c_proj, of which each half has its own, are y = x · w + bias.

The tokens of all sequences are the rows of one matrix x [M, C]; only attention and the KV cache
know which sequence a row belongs to. A prompt, a batch of prompts of unequal length and one token
of each of several sequences are the same to the rest.

Two types decide, when Numba compiles, what inference and training do differently. The layers of
inference are PackedLinear, those of training PlainLinear (kernels/matmul.py). Activations that
backward reads are saved where BlockBuffers has a View for them, and not where it has None.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..config import GPTConfig
from ..kernels.activation import activation_backward
from ..kernels.attention import attention_backward, attention_forward
from ..kernels.gemm.quantized import QuantizedActivations, QuantizedMatrix
from ..kernels.jit import dispatch_on_types, expand, is_instance
from ..kernels.kv_cache import kv_cache_write
from ..kernels.layernorm import LayerNorm, layernorm_backward, layernorm_forward
from ..kernels.matmul import (
    ADD,
    SET,
    LinearWorkspace,
    PackedLinear,
    PlainLinear,
    linear,
    linear_activation,
    linear_backward,
    linear_backward_input,
    linear_backward_weights,
)
from ..kernels.view import View, copy_rows
from ..weights.table import layer_shapes


class Layer(NamedTuple):
    """The weights of a layer, or their gradients: its modules, in the order of layer_modules."""

    ln_1: LayerNorm
    attn_c_attn: PackedLinear | PlainLinear
    attn_c_proj: PackedLinear | PlainLinear
    ln_2: LayerNorm
    mlp_c_fc: PackedLinear | PlainLinear
    mlp_c_proj: PackedLinear | PlainLinear


class NonLayerWeights(NamedTuple):
    """The weights outside the layers, or their gradients.

    wte   in inference the packed weights [C, V]; in training float32 [V, C], flat
    wpe   [n_positions, C], flat; in inference perhaps bfloat16
    ln_f  LayerNorm
    head  like wte, and the same where the head is tied
    """

    wte: np.ndarray | QuantizedMatrix
    wpe: np.ndarray
    ln_f: LayerNorm
    head: np.ndarray | QuantizedMatrix


class TokenBatch(NamedTuple):
    """The tokens of one pass: M tokens, those of a sequence one after the other.

    ids           int64 [M]
    positions     int64 [M]: of each token in its sequence, from 0
    slots         int64 [M]: of each token's sequence in the KV cache
    query_blocks  int64 [n, 4], flat: slot, first row, rows, first position; see query_blocks
    """

    ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    query_blocks: np.ndarray


class BlockBuffers(NamedTuple):
    """The results of a block's steps for M tokens. Training keeps those marked * for backward.

    normed     View [M, C]: ln_1(x), then ln_2(x)
    qkv        View [M, 3C]: queries, keys and values *
    attn       View [M, C]: the output of attention *
    lse        float32 [M · NH]: log Σ e^score of each softmax *; empty in inference
    x_mid      View [M, C]: x after the attention half *; None in inference
    fc         View [M, H]: c_fc's output before the activation *; None in inference
    hidden     View [M, H]: the same after the activation
    partials   float32, for attention_forward
    workspace  for `linear`

    normed, qkv, attn, hidden, and in training fc, are bfloat16 where products read bfloat16
    activations, else float32.
    """

    normed: View
    qkv: View
    attn: View
    lse: np.ndarray
    x_mid: View | None
    fc: View | None
    hidden: View
    partials: np.ndarray
    workspace: QuantizedActivations | LinearWorkspace


class GradBuffers(NamedTuple):
    """The gradients that block_backward passes from line to line.

    dx        View [M, C], float32: ∂loss/∂x of the residual stream
    dnormed   View [M, C], float32: of normed, and of attn
    dqkv      View [M, 3C]
    dhidden   View [M, H]: of hidden, then of fc
    partials  float32, of layernorm_partials
    """

    dx: View
    dnormed: View
    dqkv: View
    dhidden: View
    partials: np.ndarray


def layer_modules(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """{module: shape of its weight}, such as "attn.c_attn": (C, 3C), in the order of the table in
    weights/table.py. Each has a `.weight` and a `.bias`."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in layer_shapes(config).items()
        if name.endswith(".weight")
    }


@expand
def block(team, x, layer, cache, heads, tokens, buffers, dims):
    """x += its attention half, then x += its MLP half, in place.

    x        View [M, C], float32: the residual stream
    layer    Layer: the weights
    cache    LayerCache, into which the keys and values of the tokens are written
    heads    Heads
    tokens   TokenBatch: the sequence and position of each row of x
    buffers  BlockBuffers, filled
    dims     Dims
    """
    b = buffers

    # x += c_proj(attention(c_attn(ln_1(x))))
    layernorm_forward(team, b.normed, x, layer.ln_1, dims.eps)
    linear(team, b.qkv, b.normed, layer.attn_c_attn, SET, b.workspace)
    kv_cache_write(team, cache, heads, b.qkv, tokens.slots, tokens.positions)
    attention_forward(team, b.attn, b.lse, b.qkv, cache, heads, tokens.query_blocks, b.partials)
    linear(team, x, b.attn, layer.attn_c_proj, ADD, b.workspace)
    save(team, b.x_mid, x)

    # x += c_proj(activation(c_fc(ln_2(x))))
    layernorm_forward(team, b.normed, x, layer.ln_2, dims.eps)
    linear_activation(
        team, b.hidden, b.fc, b.normed, layer.mlp_c_fc, dims.activation, b.workspace
    )  # fmt: skip
    linear(team, x, b.hidden, layer.mlp_c_proj, ADD, b.workspace)


@expand
def block_backward(team, x, layer, dlayer, heads, T, buffers, grads, dims, mode):
    """grads.dx from ∂loss/∂x after the block to ∂loss/∂x before it; adds to the gradients dlayer.

    x        View [M, C], float32: the block's input
    layer    Layer: the weights
    dlayer   Layer: their gradients
    heads    Heads
    T        the length of each of the M / T sequences
    buffers  BlockBuffers, as `block` filled them
    grads    GradBuffers
    dims     Dims
    mode     ADD; or SET, which overwrites the gradients of matrices

    Each line undoes the line of `block` beside it, from the last to the first. dx passes every
    `x +=` unchanged, and each half adds its own gradient to it. Layernorms and activations are
    computed again, as they are cheaper than the memory to save them: activations together with
    their derivatives, between the two parts of linear_backward.
    """
    b, g, eps = buffers, grads, dims.eps
    fc, x_mid, work = b.fc, b.x_mid, b.workspace

    # x += c_proj(activation(c_fc(ln_2(x))))
    linear_backward_input(team, g.dhidden, g.dx, layer.mlp_c_proj, work)
    activation_backward(team, g.dhidden, b.hidden, g.dhidden, fc, dims.activation)
    linear_backward_weights(team, dlayer.mlp_c_proj, g.dx, b.hidden, mode, work)
    layernorm_forward(team, b.normed, x_mid, layer.ln_2, eps)
    linear_backward(
        team, g.dnormed, dlayer.mlp_c_fc, g.dhidden, b.normed, layer.mlp_c_fc, mode, work
    )  # fmt: skip
    layernorm_backward(team, g.dx, dlayer.ln_2, g.dnormed, x_mid, layer.ln_2, g.partials, eps)

    # x += c_proj(attention(c_attn(ln_1(x))))
    linear_backward(
        team, g.dnormed, dlayer.attn_c_proj, g.dx, b.attn, layer.attn_c_proj, mode, work
    )  # fmt: skip
    attention_backward(
        team, g.dqkv, g.dnormed, b.qkv, b.attn, b.lse, heads, T, work.panels
    )  # fmt: skip
    layernorm_forward(team, b.normed, x, layer.ln_1, eps)
    linear_backward(
        team, g.dnormed, dlayer.attn_c_attn, g.dqkv, b.normed, layer.attn_c_attn, mode, work
    )  # fmt: skip
    layernorm_backward(team, g.dx, dlayer.ln_1, g.dnormed, x, layer.ln_1, g.partials, eps)


@dispatch_on_types
def save(team, copy, x):
    """copy = x, where `copy` is a View; nothing where it is None."""
    if is_instance(copy, View):
        return lambda team, copy, x: copy_rows(team, copy, x)
    return lambda team, copy, x: None
