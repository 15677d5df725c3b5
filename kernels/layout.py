"""The memory layout of weights, activations and scratch. Imports no Numba.

**Panels.** A weight matrix w [K, N] is the B operand of a product y = x · w. It is cut into panels
of sixteen columns (LANES), and the rows of a panel lie one below the other. A product walks down
the rows of a panel, so it reads the weights from front to back, for one row of x as for many:

    w [K, N]                           in memory
           panel 0   panel 1
    row 0  0 … 15    16 … 31           panel 0: row 0, row 1, … row K − 1
    row 1  0 … 15    16 … 31           panel 1: row 0, row 1, … row K − 1
    …                                  …

    float32    [N / 16, K, 16]         element (k, n) at n // 16 · (K · 16) + k · 16 + n % 16

Where processors have instructions that multiply several bfloat16 or bytes of one column at once,
these lie side by side:

    bfloat16   [N / 16, K / 2, 16, 2]  rows 2i, 2i + 1 of each column
    int8       [N / 16, K / 4, 16, 4]  rows 4i … 4i + 3 of each column
    int4       [N / 16, K / 8, 16, 4]  byte j: row 8i + j in its low, 8i + 4 + j in its high half

NumPy has no bfloat16: it is stored as its bits in uint16, the upper half of a float32.

**Padding.** K is rounded up to a multiple of K_ALIGN (int8 and int4: of QUANT_BLOCK) and N to a
multiple of N_BLOCK. The padding is zero.

**Quantized weights.** int8 and int4 store integers q. QUANT_BLOCK rows of one column are a block
and share a scale (int4: and an offset), in bfloat16:

    int8       w = scale · q           q from −127 to 127
    int4       w = scale · q + offset  q from 0 to 15

    scales of int8  [N / 16, K / QUANT_BLOCK, 16]
    scales of int4  [N / 16, K / QUANT_BLOCK, 2, 16]     scales, then offsets

**Activations.** The A operand x [M, K] is stored row by row, row_stride(K) elements apart, with
zeros between the rows. Quantized activations (gemm/quantized.py) are rows of int8 that are
qx_stride(K) apart, beside rows of scales that are activation_scales_stride(K) apart.

**Alignment.** Operands of kernels begin with a cache line (`aligned_zeros`). A row of an AMX tile
and a vector of AVX-512 are one cache line each; one that begins elsewhere crosses into a second
line and takes twice as long to load.

Kernels take these arrays flat (1-D), with offsets and strides in elements; view.py bundles them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LANES = 16  # float32 in a vector, on every processor; columns of a panel
K_ALIGN = 32  # K is padded to a multiple of it
N_BLOCK = 64  # columns of y that a task computes together: four panels
QUANT_BLOCK = 64  # rows of a column of quantized weights that share a scale
CACHE_LINE = 64  # bytes
IGNORED = -100  # a target that does not count in the loss
KEY_BLOCK = 256  # keys that attention processes together; a cache's capacity is a multiple of it

# The dtype in which weights are stored; bfloat16 as its bits, int4 in pairs.
STORAGE_DTYPE: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(np.uint8),
}
# Bits of a weight in panels, including its share of scales and offsets.
BITS_PER_WEIGHT: dict[str, float] = {
    "f32": 32,
    "bf16": 16,
    "int8": 8 + 16 / QUANT_BLOCK,
    "int4": 4 + 32 / QUANT_BLOCK,
}
# The dtype of wpe and of the KV cache, by the dtype of the weights.
AUX_DTYPE = {dtype: STORAGE_DTYPE["f32" if dtype == "f32" else "bf16"] for dtype in STORAGE_DTYPE}


def padded(n: int, multiple: int = K_ALIGN) -> int:
    """n rounded up to a multiple."""
    return -(-n // multiple) * multiple


def row_stride(n: int) -> int:
    """Elements from row to row of activations [M, n]: an odd multiple of K_ALIGN.

    Rows a power of two apart would all fall into the same few sets of a cache.
    """
    return padded(n) | K_ALIGN


def qx_stride(n: int) -> int:
    """Elements from row to row of int8 activations [M, n]: an odd multiple of QUANT_BLOCK."""
    return padded(n, QUANT_BLOCK) | QUANT_BLOCK


def activation_scales_stride(n: int) -> int:
    """Elements from row to row of the scales of int8 activations [M, n].

    Two float32 for each block, the scale and the sum of its integers, padded to a cache line.
    """
    return padded(2 * (padded(n, QUANT_BLOCK) // QUANT_BLOCK), LANES)


def panels_size(K: int, N: int) -> int:
    """The number of elements in the panels of a float matrix [K, N]."""
    return padded(K) * padded(N, N_BLOCK)


def qweight_shape(K: int, N: int, dtype: str) -> tuple[int, ...]:
    """The shape, in bytes, of the integer panels of a matrix [K, N]; dtype "int8" or "int4"."""
    return (
        padded(N, N_BLOCK) // LANES,
        padded(K, QUANT_BLOCK) // (8 if dtype == "int4" else 4),
        LANES,
        4,
    )


def scales_shape(K: int, N: int, dtype: str) -> tuple[int, ...]:
    """The shape, in bfloat16, of their scales and, for "int4", offsets."""
    offsets = (2,) if dtype == "int4" else ()
    return padded(N, N_BLOCK) // LANES, padded(K, QUANT_BLOCK) // QUANT_BLOCK, *offsets, LANES


def qweight_size(K: int, N: int, dtype: str) -> int:
    """The number of bytes in the integer panels of a matrix [K, N]."""
    return math.prod(qweight_shape(K, N, dtype))


def scales_size(K: int, N: int, dtype: str) -> int:
    """The number of bfloat16 in their scales and offsets."""
    return math.prod(scales_shape(K, N, dtype))


def aligned_zeros(size: int, dtype: np.dtype[Any] | type) -> np.ndarray:
    """`size` zeros, 1-D, that begin with a cache line."""
    size *= np.dtype(dtype).itemsize
    memory = np.zeros(size + CACHE_LINE, np.uint8)
    first = -memory.ctypes.data % CACHE_LINE
    return memory[first : first + size].view(dtype)


def aligned_arrays(
    sizes: dict[str, int], dtype: np.dtype[Any]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(memory, {name: 1-D array of that size}): zeros in one allocation.

    Each array begins with a cache line. The gaps between them are zeros, too: an operation on the
    elements of all arrays can run over `memory`.
    """
    line = CACHE_LINE // dtype.itemsize
    starts, end = {}, 0
    for name, size in sizes.items():
        starts[name], end = end, end + padded(size, line)
    memory = aligned_zeros(end, dtype)
    return memory, {name: memory[starts[name] :][:size] for name, size in sizes.items()}


