"""The compiled passes of training: embedding, layers and head, each forward beside backward.

    x[0] = (wte[ids] + wpe[positions]) · scale
    for each layer: x[n + 1] = x[n] after block.py's `block`
    loss = Σ cross-entropy(head · ln_f(x[L]), targets)

Training processes whole sequences of one length T, the rows of one matrix, M = B · T. It saves the
results that are expensive to compute: x before and after the attention half, queries, keys and
values, the output of attention, and c_fc's output. Backward computes layernorms, activations and
the probabilities of attention again (block.py).

Weights and gradients are plain float32 arrays in the shapes of the checkpoint. A product packs its
B operand just before it multiplies, as float32 or bfloat16: there is no second copy of all weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..kernels.crossentropy import (
    SoftmaxStates,
    crossentropy_backward,
    crossentropy_block,
    crossentropy_forward,
)
from ..kernels.embedding import embedding_backward, embedding_forward
from ..kernels.gemm.packing import pack_operand
from ..kernels.jit import I64_0, I64_1, entry, jit
from ..kernels.kv_cache import LayerCache
from ..kernels.layernorm import layernorm_backward, layernorm_forward
from ..kernels.matmul import (
    ADD,
    NO_ACTIVATION,
    SET,
    LinearWorkspace,
    matmul_forward,
)
from ..kernels.view import View, clear_rows, columns_of, copy_rows, rows_of, view
from .block import BlockBuffers, GradBuffers, block, block_backward

# Rows whose exponentials of logits exist at a time, by the bytes of each. These rows share one
# packing of the head, and one addition to its gradient.
HEAD_ROWS = {4: 512, 2: 1024}
HEAD_COLUMNS = np.int64(2048)  # columns of a block of logits: rows of the head [V, C]
_UNSCALED = np.float32(1)


class SavedActivations(NamedTuple):
    """What a layer's forward pass saves for backward, flat, rows row_stride(…) apart.

    qkv, attn, fc  [M, 3C], [M, C], [M, H]: bfloat16 where products read it so, else float32
    lse            float32 [M · NH]: log Σ e^score of each softmax
    x_mid          float32 [M, C]: x after the attention half
    """

    qkv: np.ndarray
    attn: np.ndarray
    lse: np.ndarray
    x_mid: np.ndarray
    fc: np.ndarray


class Workspace(NamedTuple):
    """Memory that every layer uses again, flat, rows row_stride(…) apart.

    normed, hidden  A operands [M, C], [M, H]
    cache           LayerCache of a slot for each sequence
    partials        float32, for attention_forward
    linear          LinearWorkspace
    dx, dnormed     float32 [M, C]
    dqkv, dhidden   A operands [M, 3C], [M, H]
    norm_partials   float32, for layernorm_backward
    logits          float32 [HEAD_ROWS, HEAD_COLUMNS]: a block of columns
    exponentials    A operand [HEAD_ROWS, V]: e^(logits − max), max of each row in each block
    states          SoftmaxStates of HEAD_ROWS rows
    dlogits         A operand [HEAD_ROWS, HEAD_COLUMNS]: the gradient of a block
    dlogits_t       A operand [HEAD_COLUMNS, HEAD_ROWS]: the same transposed
    head_panels     B operand [HEAD_ROWS, C]
    losses          float32 [M]: the cross-entropy of each row
    """

    normed: np.ndarray
    hidden: np.ndarray
    cache: LayerCache
    partials: np.ndarray
    linear: LinearWorkspace
    dx: np.ndarray
    dnormed: np.ndarray
    dqkv: np.ndarray
    dhidden: np.ndarray
    norm_partials: np.ndarray
    logits: np.ndarray
    exponentials: np.ndarray
    states: SoftmaxStates
    dlogits: np.ndarray
    dlogits_t: np.ndarray
    head_panels: np.ndarray
    losses: np.ndarray


# ---- the embedding --------------------------------------------------------------------------


@entry
def forward_embedding(team, x, weights, tokens, dims):
    """x[m, :] = (wte[ids[m]] + wpe[positions[m]]) · scale"""
    embedding_forward(
        team, view(x, tokens.ids.size, dims.C), tokens.ids, tokens.positions,
        weights.wte, weights.wpe, dims.embedding_scale,
    )  # fmt: skip


@entry
def backward_embedding(team, grads, tokens, work, dims):
    """Undoes forward_embedding: adds to grads.wte and grads.wpe."""
    embedding_backward(
        team, grads.wte, grads.wpe, view(work.dx, tokens.ids.size, dims.C),
        tokens.ids, tokens.positions, dims.embedding_scale,
    )  # fmt: skip


# ---- a layer --------------------------------------------------------------------------------


@entry
def forward_layer(team, x_next, x, layer, heads, tokens, saved, work, dims):
    """x_next = the layer's output for x, both float32 [M, C]; fills `saved`."""
    M = tokens.ids.size
    x_out = view(x_next, M, dims.C)
    copy_rows(team, x_out, view(x, M, dims.C))
    block(team, x_out, layer, work.cache, heads, tokens, _block_buffers(saved, work, M, dims), dims)


