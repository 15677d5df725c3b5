"""Products with weights. Everything a GPT does between two nonlinearities is one of these.

    y = x · w + bias

The weights lie in panels (layout.py), packed once when they are loaded, so that a product reads
each from front to back: one token at the speed of memory, many at the speed of arithmetic.

How an element is summed is part of the definition, so that it has the same bits whatever the
number of rows and of threads: blocks of K_BLOCK terms, as products.py sums them, are added up
one by one from 0; then comes the bias. Weights that are whole numbers have their own blocks and
sums (codes.py), and take a left factor that is made whole first.

docs/kernels.md tells how one gets from three nested loops to this.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core import types
from numba.extending import overload

from .activation import activate
from .gemm.gemm import configure_tiles, gemm_accumulate, release_tiles
from .gemm.packing import copy_rows, pack_operand, transpose_rows
from .gemm.quantized import (
    QuantizedMatrix,
    dequantized_element,
    gemm_accumulate_int,
    quantize_activations,
    quantized_at,
)
from .jit import jit
from .layout import LANES, N_BLOCK, padded, panels_size, qx_stride, row_stride
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

# Terms that are summed at a time. A panel's block, 48 KiB of float32, then passes from L2 through
# the L1 cache for every tile's rows: that costs less than sums that come and go more often. Two
# panels' blocks of bfloat16 stay in L1, which is AMX's need.
K_BLOCK = 512 if AMX else 768

# Typed numbers, so that Numba compiles one function for all of them and not one for each.
NO_ACTIVATION = np.int64(-1)
SET, ADD = np.int64(0), np.int64(1)  # what happens to y: y = …, y += …
_START, _ONE, _GROUP, _PANELS = np.array([0, 1, N_BLOCK, N_BLOCK // LANES])

_ROW_UNIT = 96  # a multiple of every tile's rows
_ROWS = 2 * _ROW_UNIT  # rows of x that pass each block of a panel

_SUMS = _ROWS * N_BLOCK
# float32 elements of scratch that a thread needs here: the sums of one task, and AMX's own
MATMUL_SCRATCH = _SUMS + AMX_INT_SCRATCH


@jit
def matmul_forward(team, y, ldy, x, ldx, w, bias, M, K, N, mode, activation, scale):
    """y = scale · x · w + bias in mode SET, y += … in mode ADD; then the activation, if any.

    y     [M, N], rows `ldy` apart
    x     [M, K], rows `ldx` apart: what prepare_activations returns
    w     [K, N]: panels, or QuantizedMatrix
    bias  [N], or empty for none
    activation  a number of activation.py, or NO_ACTIVATION

    A task is N_BLOCK columns of some rows. x and w are read through the caches: K_BLOCK of a panel
    stay near while the task's rows pass.
    """
    groups = (N + N_BLOCK - 1) // N_BLOCK
    chunk = _chunk(M)
    tasks = groups * ((M + chunk - 1) // chunk)
    sums = team.scratch
    configure_tiles(x)
    task = next_task(team)
    while task < tasks:
        m, group = task // groups * chunk, task % groups
        rows = min(chunk, M - m)
        sums[: rows * N_BLOCK] = 0
        _add_group(sums, sums[_SUMS:], x, m, ldx, w, group, rows, K)
        _finish(sums, y, ldy, m, group * N_BLOCK, bias, rows, N, mode, activation, scale)
        task = next_task(team)
    release_tiles(x)
    barrier(team)


class Room(NamedTuple):
    """What matmul_backward needs for the factors that it makes, flat; also their types.

    panels  of the largest right factor: of dy [M, N] and of wᵀ [N, K]
    rows    of the largest left factor: of xᵀ [K, M], K rounded up to LANES, row_stride(M) apart;
            of dy [M, N], where the other has not the type that is multiplied
    """

    panels: np.ndarray
    rows: np.ndarray


@jit
def matmul_backward(team, dx, lddx, dw, dbias, dy, lddy, x, ldx, w, room, M, K, N):
    """From dy = ∂loss/∂y of y = x · w + bias: dx, and what is to be added to dw and dbias.

        dbias += Σ_m dy[m]          dw += xᵀ · dy          dx = dy · wᵀ

    dx, dy  [M, K], [M, N], rows `lddx`, `lddy` apart
    x       [M, K], rows `ldx` apart, as matmul_forward had it
    dw, w   float32 [K, N], flat, without padding
    dbias   float32 [N], or empty for none
    """
    no_bias, one = dw[:0], np.float32(1)
    bias_backward(team, dbias, dy, lddy, M, dbias.size)
    transpose_rows(team, room.rows, row_stride(M), x, ldx, M, K)
    pack_operand(team, room.panels, dy, _START, M, N, lddy, _ONE)
    matmul_forward(
        team, dw, N, room.rows, row_stride(M), room.panels, no_bias, K, M, N,
        ADD, NO_ACTIVATION, one,
    )  # fmt: skip
    pack_operand(team, room.panels, w, _START, N, K, _ONE, N)
    left = cast_activations(team, room.rows, dy, lddy, M, N)
    matmul_forward(
        team, dx, lddx, left, lddy, room.panels, no_bias, M, N, K,
        SET, NO_ACTIVATION, one,
    )  # fmt: skip


@jit
def bias_backward(team, dbias, dy, lddy, M, N):
    """dbias[n] += Σ_m dy[m, n], for each n in the order of m."""
    task = next_task(team)
    while task * N_BLOCK < N:
        for n in range(task * N_BLOCK, min(N, (task + 1) * N_BLOCK), LANES):
            lanes = min(LANES, N - n)
            total = splat(np.float32(0))
            for m in range(M):
                total = total + load_first(dy, m * lddy + n, lanes)
            store_first(load_first(dbias, n, lanes) + total, dbias, n, lanes)
        task = next_task(team)
    barrier(team)


@jit
def _accumulate_float(sums, x, m, ldx, w, group, rows, K):
    """sums[rows, N_BLOCK] += x[m : m + rows, :] · N_BLOCK columns of w."""
    depth = padded(K)
    for k in range(0, K, K_BLOCK):
        gemm_accumulate(
            sums, _START, _GROUP, x, m * ldx + k, ldx,
            w, group * N_BLOCK * depth + k * LANES, depth * LANES,
            rows, _PANELS, min(K_BLOCK, K - k),
        )  # fmt: skip


@jit
def _chunk(M):
    """The rows of a task: all up to _ROWS, else as even parts as whole tiles permit."""
    parts = (M + _ROWS - 1) // _ROWS
    return (M + parts * _ROW_UNIT - 1) // (parts * _ROW_UNIT) * _ROW_UNIT


@jit
def _finish(sums, y, ldy, m, n, bias, rows, N, mode, activation, scale):
    """From a task's sums to its part of y, in one pass."""
    for row in range(rows):
        for c in range(0, min(N_BLOCK, N - n), LANES):
            lanes = min(LANES, N - n - c)
            offset = (m + row) * ldy + n + c
            value = load(sums, row * N_BLOCK + c) * splat(scale)
            if bias.size:
                value = value + load_first(bias, n + c, lanes)
            if mode == ADD:
                value = value + load_first(y, offset, lanes)
            if activation != NO_ACTIVATION:
                value = activate(value, activation)
            if lanes == LANES:
                store(value, y, offset)
            else:
                store_first(value, y, offset, lanes)


