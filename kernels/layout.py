"""How numbers lie in memory; free of Numba, which reading a header need not load.

The right factor of a product, [K, N], is held in panels: sixteen columns each, row below row, so
that a product reads it from front to back, whatever the number of rows of the left factor.

    float32   [N / 16, K, 16]
    bfloat16  [N / 16, K / 2, 16, 2]     rows 2i and 2i + 1 side by side
    int8      [N / 16, K / 4, 16, 4]     rows 4i … 4i + 3 side by side
    int4      [N / 16, K / 8, 16, 4]     byte j: row 8i + j in its low half, 8i + 4 + j in its high

K is rounded up to a multiple of K_ALIGN, for int8 and int4 of QUANT_BLOCK, and N to one of
N_BLOCK; what is
added is zero. Rows of activations, [M, C], lie row_stride(C) elements apart; what is between them
is zero, too.

int8 and int4 are whole numbers q: a weight is scale · q, in int4 scale · q + offset with q from 0
to 15. Each QUANT_BLOCK rows of a column have a scale (and an offset) of their own, bfloat16:

    scales of int8  [N / 16, K / QUANT_BLOCK, 16]
    scales of int4  [N / 16, K / QUANT_BLOCK, 2, 16]     scales, then offsets

What a kernel works on begins with a cache line: each row of a tile of AMX, and each vector of
AVX-512, is a line, and one that begins elsewhere lies in two, which takes twice the time.
"""

from __future__ import annotations

import math

import numpy as np

LANES = 16  # float32 in a vector, on every processor; columns of a panel
K_ALIGN = 32  # the rows of a panel are a multiple of it
N_BLOCK = 64  # columns of a matrix that are computed together: four panels
QUANT_BLOCK = 64  # rows of a panel of whole numbers that share a scale
CACHE_LINE = 64  # bytes
IGNORED = -100  # as a target: the row does not count
KEY_BLOCK = 256  # keys that attention takes at a time: a cache's capacity is a multiple of it


# How weights are held; bfloat16 as its bits, int4 as pairs.
STORAGE_DTYPE = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(np.uint8),
}
# Bits of a weight in panels, with its part of scales and offsets.
BITS_PER_WEIGHT = {
    "f32": 32,
    "bf16": 16,
    "int8": 8 + 16 / QUANT_BLOCK,
    "int4": 4 + 32 / QUANT_BLOCK,
}
# What is no factor on the right of a product, beside weights held so: wpe, keys and values.
AUX_DTYPE = {dtype: STORAGE_DTYPE["f32" if dtype == "f32" else "bf16"] for dtype in STORAGE_DTYPE}


def padded(n: int, multiple: int = K_ALIGN) -> int:
    """n, rounded up."""
    return -(-n // multiple) * multiple


def row_stride(n: int) -> int:
    """From row to row of [M, n]: an odd multiple of K_ALIGN, so that the rows of a tile, read
    side by
    side, do not all fall into the same few sets of a cache."""
    return padded(n) | K_ALIGN


def qx_stride(n: int) -> int:
    """The same for rows of whole numbers: an odd multiple of QUANT_BLOCK."""
    return padded(n, QUANT_BLOCK) | QUANT_BLOCK


def activation_scales_stride(n: int) -> int:
    """From row to row of what their blocks are worth, two float32 a block; whole cache lines."""
    return padded(2 * (padded(n, QUANT_BLOCK) // QUANT_BLOCK), LANES)


def panels_size(K: int, N: int) -> int:
    """The elements of the panels of a matrix [K, N]."""
    return padded(K) * padded(N, N_BLOCK)


def qweight_shape(K: int, N: int, dtype: str) -> tuple[int, ...]:
    """Of the panels of whole numbers of a matrix [K, N], in bytes; dtype "int8" or "int4"."""
    return (
        padded(N, N_BLOCK) // LANES,
        padded(K, QUANT_BLOCK) // (8 if dtype == "int4" else 4),
        LANES,
        4,
    )


def scales_shape(K: int, N: int, dtype: str) -> tuple[int, ...]:
    """Of their scales, and in int4 offsets, in bfloat16."""
    offsets = (2,) if dtype == "int4" else ()
    return padded(N, N_BLOCK) // LANES, padded(K, QUANT_BLOCK) // QUANT_BLOCK, *offsets, LANES


def qweight_size(K: int, N: int, dtype: str) -> int:
    """The bytes of the panels of whole numbers of a matrix [K, N]."""
    return math.prod(qweight_shape(K, N, dtype))


def scales_size(K: int, N: int, dtype: str) -> int:
    """The bfloat16 of their scales and offsets."""
    return math.prod(scales_shape(K, N, dtype))


def zeros(size: int, kind: np.dtype | type) -> np.ndarray:
    """Zeros, flat, from the beginning of a cache line on."""
    size *= np.dtype(kind).itemsize
    memory = np.zeros(size + CACHE_LINE, np.uint8)
    first = -memory.ctypes.data % CACHE_LINE
    return memory[first : first + size].view(kind)


def thread_scratch(threads: int, size: int) -> np.ndarray:
    """float32 [threads, at least `size`]: a row of working memory for each thread of a team."""
    size = padded(size, LANES)
    return zeros(threads * size, np.float32).reshape(threads, size)


def bf16_to_f32(halves: np.ndarray) -> np.ndarray:
    """bfloat16 (uint16) to float32, exactly."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def unpack_panels(panels: np.ndarray, K: int, N: int) -> np.ndarray:
    """Panels, flat, as the matrix [K, N] in the same type."""
    rows = padded(K)
    if panels.dtype == np.uint16:
        blocks = panels.reshape(-1, rows // 2, LANES, 2).transpose(1, 3, 0, 2)
    else:
        blocks = panels.reshape(-1, rows, LANES).transpose(1, 0, 2)
    return blocks.reshape(rows, -1)[:K, :N]


def dequantize_panels(numbers: np.ndarray, scales: np.ndarray, K: int, N: int) -> np.ndarray:
    """Whole numbers and their scales, flat, as the matrix [K, N] in float32."""
    rows = padded(K, QUANT_BLOCK)
    if numbers.dtype == np.uint8:
        lines = numbers.reshape(-1, rows // 8, LANES, 4)
        halves = np.stack([lines & 15, lines >> 4])  # [2, panels, lines, 16, 4]
        q = halves.transpose(1, 2, 0, 4, 3).reshape(-1, rows // QUANT_BLOCK, QUANT_BLOCK, LANES)
    else:
        lines = numbers.reshape(-1, rows // 4, LANES, 4)
        q = lines.transpose(0, 1, 3, 2).reshape(-1, rows // QUANT_BLOCK, QUANT_BLOCK, LANES)
    parts = bf16_to_f32(scales).reshape(len(q), rows // QUANT_BLOCK, -1, 1, LANES)
    scale, *offset = np.moveaxis(parts, 2, 0)
    w = q * scale + offset[0] if offset else q * scale
    return w.transpose(1, 2, 0, 3).reshape(rows, -1)[:K, :N]