@entry
def backward_layer(team, x, layer, dlayer, heads, tokens, T, saved, work, dims, mode):
    """Undoes forward_layer: work.dx from ∂loss/∂x_next to ∂loss/∂x; adds to the gradients dlayer.

    T     the length of each sequence
    mode  ADD; or SET, which overwrites the gradients of matrices
    """
    M, C = tokens.ids.size, dims.C
    grads = GradBuffers(
        dx=view(work.dx, M, C),
        dnormed=view(work.dnormed, M, C),
        dqkv=view(work.dqkv, M, 3 * C),
        dhidden=view(work.dhidden, M, dims.H),
        partials=work.norm_partials,
    )
    buffers = _block_buffers(saved, work, M, dims)
    block_backward(team, view(x, M, C), layer, dlayer, heads, T, buffers, grads, dims, mode)


@jit
def _block_buffers(saved, work, M, dims):
    """The BlockBuffers of training."""
    C, H = dims.C, dims.H
    return BlockBuffers(
        normed=view(work.normed, M, C),
        qkv=view(saved.qkv, M, 3 * C),
        attn=view(saved.attn, M, C),
        lse=saved.lse,
        x_mid=view(saved.x_mid, M, C),
        fc=view(saved.fc, M, H),
        hidden=view(work.hidden, M, H),
        partials=work.partials,
        workspace=work.linear,
    )


# ---- the head -------------------------------------------------------------------------------


@entry
def forward_head(team, x, first, rows, weights, targets, work, dims):
    """work.losses of `rows` rows from `first` on, at most HEAD_ROWS, and their work.exponentials
    and work.states.

    x        float32 [M, C]: x[L]
    weights  NonLayerWeights
    targets  int64 [M]
    """
    C, V = dims.C, dims.V
    normed, exponentials = view(work.normed, rows, C), view(work.exponentials, rows, V)
    panels, no_bias = work.linear.panels, weights.ln_f.bias[:0]
    x_rows = rows_of(view(x, targets.size, C), first, rows)
    layernorm_forward(team, normed, x_rows, weights.ln_f, dims.eps)
    for v in range(0, V, HEAD_COLUMNS):
        columns = min(HEAD_COLUMNS, V - v)
        # logits = normed · head[v : v + columns]ᵀ · scale
        logits = columns_of(view(work.logits, rows, HEAD_COLUMNS), I64_0, columns)
        pack_operand(team, panels, weights.head, v * C, C, columns, I64_1, C)
        matmul_forward(
            team, logits, normed, panels, no_bias, SET, NO_ACTIVATION, dims.logit_scale
        )  # fmt: skip
        crossentropy_block(
            team, columns_of(exponentials, v, columns), work.states, logits, targets[first:],
            v // HEAD_COLUMNS, v,
        )  # fmt: skip
    blocks = (V + HEAD_COLUMNS - 1) // HEAD_COLUMNS
    crossentropy_forward(team, work.losses[first:], work.states, targets[first:], rows, blocks)


@entry
def backward_head(team, x, first, rows, weights, grads, targets, work, dims, loss_scale, mode):
    """Undoes forward_head, which has just run: work.dx = ∂loss/∂x of its rows; adds to the
    gradients.

    loss_scale  the factor of each row's cross-entropy in the loss
    mode        ADD; or SET, which overwrites the gradient of the head
    """
    C, V = dims.C, dims.V
    normed, exponentials = view(work.normed, rows, C), view(work.exponentials, rows, V)
    dnormed, dlogits = view(work.dnormed, rows, C), view(work.dlogits, rows, HEAD_COLUMNS)
    panels, no_bias = work.linear.panels, weights.ln_f.bias[:0]
    pack_operand(team, work.head_panels, normed.data, I64_0, rows, C, normed.ld, I64_1)
    for v in range(0, V, HEAD_COLUMNS):
        columns = min(HEAD_COLUMNS, V - v)
        d, d_t = columns_of(dlogits, I64_0, columns), view(work.dlogits_t, columns, rows)
        crossentropy_backward(
            team, d, d_t, columns_of(exponentials, v, columns), work.states, work.losses[first:],
            targets[first:], v // HEAD_COLUMNS, v, loss_scale * dims.logit_scale,
        )  # fmt: skip
        # dhead[v : v + columns] += dᵀ · normed
        dhead = View(grads.head[v * C :], columns, C, C)
        matmul_forward(
            team, dhead, d_t, work.head_panels, no_bias, mode, NO_ACTIVATION, _UNSCALED
        )  # fmt: skip
        # dnormed += d · head[v : v + columns], from 0
        pack_operand(team, panels, weights.head, v * C, columns, C, C, I64_1)
        matmul_forward(
            team, dnormed, d, panels, no_bias, SET if v == 0 else ADD, NO_ACTIVATION, _UNSCALED
        )  # fmt: skip
    x_rows = rows_of(view(x, targets.size, C), first, rows)
    dx = rows_of(view(work.dx, targets.size, C), first, rows)
    clear_rows(team, dx)
    layernorm_backward(
        team, dx, grads.ln_f, dnormed, x_rows, weights.ln_f, work.norm_partials, dims.eps
    )
