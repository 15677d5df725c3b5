"""The forward pass of a GPT, compiled.

The tokens of all sequences are the rows of one matrix [M, C], whatever sequence they belong to and
however long it is; only attention looks at which row belongs to which sequence. A prompt, a batch
of prompts of unequal length and one token of each of several sequences are the same to it.

    x = (wte[ids] + wpe[positions]) · scale
    for each layer:
        x += c_proj · attention(c_attn · ln_1(x))
        x += c_proj · activation(c_fc · ln_2(x))
    logits = lm_head · ln_f(x)                  (of the rows whose logits are wanted)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..kernels.attention import attention_forward
from ..kernels.embedding import embedding_forward, gather_forward
from ..kernels.gemm.quantized import QuantizedMatrix, Rows
from ..kernels.jit import entry
from ..kernels.kv_cache import kv_cache_write
from ..kernels.layernorm import layernorm_forward
from ..kernels.layout import row_stride
from ..kernels.matmul import (
    ADD,
    NO_ACTIVATION,
    SET,
    matmul_forward,
    matrix_at,
    prepare_activations,
)
from ..kernels.simd import array_at


class Table(NamedTuple):
    """Where the weights lie.

    layers      [L] records of addresses, a field for each tensor of a layer; and `…_scales` for
                those that have some, else 0
    ends        [1] record of the addresses of wte, wpe, ln_f and the head, and `…_scales`
    matrix      of the type of what is multiplied with: an empty array, or empty QuantizedMatrix
    plain       an empty array of wpe's type
    vector      an empty array of the vectors' type
    """

    layers: np.ndarray
    ends: np.ndarray
    matrix: np.ndarray | QuantizedMatrix
    plain: np.ndarray
    vector: np.ndarray


class Buffers(NamedTuple):
    """Room for the activations of some tokens, flat, rows row_stride(…) apart.

    x, qkv                    float32 [rows, C], [rows, 3C]
    normed, attended, hidden  [rows, C], [rows, C], [rows, H]: what weights are multiplied with;
                              bfloat16 (uint16) where the processor multiplies that, else float32
    partials                  float32, for attention
    whole                     Rows: what weights of whole numbers are multiplied with
    """

    x: np.ndarray
    qkv: np.ndarray
    normed: np.ndarray
    attended: np.ndarray
    hidden: np.ndarray
    partials: np.ndarray
    whole: Rows


class Step(NamedTuple):
    """The tokens of one pass.

    ids, positions, slots  int64 [M]
    blocks                 int64 [4 · n]: runs of tokens of one sequence, as attention takes them
    wanted                 int64 [n]: the rows whose logits are wanted
    """

    ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    blocks: np.ndarray
    wanted: np.ndarray


class Cache(NamedTuple):
    """The State's arrays: keys and values, flat, and their sizes."""

    keys: np.ndarray
    values: np.ndarray
    slots: int
    capacity: int


