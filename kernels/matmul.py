"""Linear layers, y = x · w + bias: most of the time and almost all of the weights of a GPT.

Packed weights lie in panels (layout.py) or are quantized (gemm/quantized.py): matmul_forward reads
them from front to back, one row of x at the speed of memory, many rows at the speed of arithmetic.
Inference packs weights once, at load time (PackedLinear). Training changes them at every step, so
`linear` packs them just before it multiplies (PlainLinear).

The order of each sum is part of the definition, so an element has the same bits for any number of
rows and threads: blocks of K_BLOCK terms, each summed as gemm/gemm.py defines, are added to 0 one
after the other, then comes the bias. Quantized weights have blocks and sums of their own
(gemm/quantized.py), and their activations are quantized first.

docs/kernels.md goes from three nested loops to this kernel step by step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .activation import GELU_ROUNDED, activate, activation_forward, gelu_rounded
from .gemm.gemm import configure_tiles, gemm_accumulate, release_tiles
from .gemm.packing import pack_operand, transpose_rows
from .gemm.quantized import (
    QuantizedMatrix,
    dequantized_element,
    gemm_accumulate_int,
    quantize_activations,
    quantized_at,
)
from .jit import I64_0, I64_1, dispatch_on_types, dtype_of, expand, is_instance, jit
from .layout import LANES, N_BLOCK, padded, panels_size, qx_stride
from .simd import (
    AMX,
    AMX_INT_SCRATCH,
    array_at,
    get,
    load,
    load_first,
    panel_offset,
    splat,
    store,
    store_first,
)
from .team import barrier, next_task
from .view import View, copy_rows, view

# Terms of a block. A panel's block, 48 KiB of float32, passes from L2 through the L1 cache once for
# each tile of rows: that costs less than partial sums that would be stored and reloaded more often
# with shorter blocks. Two panels' blocks of bfloat16 stay in L1, as AMX needs.
K_BLOCK = 512 if AMX else 768

# int64, not literals, for each of which Numba would compile the callee once more (see jit.py)
NO_ACTIVATION = np.int64(-1)
SET, ADD = np.int64(0), np.int64(1)  # matmul_forward's modes: y = …, y += …
_N_BLOCK, _PANELS = np.array([N_BLOCK, N_BLOCK // LANES])
_UNSCALED = np.float32(1)

_ROW_UNIT = 32 if AMX else 96  # a multiple of the rows of the largest tile
# Rows of x that pass each block of a panel. Every so many rows the weights come from memory once
# more. With AMX, which waits for them most, two passes do for a prompt of 512, and the rows of the
# widest product of 111M, 1.5 MiB of bfloat16, still stay in L2.
_ROWS = 256 if AMX else 192

_SUMS = _ROWS * N_BLOCK
# float32 elements of scratch that a thread needs here: the sums of one task, and AMX's own
MATMUL_SCRATCH = _SUMS + AMX_INT_SCRATCH


class PackedLinear(NamedTuple):
    """A linear layer of inference.

    w     the weights [K, N]: panels, flat, float32 or bfloat16; or a QuantizedMatrix
    bias  float32 [N], or empty for none
    """

    w: np.ndarray | QuantizedMatrix
    bias: np.ndarray
    K: int
    N: int


class PlainLinear(NamedTuple):
    """A linear layer of training, or its gradients.

    w     float32 [K, N], flat, as in the checkpoint
    bias  float32 [N], or empty for none
    """

    w: np.ndarray
    bias: np.ndarray
    K: int
    N: int


class LinearWorkspace(NamedTuple):
    """The operands that PlainLinear's products pack, flat; their dtypes are those multiplied.

    panels  the largest B operand: w [K, N], and in linear_backward dy [M, N] and wᵀ [N, K]
    rows    the largest A operand of linear_backward: xᵀ [K, M], rows row_stride(M) apart; and
            dy [M, N], where it has another dtype
    """

    panels: np.ndarray
    rows: np.ndarray


# ---- linear layers --------------------------------------------------------------------------


@expand
def linear(team, y, x, layer, mode, workspace):
    """y = x · w + bias in mode SET, y += x · w + bias in mode ADD.

    y, x       View [M, N], [M, K]
    layer      PackedLinear or PlainLinear
    workspace  for PlainLinear a LinearWorkspace; for PackedLinear QuantizedActivations, which
               float weights leave alone
    """
    w = packed_weights(team, layer, workspace)
    x = prepare_activations(team, x, w, workspace)
    matmul_forward(team, y, x, w, layer.bias, mode, NO_ACTIVATION, _UNSCALED)


@dispatch_on_types
def linear_activation(team, y, pre, x, layer, activation, workspace):
    """y = activation(x · w + bias)

    pre  View [M, N], in which x · w + bias is saved for backward; or None, and the kernel applies
         the activation before it writes y
    """

    def fused(team, y, pre, x, layer, activation, workspace):
        w = packed_weights(team, layer, workspace)
        x = prepare_activations(team, x, w, workspace)
        matmul_forward(team, y, x, w, layer.bias, SET, activation, _UNSCALED)

    def saving(team, y, pre, x, layer, activation, workspace):
        linear(team, pre, x, layer, SET, workspace)
        activation_forward(team, y, pre, activation)

    return saving if is_instance(pre, View) else fused


@expand
def linear_backward(team, dx, dlayer, dy, x, layer, mode, workspace):
    """The gradients of y = x · w + bias from dy = ∂loss/∂y.

        dbias += Σ_m dy[m]          dw += xᵀ · dy          dx = dy · wᵀ

    dx, x      View [M, K]; x as `linear` read it
    dlayer     PlainLinear: dw and dbias
    dy         View [M, N]
    layer      PlainLinear
    mode       ADD; or SET, which overwrites dw
    workspace  LinearWorkspace
    """
    linear_backward_input(team, dx, dy, layer, workspace)
    linear_backward_weights(team, dlayer, dy, x, mode, workspace)


@expand
def linear_backward_input(team, dx, dy, layer, workspace):
    """dx = dy · wᵀ, the first part of linear_backward."""
    panels, no_bias = workspace.panels, layer.bias[:0]
    pack_operand(team, panels, layer.w, I64_0, layer.N, layer.K, I64_1, layer.N)
    dy = cast_activations(team, workspace.rows, dy)
    matmul_forward(team, dx, dy, panels, no_bias, SET, NO_ACTIVATION, _UNSCALED)


@expand
def linear_backward_weights(team, dlayer, dy, x, mode, workspace):
    """dbias += Σ_m dy[m] and dw += xᵀ · dy, the second part of linear_backward."""
    M, K, N = x.M, dlayer.K, dlayer.N
    panels, no_bias = workspace.panels, dlayer.bias[:0]
    bias_backward(team, dlayer.bias, dy)
    x_t = view(workspace.rows, K, M)
    transpose_rows(team, x_t.data, x_t.ld, x.data, x.ld, M, K)
    pack_operand(team, panels, dy.data, I64_0, M, N, dy.ld, I64_1)
    dw = View(dlayer.w, K, N, N)
    matmul_forward(team, dw, x_t, panels, no_bias, mode, NO_ACTIVATION, _UNSCALED)


@jit
def bias_backward(team, dbias, dy):
    """dbias[n] += Σ_m dy[m, n], for each n in the order of m."""
    N = dbias.size
    task = next_task(team)
    while task * N_BLOCK < N:
        for n in range(task * N_BLOCK, min(N, (task + 1) * N_BLOCK), LANES):
            lanes = min(LANES, N - n)
            total = splat(np.float32(0))
            for m in range(dy.M):
                total = total + load_first(dy.data, m * dy.ld + n, lanes)
            store_first(load_first(dbias, n, lanes) + total, dbias, n, lanes)
        task = next_task(team)
    barrier(team)


# ---- the kernel -----------------------------------------------------------------------------


@jit
def matmul_forward(team, y, x, w, bias, mode, activation, scale):
    """y = activation(scale · x · w + bias) in mode SET, activation(y + scale · x · w + bias) in
    mode ADD.

    y           View [M, N], float32 or bfloat16
    x           View [M, K], as prepare_activations returns it
    w           [K, N]: panels, or a QuantizedMatrix
    bias        float32 [N], or empty for none
    activation  one of activation.py's, or NO_ACTIVATION
    scale       float32

    A task is N_BLOCK columns of some rows. K_BLOCK rows of a panel stay in the caches while the
    task's rows of x pass.
    """
    M, N = y.M, y.N
    column_blocks = (N + N_BLOCK - 1) // N_BLOCK
    chunk = _rows_per_task(M)
    tasks = column_blocks * ((M + chunk - 1) // chunk)
    sums = team.scratch
    configure_tiles(x.data)
    task = next_task(team)
    while task < tasks:
        m, column_block = task // column_blocks * chunk, task % column_blocks
        rows = min(chunk, M - m)
        sums[: rows * N_BLOCK] = 0
        _accumulate(sums, sums[_SUMS:], x, w, m, rows, column_block)
        _write(y, sums, m, rows, column_block * N_BLOCK, bias, mode, activation, scale)
        task = next_task(team)
    release_tiles(x.data)
    barrier(team)


@jit
def _rows_per_task(M):
    """M rounded up to a multiple of _ROW_UNIT; above _ROWS, even parts of such units."""
    parts = (M + _ROWS - 1) // _ROWS
    return (M + parts * _ROW_UNIT - 1) // (parts * _ROW_UNIT) * _ROW_UNIT


@jit
def _accumulate_float(sums, x, w, m, rows, column_block):
    """sums[rows, N_BLOCK] += x[m : m + rows, :] · N_BLOCK columns of the panels w."""
    K = x.N
    depth = padded(K)
    for k in range(0, K, K_BLOCK):
        gemm_accumulate(
            sums, I64_0, _N_BLOCK, x.data, m * x.ld + k, x.ld,
            w, column_block * N_BLOCK * depth + k * LANES, depth * LANES,
            rows, _PANELS, min(K_BLOCK, K - k),
        )  # fmt: skip


@jit
def _write(y, sums, m, rows, n, bias, mode, activation, scale):
    """Scale, bias, addition and activation from a task's sums to its part of y, in one pass."""
    for row in range(rows):
        for c in range(0, min(N_BLOCK, y.N - n), LANES):
            lanes = min(LANES, y.N - n - c)
            offset = (m + row) * y.ld + n + c
            value = load(sums, row * N_BLOCK + c) * splat(scale)
            if bias.size:
                value = value + load_first(bias, n + c, lanes)
            if mode == ADD:
                value = value + load_first(y.data, offset, lanes)
            if activation == GELU_ROUNDED:  # most of all in inference; `activate` is a call
                value = gelu_rounded(value)
            elif activation != NO_ACTIVATION:
                value = activate(value, activation)
            if lanes == LANES:
                store(value, y.data, offset)
            else:
                store_first(value, y.data, offset, lanes)


