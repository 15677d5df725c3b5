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

from ..config import GPTConfig
from ..kernels.attention import (
    QUERY_BLOCK,
    attention_forward,
    attention_scratch,
    partials_size,
)
from ..kernels.embedding import embedding_forward, gather_forward
from ..kernels.gemm.quantized import (
    QuantizedActivations,
    QuantizedMatrix,
    make_quantized_activations,
)
from ..kernels.jit import entry
from ..kernels.kv_cache import kv_cache_write
from ..kernels.layernorm import layernorm_forward
from ..kernels.layout import (
    AUX_DTYPE,
    LANES,
    STORAGE_DTYPE,
    aligned_zeros,
    padded,
    row_stride,
    thread_scratch,
)
from ..kernels.matmul import (
    ADD,
    MATMUL_SCRATCH,
    NO_ACTIVATION,
    SET,
    matmul_forward,
    matrix_at,
    prepare_activations,
)
from ..kernels.simd import BF16_PRODUCTS, array_at
from ..weights.packed import Weights
from ..weights.table import HEAD, QUANTIZED, layer_shapes


class WeightTable(NamedTuple):
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
    whole                     QuantizedActivations, for products with quantized weights
    """

    x: np.ndarray
    qkv: np.ndarray
    normed: np.ndarray
    attended: np.ndarray
    hidden: np.ndarray
    partials: np.ndarray
    whole: QuantizedActivations


class TokenBatch(NamedTuple):
    """The tokens of one pass.

    ids           int64 [M]
    positions     int64 [M]: of each token in its sequence, from 0
    slots         int64 [M]: of each token's sequence in the KV cache
    query_blocks  int64 [4 · n], as `query_blocks` returns them
    """

    ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    query_blocks: np.ndarray


class CacheArrays(NamedTuple):
    """The KVCache's arrays: keys and values, flat, and their dims."""

    keys: np.ndarray
    values: np.ndarray
    slots: int
    capacity: int