# ---- the compiled part ----------------------------------------------------------------------
@entry
def _layers(team, first, last, sizes, table, scales, cache, buffers, step, logits):
    """Layers first … last − 1; before the first the embedding, after the last the logits.

    logits  float32 [wanted rows · V], written when the last layer is among them
    """
    C, NH, HS, H, V = sizes.C, sizes.NH, sizes.HS, sizes.H, sizes.V
    x, qkv, normed, attended, hidden, partials, whole = buffers
    M = step.ids.size
    matrix, vector = table.matrix, table.vector
    ends = table.ends[0]
    ld, ld_qkv, ld_hidden = row_stride(C), row_stride(3 * C), row_stride(H)
    one, no_bias, no_norms = np.float32(1), vector, vector

    if first == 0:
        wte = matrix_at(ends.wte_weight, ends.wte_weight_scales, C, V, matrix)
        wpe = array_at(ends.wpe_weight, sizes.n_positions * C, table.plain)
        embedding_forward(
            team, x, ld, step.ids, step.positions, wte, wpe, M, C, sizes.embedding_scale
        )  # fmt: skip

    for n in range(first, last):
        layer = table.layers[n]
        ln_1 = array_at(layer.ln_1_weight, C, vector)
        ln_1_bias = array_at(layer.ln_1_bias, C, vector)
        c_attn = matrix_at(
            layer.attn_c_attn_weight, layer.attn_c_attn_weight_scales, C, 3 * C, matrix
        )  # fmt: skip
        c_attn_bias = array_at(layer.attn_c_attn_bias, 3 * C, vector)
        attn_c_proj = matrix_at(
            layer.attn_c_proj_weight, layer.attn_c_proj_weight_scales, C, C, matrix
        )  # fmt: skip
        attn_c_proj_bias = array_at(layer.attn_c_proj_bias, C, vector)
        ln_2 = array_at(layer.ln_2_weight, C, vector)
        ln_2_bias = array_at(layer.ln_2_bias, C, vector)
        c_fc = matrix_at(
            layer.mlp_c_fc_weight, layer.mlp_c_fc_weight_scales, C, H, matrix
        )  # fmt: skip
        c_fc_bias = array_at(layer.mlp_c_fc_bias, H, vector)
        mlp_c_proj = matrix_at(
            layer.mlp_c_proj_weight, layer.mlp_c_proj_weight_scales, H, C, matrix
        )  # fmt: skip
        mlp_c_proj_bias = array_at(layer.mlp_c_proj_bias, C, vector)

        # x += c_proj · attention(c_attn · ln_1(x))
        layernorm_forward(team, normed, x, ld, ln_1, ln_1_bias, M, C, sizes.eps)
        left, ld_left = prepare_activations(team, whole, normed, ld, c_attn, M, C)
        matmul_forward(
            team, qkv, ld_qkv, left, ld_left, c_attn, c_attn_bias, M, C, 3 * C,
            SET, NO_ACTIVATION, one,
        )  # fmt: skip
        kv_cache_write(
            team, cache.keys, cache.values, qkv, ld_qkv, step.slots, step.positions, M,
            n, cache.slots, cache.capacity, NH, HS,
        )  # fmt: skip
        attention_forward(
            team, attended, ld, no_norms, qkv, ld_qkv, cache.keys, cache.values, partials,
            step.blocks, step.blocks.size // 4, M,
            n, cache.slots, cache.capacity, NH, HS, scales[n],
        )  # fmt: skip
        left, ld_left = prepare_activations(team, whole, attended, ld, attn_c_proj, M, C)
        matmul_forward(
            team, x, ld, left, ld_left, attn_c_proj, attn_c_proj_bias, M, C, C,
            ADD, NO_ACTIVATION, one,
        )  # fmt: skip

        # x += c_proj · activation(c_fc · ln_2(x))
        layernorm_forward(team, normed, x, ld, ln_2, ln_2_bias, M, C, sizes.eps)
        left, ld_left = prepare_activations(team, whole, normed, ld, c_fc, M, C)
        matmul_forward(
            team, hidden, ld_hidden, left, ld_left, c_fc, c_fc_bias, M, C, H,
            SET, sizes.activation, one,
        )  # fmt: skip
        left, ld_left = prepare_activations(team, whole, hidden, ld_hidden, mlp_c_proj, M, H)
        matmul_forward(
            team, x, ld, left, ld_left, mlp_c_proj, mlp_c_proj_bias, M, H, C,
            ADD, NO_ACTIVATION, one,
        )  # fmt: skip

    if last == sizes.L and step.wanted.size:
        ln_f = array_at(ends.ln_f_weight, C, vector)
        ln_f_bias = array_at(ends.ln_f_bias, C, vector)
        head = matrix_at(ends.head, ends.head_scales, C, V, matrix)
        N = step.wanted.size
        gather_forward(team, qkv, x, ld, step.wanted, N, C)
        layernorm_forward(team, normed, qkv, ld, ln_f, ln_f_bias, N, C, sizes.eps)
        left, ld_left = prepare_activations(team, whole, normed, ld, head, N, C)
        matmul_forward(
            team, logits, V, left, ld_left, head, no_bias, N, C, V,
            SET, NO_ACTIVATION, sizes.logit_scale,
        )  # fmt: skip