def thread_scratch(threads: int, size: int) -> np.ndarray:
    """float32 [threads, at least `size`]: a row of working memory for each thread of a team."""
    size = padded(size, LANES)
    return aligned_zeros(threads * size, np.float32).reshape(threads, size)


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 stored as uint16; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(array: np.ndarray) -> np.ndarray:
    """The bfloat16, as uint16, nearest to each float32; ties to even, NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def unpack_panels(panels: np.ndarray, K: int, N: int) -> np.ndarray:
    """The matrix [K, N] of float panels (1-D), in their dtype."""
    rows = padded(K)
    if panels.dtype == np.uint16:
        matrix = panels.reshape(-1, rows // 2, LANES, 2).transpose(1, 3, 0, 2)
    else:
        matrix = panels.reshape(-1, rows, 1, LANES).transpose(1, 2, 0, 3)
    return matrix.reshape(rows, -1)[:K, :N]


def dequantize_panels(qweight: np.ndarray, scales: np.ndarray, K: int, N: int) -> np.ndarray:
    """The float32 matrix [K, N] of integer panels and their scales (both 1-D)."""
    rows = padded(K, QUANT_BLOCK)
    if qweight.dtype == np.uint8:
        lines = qweight.reshape(-1, rows // 8, LANES, 4)
        halves = np.stack([lines & 15, lines >> 4])  # [2, N / 16, K / 8, 16, 4]
        q = halves.transpose(1, 2, 0, 4, 3).reshape(-1, rows // QUANT_BLOCK, QUANT_BLOCK, LANES)
    else:
        lines = qweight.reshape(-1, rows // 4, LANES, 4)
        q = lines.transpose(0, 1, 3, 2).reshape(-1, rows // QUANT_BLOCK, QUANT_BLOCK, LANES)
    parts = bf16_to_f32(scales).reshape(len(q), rows // QUANT_BLOCK, -1, 1, LANES)
    scale, *offset = np.moveaxis(parts, 2, 0)
    w: np.ndarray = q * scale + offset[0] if offset else q * scale
    return w.transpose(1, 2, 0, 3).reshape(rows, -1)[:K, :N]