# ---- the compiled part ----------------------------------------------------------------------
@entry
def forward_layers(
    team, first, last, dims, table, scales, cache, buffers, tokens, logit_rows, logits
):
    """Layers first … last − 1; before the first the embedding, after the last the logits.

    logit_rows  int64 [n]: the tokens after which logits are computed
    logits      float32 [n · V], written when the last layer is among them
    """
    C, NH, HS, H, V = dims.C, dims.NH, dims.HS, dims.H, dims.V
    x, qkv, normed, attended, hidden, partials, whole = buffers
    M = tokens.ids.size
    matrix, vector = table.matrix, table.vector
    ends = table.ends[0]
    ld, ld_qkv, ld_hidden = row_stride(C), row_stride(3 * C), row_stride(H)
    one, no_bias, no_norms = np.float32(1), vector, vector

    if first == 0:
        wte = matrix_at(ends.wte_weight, ends.wte_weight_scales, C, V, matrix)
        wpe = array_at(ends.wpe_weight, dims.n_positions * C, table.plain)
        embedding_forward(
            team, x, ld, tokens.ids, tokens.positions, wte, wpe, M, C, dims.embedding_scale
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
        layernorm_forward(team, normed, x, ld, ln_1, ln_1_bias, M, C, dims.eps)
        left, ld_left = prepare_activations(team, whole, normed, ld, c_attn, M, C)
        matmul_forward(
            team, qkv, ld_qkv, left, ld_left, c_attn, c_attn_bias, M, C, 3 * C,
            SET, NO_ACTIVATION, one,
        )  # fmt: skip
        kv_cache_write(
            team, cache.keys, cache.values, qkv, ld_qkv, tokens.slots, tokens.positions, M,
            n, cache.slots, cache.capacity, NH, HS,
        )  # fmt: skip
        attention_forward(
            team, attended, ld, no_norms, qkv, ld_qkv, cache.keys, cache.values, partials,
            tokens.query_blocks, tokens.query_blocks.size // 4, M,
            n, cache.slots, cache.capacity, NH, HS, scales[n],
        )  # fmt: skip
        left, ld_left = prepare_activations(team, whole, attended, ld, attn_c_proj, M, C)
        matmul_forward(
            team, x, ld, left, ld_left, attn_c_proj, attn_c_proj_bias, M, C, C,
            ADD, NO_ACTIVATION, one,
        )  # fmt: skip

        # x += c_proj · activation(c_fc · ln_2(x))
        layernorm_forward(team, normed, x, ld, ln_2, ln_2_bias, M, C, dims.eps)
        left, ld_left = prepare_activations(team, whole, normed, ld, c_fc, M, C)
        matmul_forward(
            team, hidden, ld_hidden, left, ld_left, c_fc, c_fc_bias, M, C, H,
            SET, dims.activation, one,
        )  # fmt: skip
        left, ld_left = prepare_activations(team, whole, hidden, ld_hidden, mlp_c_proj, M, H)
        matmul_forward(
            team, x, ld, left, ld_left, mlp_c_proj, mlp_c_proj_bias, M, H, C,
            ADD, NO_ACTIVATION, one,
        )  # fmt: skip

    if last == dims.L and logit_rows.size:
        ln_f = array_at(ends.ln_f_weight, C, vector)
        ln_f_bias = array_at(ends.ln_f_bias, C, vector)
        head = matrix_at(ends.head, ends.head_scales, C, V, matrix)
        N = logit_rows.size
        gather_forward(team, qkv, x, ld, logit_rows, N, C)
        layernorm_forward(team, normed, qkv, ld, ln_f, ln_f_bias, N, C, dims.eps)
        left, ld_left = prepare_activations(team, whole, normed, ld, head, N, C)
        matmul_forward(
            team, logits, V, left, ld_left, head, no_bias, N, C, V,
            SET, NO_ACTIVATION, dims.logit_scale,
        )  # fmt: skip


# ---- its arguments -------------------------------------------------------------------------
def _field(name: str) -> str:
    """`attn.c_attn.weight` as a field name."""
    return name.replace(".", "_")


def make_weight_table(weights: Weights, config: GPTConfig) -> WeightTable:
    """The addresses of all weights. They are valid as long as the weights are."""
    layers = [
        _addresses(weights, {name: f"h.{n}.{name}" for name in layer_shapes(config)})
        for n in range(config.n_layer)
    ]
    ends = {name: name for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")}
    ends["head"] = "wte.weight" if weights.tied else HEAD
    matrix: np.ndarray | QuantizedMatrix = np.empty(0, STORAGE_DTYPE[weights.dtype])
    if weights.dtype in QUANTIZED:
        matrix = QuantizedMatrix(matrix, np.empty(0, np.uint16))
    plain, vector = np.empty(0, AUX_DTYPE[weights.dtype]), np.empty(0, np.float32)
    return WeightTable(np.concatenate(layers), _addresses(weights, ends), matrix, plain, vector)


def _addresses(weights: Weights, names: dict[str, str]) -> np.ndarray:
    """[1] record of the addresses of some tensors, {field: name}, and of their scales."""
    address = {_field(f): weights.tensors[name].ctypes.data for f, name in names.items()}
    for field, name in names.items():
        has_scales = name in weights.scales
        scales = weights.scales[name].ctypes.data if has_scales else 0
        address[_field(field) + "_scales"] = scales
    return np.array([tuple(address.values())], dtype=[(field, np.uint64) for field in address])


def make_buffers(config: GPTConfig, rows: int, capacity: int, dtype: str, threads: int) -> Buffers:
    """Room for the activations of `rows` tokens of sequences of `capacity`, zero at first.

    dtype  how the weights are held
    """
    narrow = BF16_PRODUCTS and dtype == "bf16"
    C, H = config.n_embd, config.n_inner
    factor = np.uint16 if narrow else np.float32
    whole = padded(rows, LANES) if narrow else rows  # AMX reads and writes whole tiles
    return Buffers(
        x=aligned_zeros(whole * row_stride(C), np.float32),
        qkv=aligned_zeros(whole * row_stride(3 * C), np.float32),
        normed=aligned_zeros(whole * row_stride(C), factor),
        attended=aligned_zeros(whole * row_stride(C), factor),
        hidden=aligned_zeros(whole * row_stride(H), factor),
        partials=aligned_zeros(
            partials_size(rows, config.n_head, config.head_size, capacity), np.float32
        ),
        whole=make_quantized_activations(
            max(rows, threads), max(C, H) if dtype in QUANTIZED else 0
        ),
    )


def make_scratch(config: GPTConfig, threads: int) -> np.ndarray:
    """float32 [threads, n]: what each thread needs for itself."""
    needed = max(MATMUL_SCRATCH, attention_scratch(config.head_size))
    return thread_scratch(threads, needed)


def query_blocks(owners: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The query blocks of attention_forward: runs of at most QUERY_BLOCK rows of one sequence.

    owners, positions  int64 [M]
    Returns int64 [4 · n]: slot, first row, rows, first position of each.
    """
    M = len(owners)
    borders = np.flatnonzero(np.diff(owners)) + 1
    blocks = []
    for begin, end in zip([0, *borders], [*borders, M], strict=True):
        for row in range(begin, end, QUERY_BLOCK):
            blocks += [owners[row], row, min(QUERY_BLOCK, end - row), positions[row]]
    return np.array(blocks, np.int64)
