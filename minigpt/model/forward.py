"""The forward pass of a GPT in inference, compiled.

x = (wte[ids] + wpe[positions]) · scale
for each layer: block.py's `block`
logits = head · ln_f(x)                  (of the tokens whose logits are asked for)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..config import GPTConfig
from ..kernels.attention import (
    QUERY_BLOCK,
    attention_scratch,
    partials_size,
)
from ..kernels.embedding import packed_embedding_forward
from ..kernels.gemm.quantized import (
    QuantizedActivations,
    QuantizedMatrix,
    make_quantized_activations,
)
from ..kernels.jit import entry, jit
from ..kernels.kv_cache import Heads, LayerCache
from ..kernels.layernorm import LayerNorm, layernorm_rows
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
    MATMUL_SCRATCH,
    NO_ACTIVATION,
    SET,
    PackedLinear,
    matmul_forward,
    packed_weights_at,
    prepare_activations,
)
from ..kernels.simd import BF16_PRODUCTS, array_at
from ..kernels.view import View, view
from ..weights.packed import Weights
from ..weights.table import HEAD, QUANTIZED_DTYPES, operand_shape
from .block import BlockBuffers, Layer, NonLayerWeights, block, layer_modules


class WeightTable(NamedTuple):
    """The addresses of all weights, a record (weight, scales, bias, K, N) for each module.

    Its type is the same for every number of layers, so they share compiled code.

    layers     [L, 6] records, in the order of Layer
    non_layer  [4] records: wte, wpe, ln_f and the head
    packed     empty, of the type of a layer's weights: an array or a QuantizedMatrix
    wte        empty, of the type of wte and the head: the same, or int8 beside int4
    plain      empty, of wpe's dtype
    vector     empty, of the dtype of layernorms and biases
    """

    layers: np.ndarray
    non_layer: np.ndarray
    packed: np.ndarray | QuantizedMatrix
    wte: np.ndarray | QuantizedMatrix
    plain: np.ndarray
    vector: np.ndarray


class Buffers(NamedTuple):
    """Memory for the activations of some tokens, flat, rows row_stride(…) apart.

    x                     float32 [rows, C]
    qkv, normed, attn, hidden
                          [rows, 3C], [rows, C], [rows, C], [rows, H]: what products read, those of
                          attention among them; bfloat16 where BF16_PRODUCTS and the weights are,
                          else float32
    partials              float32, for attention_forward
    qx                    quantized activations; empty for float weights
    """

    x: np.ndarray
    qkv: np.ndarray
    normed: np.ndarray
    attn: np.ndarray
    hidden: np.ndarray
    partials: np.ndarray
    qx: QuantizedActivations


class CacheArrays(NamedTuple):
    """The KV cache of all layers.

    keys, values  flat, [L] times a LayerCache's
    capacity      tokens per slot
    """

    keys: np.ndarray
    values: np.ndarray
    capacity: int


# ---- compiled -------------------------------------------------------------------------------


@entry
def forward_layers(
    team, first, last, dims, table, scales, cache, buffers, tokens, logit_rows, logits
):
    """Layers first … last − 1; before layer 0 the embedding, after the last layer the logits.

    dims        Dims
    table       WeightTable
    scales      float32 [L], of attention_scales
    cache       CacheArrays
    buffers     Buffers; buffers.x goes from call to call
    tokens      TokenBatch
    logit_rows  int64 [n]: the tokens after which logits are computed
    logits      float32 [n · V], written after the last layer
    """
    M = tokens.ids.size
    x = view(buffers.x, M, dims.C)
    weights = non_layer_weights(table)
    if first == 0:
        packed_embedding_forward(
            team, x, tokens.ids, tokens.positions, weights.wte, weights.wpe, dims.embedding_scale
        )  # fmt: skip
    block_buffers = make_block_buffers(buffers, M, dims, table.vector)
    for n in range(first, last):
        heads = Heads(dims.NH, dims.HS, scales[n])
        block(
            team, x, layer_weights(table, n), layer_cache(cache, n, dims.L), heads, tokens,
            block_buffers, dims,
        )  # fmt: skip
    if last == dims.L and logit_rows.size:
        N = logit_rows.size
        normed = view(buffers.normed, N, dims.C)
        layernorm_rows(team, normed, x, logit_rows, weights.ln_f, dims.eps)
        matmul_forward(
            team, View(logits, N, dims.V, dims.V),
            prepare_activations(team, normed, weights.head, buffers.qx), weights.head,
            table.vector, SET, NO_ACTIVATION, dims.logit_scale,
        )  # fmt: skip


@jit
def make_block_buffers(buffers, M, dims, no_lse):
    """The BlockBuffers of M tokens, of which nothing is saved for backward."""
    C, H = dims.C, dims.H
    return BlockBuffers(
        normed=view(buffers.normed, M, C),
        qkv=view(buffers.qkv, M, 3 * C),
        attn=view(buffers.attn, M, C),
        lse=no_lse,
        x_mid=None,
        fc=None,
        hidden=view(buffers.hidden, M, H),
        partials=buffers.partials,
        workspace=buffers.qx,
    )


@jit
def layer_cache(cache, n, L):
    """The LayerCache of layer n of L."""
    size = cache.keys.size // L
    begin, end = n * size, (n + 1) * size
    return LayerCache(cache.keys[begin:end], cache.values[begin:end], cache.capacity)


@jit
def layer_weights(table, n):
    """The Layer of number n."""
    module = table.layers[n]
    return Layer(
        _layernorm(module[0], table),
        _linear(module[1], table),
        _linear(module[2], table),
        _layernorm(module[3], table),
        _linear(module[4], table),
        _linear(module[5], table),
    )


@jit
def non_layer_weights(table):
    """The NonLayerWeights."""
    wte, wpe, ln_f, head = (
        table.non_layer[0], table.non_layer[1], table.non_layer[2], table.non_layer[3]
    )  # fmt: skip
    return NonLayerWeights(
        wte=packed_weights_at(wte.weight, wte.scales, wte.K, wte.N, table.wte),
        wpe=array_at(wpe.weight, wpe.K * wpe.N, table.plain),
        ln_f=_layernorm(ln_f, table),
        head=packed_weights_at(head.weight, head.scales, head.K, head.N, table.wte),
    )


@jit
def _layernorm(module, table):
    """The LayerNorm of a record."""
    C = module.N
    return LayerNorm(
        array_at(module.weight, C, table.vector), array_at(module.bias, C, table.vector)
    )


@jit
def _linear(module, table):
    """The PackedLinear of a record."""
    K, N = module.K, module.N
    w = packed_weights_at(module.weight, module.scales, K, N, table.packed)
    return PackedLinear(w, array_at(module.bias, N, table.vector), K, N)


# ---- its arguments --------------------------------------------------------------------------

_RECORD = [
    ("weight", np.uint64), ("scales", np.uint64), ("bias", np.uint64),
    ("K", np.int64), ("N", np.int64),
]  # fmt: skip


def make_weight_table(weights: Weights, config: GPTConfig) -> WeightTable:
    """The WeightTable of these weights, valid as long as they live."""
    modules = [f"h.{n}.{name}" for n in range(config.n_layer) for name in layer_modules(config)]
    head = "wte" if weights.tied else HEAD.removesuffix(".weight")
    layers = _records(weights, modules).reshape(config.n_layer, -1)
    return WeightTable(
        layers=layers,
        non_layer=_records(weights, ["wte", "wpe", "ln_f", head]),
        packed=_packed_type(weights.dtype),
        wte=_packed_type(weights.wte_dtype),
        plain=np.empty(0, AUX_DTYPE[weights.dtype]),
        vector=np.empty(0, np.float32),
    )


def _packed_type(dtype: str) -> np.ndarray | QuantizedMatrix:
    """Empty packed weights of a dtype."""
    array = np.empty(0, STORAGE_DTYPE[dtype])
    return QuantizedMatrix(array, np.empty(0, np.uint16)) if dtype in QUANTIZED_DTYPES else array


def _records(weights: Weights, modules: list[str]) -> np.ndarray:
    """The WeightTable records of some modules; addresses are 0 where there is no such tensor."""

    def address(arrays: dict[str, np.ndarray], name: str) -> int:
        return arrays[name].ctypes.data if name in arrays else 0

    records = []
    for module in modules:
        name = f"{module}.weight"
        *K, N = operand_shape(name, weights.shapes[name])
        addresses = (
            address(weights.tensors, name),
            address(weights.scales, name),
            address(weights.tensors, f"{module}.bias"),
        )
        records.append((*addresses, *(K or [1]), N))
    return np.array(records, _RECORD)


def rounds_activations(dtype: str) -> bool:
    """Whether products with weights of `dtype` round activations: to bfloat16, or to bytes."""
    return dtype in QUANTIZED_DTYPES or (dtype == "bf16" and BF16_PRODUCTS)


def make_buffers(config: GPTConfig, rows: int, capacity: int, dtype: str, threads: int) -> Buffers:
    """Buffers for `rows` tokens of sequences of at most `capacity`, all zero.

    dtype    of the weights: "f32", "bf16", "int8" or "int4"
    threads  the size of the team
    """
    bf16 = BF16_PRODUCTS and dtype == "bf16"
    C, H = config.n_embd, config.n_inner
    operand = np.uint16 if bf16 else np.float32
    partials = partials_size(rows, config.n_head, config.head_size, capacity)
    quantized_K = max(C, H) if dtype in QUANTIZED_DTYPES else 0
    all_rows = padded(rows, LANES) if bf16 else rows  # AMX reads and writes whole tiles
    return Buffers(
        x=aligned_zeros(all_rows * row_stride(C), np.float32),
        qkv=aligned_zeros(all_rows * row_stride(3 * C), operand),
        normed=aligned_zeros(all_rows * row_stride(C), operand),
        attn=aligned_zeros(all_rows * row_stride(C), operand),
        hidden=aligned_zeros(all_rows * row_stride(H), operand),
        partials=aligned_zeros(partials, np.float32),
        qx=make_quantized_activations(max(rows, threads), quantized_K),
    )


def make_scratch(config: GPTConfig, threads: int) -> np.ndarray:
    """float32 [threads, n]: the scratch of each thread."""
    needed = max(MATMUL_SCRATCH, attention_scratch(config.head_size))
    return thread_scratch(threads, needed)


def query_blocks(slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The query blocks of attention_forward: runs of at most QUERY_BLOCK tokens of one sequence.

    slots, positions  int64 [M], as in TokenBatch

    Returns int64 [n, 4], flat: slot, first row, rows and first position of each.
    """
    M = len(slots)
    borders = (np.flatnonzero(np.diff(slots)) + 1).tolist()
    owners, first_positions = slots.tolist(), positions.tolist()  # Python loops faster over lists
    blocks = []
    for begin, end in zip([0, *borders], [*borders, M], strict=True):
        for row in range(begin, end, QUERY_BLOCK):
            blocks += [owners[row], row, min(QUERY_BLOCK, end - row), first_positions[row]]
    return np.array(blocks, np.int64)
