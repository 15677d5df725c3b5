"""The forward pass as training needs it, and backward, its mirror image.

forward_layer keeps what backward_layer needs; backward_layer reads as forward_layer from its last
line to its first, and each line tells which line it undoes. Whole sequences of one length stand
below each other as rows of one matrix, M = B · T.

    x[0] = (wte[ids] + wpe[positions]) · scale
    for each layer:
        middle = x[n] + c_proj · attention(c_attn · ln_1(x[n]))
        x[n + 1] = middle + c_proj · activation(c_fc · ln_2(middle))
    loss = Σ cross-entropy(head · ln_f(x[L]), targets)

Kept are what is dear to compute: the sums x and middle, queries, keys and values, what attention
gives, and c_fc's result. Layernorms and activations are computed again, and so are the
probabilities of attention, from one number a query.

Weights and gradients are plain float32 arrays in the shapes of the checkpoint. A product packs its
right factor when it comes to it, as float32 or bfloat16, so there is never a second copy of all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..kernels.activation import activation_backward, activation_forward
from ..kernels.attention import attention_backward, attention_forward
from ..kernels.crossentropy import crossentropy_backward, crossentropy_forward
from ..kernels.embedding import rows_backward, rows_forward
from ..kernels.gemm.packing import clear_rows, copy_rows, pack_operand, transpose_rows
from ..kernels.jit import entry, jit
from ..kernels.kv_cache import kv_cache_write
from ..kernels.layernorm import layernorm_backward, layernorm_forward
from ..kernels.layout import row_stride
from ..kernels.matmul import (
    ADD,
    NO_ACTIVATION,
    SET,
    Room,
    matmul_backward,
    matmul_forward,
)

HEAD_ROWS = np.int64(512)  # rows whose logits are there at a time
HEAD_COLUMNS = np.int64(4096)  # words whose part of the head is in panels at a time
_START, _ONE = np.int64(0), np.int64(1)


class Layer(NamedTuple):
    """The tensors of a layer, or their gradients: float32, flat."""

    ln_1: np.ndarray
    ln_1_bias: np.ndarray
    c_attn: np.ndarray
    c_attn_bias: np.ndarray
    attn_c_proj: np.ndarray
    attn_c_proj_bias: np.ndarray
    ln_2: np.ndarray
    ln_2_bias: np.ndarray
    c_fc: np.ndarray
    c_fc_bias: np.ndarray
    mlp_c_proj: np.ndarray
    mlp_c_proj_bias: np.ndarray


class NonLayerWeights(NamedTuple):
    """The tensors outside the layers, or their gradients: float32, flat. A tied head is wte."""

    wte: np.ndarray
    wpe: np.ndarray
    ln_f: np.ndarray
    ln_f_bias: np.ndarray
    head: np.ndarray


class SavedActivations(NamedTuple):
    """What forward_layer leaves for backward_layer, flat, rows row_stride(…) apart.

    qkv, attended, fc  [M, 3C], [M, C], [M, H]: bfloat16 where that is multiplied, else float32
    norms              float32 [M · NH]: of attention's softmax
    middle             float32 [M, C]
    """

    qkv: np.ndarray
    attended: np.ndarray
    norms: np.ndarray
    middle: np.ndarray
    fc: np.ndarray


class Workspace(NamedTuple):
    """Room that every layer uses anew, flat, rows row_stride(…) apart.

    normed, hidden         left factors [M, C], [M, H]
    keys, values           the cache of one layer, as attention_forward reads it
    partials               float32, for attention_forward
    room                   for the factors that products pack
    dx, dnormed            float32 [M, C]
    dqkv, dhidden          left factors [M, 3C], [M, H]
    sums                   float32, layernorm_partials
    logits                 float32 [HEAD_ROWS, V]
    dlogits                left factor [HEAD_ROWS, HEAD_COLUMNS]
    head_panels            panels of a right factor [HEAD_ROWS, C]
    losses, norms          float32 [M]
    """

    normed: np.ndarray
    hidden: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    partials: np.ndarray
    room: Room
    dx: np.ndarray
    dnormed: np.ndarray
    dqkv: np.ndarray
    dhidden: np.ndarray
    sums: np.ndarray
    logits: np.ndarray
    dlogits: np.ndarray
    head_panels: np.ndarray
    losses: np.ndarray
    norms: np.ndarray


class Batch(NamedTuple):
    """B whole sequences of T tokens.

    ids, positions, slots, targets  int64 [B · T]; targets IGNORED do not count
    blocks                          int64, as attention_forward takes them
    capacity                        of the cache, for one sequence
    """

    B: int
    T: int
    capacity: int
    ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    targets: np.ndarray
    blocks: np.ndarray


@entry
def forward_embedding(team, x, weights, batch, dims):
    """x[m, :] = (wte[ids[m]] + wpe[positions[m]]) · scale"""
    rows_forward(
        team, x, row_stride(dims.C), batch.ids, batch.positions, weights.wte, weights.wpe,
        batch.ids.size, dims.C, dims.embedding_scale,
    )  # fmt: skip


@entry
def backward_embedding(team, dweights, batch, dims, work):
    """The mirror of forward_embedding: to the gradients of wte and wpe."""
    rows_backward(
        team, dweights.wte, dweights.wpe, work.dx, row_stride(dims.C), batch.ids, batch.positions,
        batch.ids.size, dims.C, dims.embedding_scale,
    )  # fmt: skip


@entry
def forward_layer(team, x_next, x, w, saved, batch, dims, work, scale):
    """x_next = the layer's result for x, both float32 [M, C]; fills `saved`."""
    C, NH, HS, H, M = dims.C, dims.NH, dims.HS, dims.H, batch.ids.size
    ld, ld_qkv, ld_hidden = row_stride(C), row_stride(3 * C), row_stride(H)

    # middle = x + c_proj · attention(c_attn · ln_1(x))
    layernorm_forward(team, work.normed, x, ld, w.ln_1, w.ln_1_bias, M, C, dims.eps)
    _product(team, saved.qkv, ld_qkv, work.normed, ld, w.c_attn, w.c_attn_bias, work, M, C, 3 * C,
             SET)  # fmt: skip
    kv_cache_write(
        team, work.keys, work.values, saved.qkv, ld_qkv, batch.slots, batch.positions, M,
        _START, batch.B, batch.capacity, NH, HS,
    )  # fmt: skip
    attention_forward(
        team, saved.attended, ld, saved.norms, saved.qkv, ld_qkv, work.keys, work.values,
        work.partials, batch.blocks, batch.blocks.size // 4, M,
        _START, batch.B, batch.capacity, NH, HS, scale,
    )  # fmt: skip
    copy_rows(team, saved.middle, x, ld, M, C)
    _product(team, saved.middle, ld, saved.attended, ld, w.attn_c_proj, w.attn_c_proj_bias, work,
             M, C, C, ADD)  # fmt: skip

    # x_next = middle + c_proj · activation(c_fc · ln_2(middle))
    layernorm_forward(team, work.normed, saved.middle, ld, w.ln_2, w.ln_2_bias, M, C, dims.eps)
    _product(team, saved.fc, ld_hidden, work.normed, ld, w.c_fc, w.c_fc_bias, work, M, C, H, SET)
    activation_forward(team, work.hidden, saved.fc, ld_hidden, M, H, dims.activation)
    copy_rows(team, x_next, saved.middle, ld, M, C)
    _product(team, x_next, ld, work.hidden, ld_hidden, w.mlp_c_proj, w.mlp_c_proj_bias, work,
             M, H, C, ADD)  # fmt: skip