# ---- float or quantized, packed or plain: chosen by type when Numba compiles -------------------


@dispatch_on_types
def _accumulate(sums, scratch, x, w, m, rows, column_block):
    """sums[rows, N_BLOCK] += x[m : m + rows, :] · N_BLOCK columns of w."""
    if is_instance(w, QuantizedMatrix):
        return lambda sums, scratch, x, w, m, rows, column_block: gemm_accumulate_int(
            sums, I64_0, _N_BLOCK, x.data, m, w, column_block, rows, x.N, scratch
        )
    return lambda sums, scratch, x, w, m, rows, column_block: _accumulate_float(
        sums, x, w, m, rows, column_block
    )


@dispatch_on_types
def packed_weights(team, layer, workspace):
    """A layer's weights as matmul_forward reads them: a PackedLinear's own, a PlainLinear's packed
    into workspace.panels."""
    if is_instance(layer, PackedLinear):
        return lambda team, layer, workspace: layer.w

    def pack(team, layer, workspace):
        K, N = layer.K, layer.N
        pack_operand(team, workspace.panels, layer.w, I64_0, K, N, N, I64_1)
        return workspace.panels

    return pack


@dispatch_on_types
def prepare_activations(team, x, w, buffer):
    """x as matmul_forward multiplies it by w: x itself for float weights, quantized for int8 and
    int4.

    x       View [M, K]: float32; or bfloat16, where BF16_PRODUCTS and w are
    buffer  QuantizedActivations for M rows, and for one row per thread
    """
    if not is_instance(w, QuantizedMatrix):
        return lambda team, x, w, buffer: x

    def quantize(team, x, w, buffer):
        qx = quantize_activations(team, buffer, x.data, x.ld, x.M, x.N)
        return View(qx, x.M, x.N, qx_stride(x.N))

    return quantize


@dispatch_on_types
def cast_activations(team, rows, x):
    """The View x in the dtype of `rows`: x itself, or a copy in `rows`."""
    if dtype_of(rows) == dtype_of(x.types[0]):
        return lambda team, rows, x: x

    def copy(team, rows, x):
        y = View(rows, x.M, x.N, x.ld)
        copy_rows(team, y, x)
        return y

    return copy


@dispatch_on_types
def packed_weights_at(address, scales, K, N, like):
    """The packed weights [K, N] at an address, of the type of `like`, panels or QuantizedMatrix.

    scales  the address of the scales of a QuantizedMatrix
    """
    if is_instance(like, QuantizedMatrix):
        return lambda address, scales, K, N, like: quantized_at(address, scales, K, N, like)
    return lambda address, scales, K, N, like: array_at(address, panels_size(K, N), like)


@dispatch_on_types
def weight_at(w, k, n, K):
    """The weight in row k and column n of packed weights w of K rows, float32."""
    if is_instance(w, QuantizedMatrix):
        return lambda w, k, n, K: dequantized_element(w, k, n, K)
    return lambda w, k, n, K: get(w, n // LANES * LANES * padded(K) + panel_offset(w, k, n % LANES))
