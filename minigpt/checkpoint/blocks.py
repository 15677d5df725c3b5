"""How a GGUF file holds numbers: one by one, or in blocks of small integers with a common scale.

    F32  F16  BF16    one number after the other
    Q8_0   32 numbers in  34 bytes:  scale d, integers q of 8 bits         d · q
    Q4_0   32 numbers in  18 bytes:  scale d, integers q of 4 bits         d · (q − 8)
    Q6_K  256 numbers in 210 bytes:  integers q of 6 bits, a scale s of
                                     8 bits for each 16 of them, d     d · s · (q − 32)

A block never crosses the end of a row. llama.cpp's own "Q4_0" files hold their largest matrix,
the embedding, as Q6_K, which is why that is here. The formats are ggml's, see ggml-quants.c of
https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tensors import MappedFile, TensorInfo, chunk_lines

_READ_BYTES = 8 << 20  # of float32 that `read` decodes at once

_Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])
_Q4_0 = np.dtype([("d", "<f2"), ("q", "u1", 16)])
_Q6_K = np.dtype([("low", "u1", 128), ("high", "u1", 64), ("s", "i1", 16), ("d", "<f2")])


def _decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    return blocks["d"].astype(np.float32)[:, None] * blocks["q"]


def _decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """The low halves of the 16 bytes are the first 16 integers, the high halves the others."""
    q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.int8) - np.int8(8)
    return blocks["d"].astype(np.float32)[:, None] * q


def _decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """Twice 128 integers, as four rows of 32: their low 4 bits from two rows of bytes, two rows
    of integers in each, and their high 2 bits from one row of bytes."""
    n = len(blocks)
    low = blocks["low"].reshape(n, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15
    high = blocks["high"].reshape(n, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    q = (low.reshape(n, 2, 4, 32) | high << 4).astype(np.int8) - np.int8(32)
    scales = blocks["d"].astype(np.float32)[:, None] * blocks["s"]
    return (scales[:, :, None] * q.reshape(n, 16, 16)).reshape(n, 256)


@dataclass(frozen=True)
class Encoding:
    """A way to hold numbers.

    name    as TensorInfo.dtype names it
    type    its number in a GGUF file
    block   the NumPy type of a block
    length  how many numbers a block holds
    decode  [n] blocks → float32 [n, length]; None where a block is a number
    """

    name: str
    type: int
    block: np.dtype[Any]
    length: int
    decode: Callable[[np.ndarray], np.ndarray] | None = None


F32 = Encoding("F32", 0, np.dtype("<f4"), 1)
F16 = Encoding("F16", 1, np.dtype("<f2"), 1)
BF16 = Encoding("BF16", 30, np.dtype("<u2"), 1)  # the bits
Q8_0 = Encoding("Q8_0", 8, _Q8_0, 32, _decode_q8_0)
Q4_0 = Encoding("Q4_0", 2, _Q4_0, 32, _decode_q4_0)
Q6_K = Encoding("Q6_K", 14, _Q6_K, 256, _decode_q6_k)
ENCODINGS = {encoding.type: encoding for encoding in (F32, F16, BF16, Q8_0, Q4_0, Q6_K)}


def encode(numbers: np.ndarray, encoding: Encoding) -> np.ndarray:
    """float32 [rows, columns] as F32, F16 or Q8_0; columns are a multiple of `encoding.length`.

    Q8_0 is rounded as llama.cpp rounds it, to the nearest, halves away from zero. Returns an
    array of `encoding.block`, one row after the other. What is too large for 16 bits, or no
    number, becomes so too: see `all_finite`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if encoding is Q8_0:
            return _encode_q8_0(numbers.reshape(-1, 32))
        return numbers.reshape(-1).astype(encoding.block, copy=False)


def _encode_q8_0(numbers: np.ndarray) -> np.ndarray:
    d = abs(numbers).max(axis=1) / np.float32(127)
    # a scale below this is 0 in 16 bits, and its inverse might be infinite
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d >= np.finfo(np.float32).tiny)
    scaled = numbers * inverse[:, None]
    whole = np.trunc(scaled)
    blocks = np.empty(len(numbers), _Q8_0)
    blocks["d"] = d
    blocks["q"] = whole + np.trunc(2 * (scaled - whole))
    return blocks


def all_finite(blocks: np.ndarray) -> bool:
    """Whether no number, or no scale, of what `encode` returned is infinite or NaN."""
    numbers = blocks if blocks.dtype.names is None else blocks["d"]
    return bool(np.isfinite(numbers).all())


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor of a GGUF file.

    info        its shape and name as it is read, its type and bytes as it is stored
    offset      where it lies, in bytes from the file's start
    transposed  it is a matrix, and the file holds its transpose
    """

    info: TensorInfo
    file: MappedFile
    offset: int
    encoding: Encoding
    transposed: bool = False

    def read(self) -> np.ndarray:
        """The tensor: float32 where it is stored in blocks, decoded; else as it is stored.

        BF16 comes as the uint16 bits. What needs no decoding is a view of the file; a transposed
        matrix is a transposed view.
        """
        blocks = self._blocks()
        if self.encoding.decode is None:
            lines = np.require(blocks, blocks.dtype.newbyteorder("="), ["A"])
        else:
            lines = np.empty(self._stored_shape(), np.float32)
            for first, part in self._decoded(blocks, _READ_BYTES):
                lines[first : first + len(part)] = part
        if self.transposed:
            return lines.T
        return lines.reshape(self.info.shape)

    def chunks(self, nbytes: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first row, first column, chunk) of a matrix, each chunk as `read` returns it.

        A chunk takes about `nbytes`, and is decoded when it is asked for. It has whole rows; of a
        transposed matrix whole columns, as a transposed view.
        """
        for first, part in self._decoded(self._blocks(), nbytes):
            yield (0, first, part.T) if self.transposed else (first, 0, part)

    def _stored_shape(self) -> tuple[int, int]:
        """(lines, numbers in each) as the file holds it."""
        shape = self.info.shape[::-1] if self.transposed else self.info.shape
        return int(np.prod(shape[:-1])), shape[-1]

    def _blocks(self) -> np.ndarray:
        """[lines, blocks in each], a view of the file."""
        lines, length = self._stored_shape()
        block = self.encoding.block
        count = lines * length // self.encoding.length
        return np.frombuffer(self.file.data, block, count, self.offset).reshape(lines, -1)

    def _decoded(self, blocks: np.ndarray, nbytes: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first line, lines), about `nbytes` at a time."""
        decode, (count, length) = self.encoding.decode, self._stored_shape()
        itemsize = blocks.itemsize if decode is None else 4
        step = chunk_lines(nbytes, length * itemsize)
        for first in range(0, count, step):
            part = blocks[first : first + step]
            if decode is None:
                yield first, np.require(part, part.dtype.newbyteorder("="), ["A"])
            else:
                # a scale that is no number makes numbers that are none, as it does in llama.cpp
                with np.errstate(invalid="ignore"):
                    numbers = decode(part.reshape(-1))
                yield first, numbers.reshape(-1, length)
