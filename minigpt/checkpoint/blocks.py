"""The encodings of numbers in GGUF files: plain floats, or blocks of integers with a scale.

    F32  F16  BF16    floats
    Q8_0   32 numbers in  34 bytes:  scale d, integers q of 8 bits         d · q
    Q4_0   32 numbers in  18 bytes:  scale d, integers q of 4 bits         d · (q − 8)
    Q6_K  256 numbers in 210 bytes:  integers q of 6 bits, a scale s of
                                     8 bits for each 16 of them, d     d · s · (q − 32)

A block never crosses the end of a row. Q6_K is here because llama.cpp's "Q4_0" files store the
embedding, their largest matrix, in it. Source: ggml-quants.c of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tensors import MappedFile, TensorInfo, chunk_lines

_READ_BYTES = 8 << 20  # of float32, decoded together by `read`

_Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])
_Q4_0 = np.dtype([("d", "<f2"), ("q", "u1", 16)])
_Q6_K = np.dtype([("low", "u1", 128), ("high", "u1", 64), ("s", "i1", 16), ("d", "<f2")])


def _decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = blocks["d"].astype(np.float32)[:, None] * blocks["q"]
    return scaled


def _decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """The low halves of the 16 bytes are the first 16 integers, the high halves the last 16."""
    q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.int8) - np.int8(8)
    return blocks["d"].astype(np.float32)[:, None] * q


def _decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """Two groups of 4 × 32 integers. In each, the low 4 bits of rows 0 and 1 are the low halves of
    64 bytes, those of rows 2 and 3 the high halves; 32 bytes have the high 2 bits of all rows."""
    n = len(blocks)
    low = blocks["low"].reshape(n, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15
    high = blocks["high"].reshape(n, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    q = (low.reshape(n, 2, 4, 32) | high << 4).astype(np.int8) - np.int8(32)
    scales = blocks["d"].astype(np.float32)[:, None] * blocks["s"]
    numbers: np.ndarray = scales[:, :, None] * q.reshape(n, 16, 16)
    return numbers.reshape(n, 256)


@dataclass(frozen=True)
class Encoding:
    """An encoding of numbers.

    name    in TensorInfo.dtype
    type    its code in a GGUF file
    block   the NumPy dtype of a block
    length  the numbers in a block
    decode  [n] blocks → float32 [n, length]; None for plain floats, blocks of one number
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
    """float32 [rows, columns] → flat array of `encoding.block`, row by row; F32, F16 or Q8_0.

    columns is a multiple of `encoding.length`. Q8_0 is rounded as llama.cpp does, to nearest, ties
    away from zero. NaN, infinity and overflow of F16 stay in the result: see `all_finite`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if encoding is Q8_0:
            return _encode_q8_0(numbers.reshape(-1, 32))
        return numbers.reshape(-1).astype(encoding.block, copy=False)


def _encode_q8_0(numbers: np.ndarray) -> np.ndarray:
    d = abs(numbers).max(axis=1) / np.float32(127)
    # a scale below this is 0 in F16, and its inverse might be infinite
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d >= np.finfo(np.float32).tiny)
    scaled = numbers * inverse[:, None]
    truncated = np.trunc(scaled)
    blocks = np.empty(len(numbers), _Q8_0)
    blocks["d"] = d
    blocks["q"] = truncated + np.trunc(2 * (scaled - truncated))
    return blocks


def all_finite(blocks: np.ndarray) -> bool:
    """Whether all numbers, or the scales of all blocks, that `encode` returned are finite."""
    numbers = blocks if blocks.dtype.names is None else blocks["d"]
    return bool(np.isfinite(numbers).all())


@dataclass(frozen=True)
class EncodedTensor:
    """A tensor of a GGUF file.

    info        name and shape as it is read, dtype and bytes as it is stored
    offset      in bytes from the start of the file
    transposed  whether it is a matrix and the file stores its transpose
    """

    info: TensorInfo
    file: MappedFile
    offset: int
    encoding: Encoding
    transposed: bool = False

    def read(self) -> np.ndarray:
        """The tensor: blocks decoded to float32, floats as they are stored, BF16 as uint16 bits.

        Floats are a view of the file. A matrix stored as its transpose is a transposed view.
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
        """(lines, numbers in each) as the file stores them."""
        shape = self.info.shape[::-1] if self.transposed else self.info.shape
        return int(np.prod(shape[:-1])), shape[-1]

    def _blocks(self) -> np.ndarray:
        """[lines, blocks in each], a view of the file"""
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
                # an infinite scale gives NaN, as it does in llama.cpp
                with np.errstate(invalid="ignore"):
                    numbers = decode(part.reshape(-1))
                yield first, numbers.reshape(-1, length)