# ---- float or quantized weights: compiling a kernel for one does not compile the other -------


def _is_quantized(w: Any) -> bool:
    return isinstance(w, types.NamedTuple) and w.instance_class is QuantizedMatrix


def _add_group(
    sums: Any, scratch: Any, x: Any, m: Any, ldx: Any, w: Any, group: Any, rows: Any, K: Any
) -> None:
    """sums[rows, N_BLOCK] += x[m : m + rows, :] · N_BLOCK columns of w."""
    raise NotImplementedError("for compiled code")


@overload(_add_group)
def _add_group_for(sums, scratch, x, m, ldx, w, group, rows, K):
    if not _is_quantized(w):
        return lambda sums, scratch, x, m, ldx, w, group, rows, K: _accumulate_float(
            sums, x, m, ldx, w, group, rows, K
        )
    return lambda sums, scratch, x, m, ldx, w, group, rows, K: gemm_accumulate_int(
        sums, _START, _GROUP, x, m, w, group, rows, K, scratch
    )


def prepare_activations(team: Any, room: Any, x: Any, ldx: Any, w: Any, M: Any, K: Any) -> Any:
    """(x, ldx) as matmul_forward multiplies them with w: as they are, or made whole in `room`.

    x     [M, K], rows `ldx` apart: float32; bfloat16 where the processor multiplies that (see
          products.py)
    room  Rows, as quantize_activations wants them
    """
    raise NotImplementedError("for compiled code")


@overload(prepare_activations)
def _prepare_activations(team, room, x, ldx, w, M, K):
    if not _is_quantized(w):
        return lambda team, room, x, ldx, w, M, K: (x, ldx)
    return lambda team, room, x, ldx, w, M, K: (
        quantize_activations(team, room, x, ldx, M, K),
        qx_stride(K),
    )


def cast_activations(team: Any, room: Any, x: Any, ldx: Any, M: Any, K: Any) -> Any:
    """x [M, K] as a left factor of the type of `room`: itself, or a copy in `room`, rounded."""
    raise NotImplementedError("for compiled code")


@overload(cast_activations)
def _cast_activations(team, room, x, ldx, M, K):
    if room.dtype == x.dtype:
        return lambda team, room, x, ldx, M, K: x

    def copy(team, room, x, ldx, M, K):
        copy_rows(team, room, x, ldx, M, K)
        return room

    return copy


def matrix_at(address: Any, scales: Any, K: Any, N: Any, like: Any) -> Any:
    """The weights [K, N] at an address, of the type of `like`; `scales` is 0 for float weights."""
    raise NotImplementedError("for compiled code")


@overload(matrix_at)
def _matrix_at(address, scales, K, N, like):
    if not _is_quantized(like):
        return lambda address, scales, K, N, like: array_at(address, panels_size(K, N), like)
    return lambda address, scales, K, N, like: quantized_at(address, scales, K, N, like)


def weight(w: Any, k: Any, n: Any, K: Any) -> Any:
    """The element in row k and column n of w, which has K rows."""
    raise NotImplementedError("for compiled code")


@overload(weight)
def _weight(w, k, n, K):
    if _is_quantized(w):
        return lambda w, k, n, K: dequantized_element(w, k, n, K)
    return lambda w, k, n, K: get(w, n // LANES * LANES * padded(K) + panel_offset(w, k, n % LANES))