@jit
def _product(team, y, ldy, x, ldx, w, bias, work, M, K, N, mode):
    """y = x · w + bias, or y += …, of plain w [K, N]."""
    panels = work.room.panels
    pack_operand(team, panels, w, _START, K, N, N, _ONE)
    matmul_forward(team, y, ldy, x, ldx, panels, bias, M, K, N, mode, NO_ACTIVATION, np.float32(1))


@entry
def backward_layer(team, x, w, dw, saved, batch, dims, work, scale):
    """work.dx from ∂loss/∂x_next to ∂loss/∂x, and to dw what is to be added to the gradients.

    dx is what comes down the residual sum, past every branch; a branch adds its own to it.
    """
    C, NH, HS, H, M = dims.C, dims.NH, dims.HS, dims.H, batch.ids.size
    ld, ld_qkv, ld_hidden = row_stride(C), row_stride(3 * C), row_stride(H)
    dx, dnormed, dhidden, dqkv, room = work.dx, work.dnormed, work.dhidden, work.dqkv, work.room

    # x_next = middle + c_proj · activation(c_fc · ln_2(middle))
    activation_forward(team, work.hidden, saved.fc, ld_hidden, M, H, dims.activation)
    matmul_backward(
        team, dhidden, ld_hidden, dw.mlp_c_proj, dw.mlp_c_proj_bias, dx, ld,
        work.hidden, ld_hidden, w.mlp_c_proj, room, M, H, C,
    )  # fmt: skip
    activation_backward(team, dhidden, dhidden, saved.fc, ld_hidden, M, H, dims.activation)
    layernorm_forward(team, work.normed, saved.middle, ld, w.ln_2, w.ln_2_bias, M, C, dims.eps)
    matmul_backward(
        team, dnormed, ld, dw.c_fc, dw.c_fc_bias, dhidden, ld_hidden,
        work.normed, ld, w.c_fc, room, M, C, H,
    )  # fmt: skip
    layernorm_backward(
        team, dx, dw.ln_2, dw.ln_2_bias, dnormed, saved.middle, ld, w.ln_2, work.sums,
        M, C, dims.eps,
    )  # fmt: skip

    # middle = x + c_proj · attention(c_attn · ln_1(x))
    matmul_backward(
        team, dnormed, ld, dw.attn_c_proj, dw.attn_c_proj_bias, dx, ld,
        saved.attended, ld, w.attn_c_proj, room, M, C, C,
    )  # fmt: skip
    attention_backward(
        team, dqkv, ld_qkv, dnormed, ld, saved.qkv, ld_qkv, saved.attended, ld, saved.norms,
        batch.B, batch.T, NH, HS, scale, room.panels,
    )  # fmt: skip
    layernorm_forward(team, work.normed, x, ld, w.ln_1, w.ln_1_bias, M, C, dims.eps)
    matmul_backward(
        team, dnormed, ld, dw.c_attn, dw.c_attn_bias, dqkv, ld_qkv,
        work.normed, ld, w.c_attn, room, M, C, 3 * C,
    )  # fmt: skip
    layernorm_backward(
        team, dx, dw.ln_1, dw.ln_1_bias, dnormed, x, ld, w.ln_1, work.sums, M, C, dims.eps
    )


@entry
def forward_head(team, x, first, w, batch, dims, work):
    """work.losses of rows first … of x = x[L], and their work.logits and work.norms."""
    C, V = dims.C, dims.V
    ld, ld_logits = row_stride(C), row_stride(V)
    rows = min(HEAD_ROWS, batch.ids.size - first)
    x = x[first * ld :]
    layernorm_forward(team, work.normed, x, ld, w.ln_f, w.ln_f_bias, rows, C, dims.eps)
    panels, no_bias = work.room.panels, w.ln_f[:0]
    for v in range(0, V, HEAD_COLUMNS):
        columns = min(HEAD_COLUMNS, V - v)
        pack_operand(team, panels, w.head, v * C, C, columns, _ONE, C)
        matmul_forward(
            team, work.logits[v:], ld_logits, work.normed, ld, panels, no_bias, rows, C, columns,
            SET, NO_ACTIVATION, dims.logit_scale,
        )  # fmt: skip
    crossentropy_forward(
        team, work.losses[first:], work.norms, work.logits, ld_logits, batch.targets[first:],
        rows, V,
    )  # fmt: skip


@entry
def backward_head(team, x, first, w, dw, batch, dims, work, share):
    """The mirror of forward_head, which was the last to run: work.dx = ∂loss/∂x of its rows, and
    to dw what is to be added to the gradients. share: the weight of each row in the loss."""
    C, V = dims.C, dims.V
    ld, ld_logits, ld_dlogits = row_stride(C), row_stride(V), row_stride(HEAD_COLUMNS)
    rows = min(HEAD_ROWS, batch.ids.size - first)
    x, dx = x[first * ld :], work.dx[first * ld :]
    room, dnormed, no_bias, one = work.room, work.dnormed, w.ln_f[:0], np.float32(1)
    pack_operand(team, work.head_panels, work.normed, _START, rows, C, ld, _ONE)
    mode = SET
    for v in range(0, V, HEAD_COLUMNS):
        columns = min(HEAD_COLUMNS, V - v)
        crossentropy_backward(
            team, work.dlogits, ld_dlogits, work.logits, ld_logits, work.norms,
            batch.targets[first:], rows, v, columns, share * dims.logit_scale,
        )  # fmt: skip
        transpose_rows(
            team, room.rows, row_stride(rows), work.dlogits, ld_dlogits, rows, columns
        )  # fmt: skip
        matmul_forward(
            team, dw.head[v * C :], C, room.rows, row_stride(rows), work.head_panels, no_bias,
            columns, rows, C, ADD, NO_ACTIVATION, one,
        )  # fmt: skip
        pack_operand(team, room.panels, w.head, v * C, columns, C, C, _ONE)
        matmul_forward(
            team, dnormed, ld, work.dlogits, ld_dlogits, room.panels, no_bias, rows, columns, C,
            mode, NO_ACTIVATION, one,
        )  # fmt: skip
        mode = ADD
    clear_rows(team, dx, ld, rows, C)
    layernorm_backward(
        team, dx, dw.ln_f, dw.ln_f_bias, dnormed, x, ld, w.ln_f, work.sums, rows, C, dims.eps
    )
