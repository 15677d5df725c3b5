"""The encodings of numbers in GGUF files: plain floats, or blocks of small integers with scales.

    F32  F16  BF16   floats

            numbers  bytes                       bits of q
    Q4_0      32       18   d · (q − 8)              4
    Q4_1      32       20   d · q + m                4
    Q5_0      32       22   d · (q − 16)             5
    Q5_1      32       24   d · q + m                5
    Q8_0      32       34   d · q                    8, signed
    Q2_K     256       84   d · s · q − m · t        2    s, t for each 16 numbers, of 4 bits
    Q3_K     256      110   d · (s − 32) · (q − 4)   3    s    for each 16, of 6 bits
    Q4_K     256      144   d · s · q − m · t        4    s, t for each 32, of 6 bits
    Q5_K     256      176   d · s · q − m · t        5    s, t for each 32, of 6 bits
    Q6_K     256      210   d · s · (q − 32)         6    s    for each 16, of 8 bits, signed
    IQ4_NL    32       18   d · v[q]                 4
    IQ4_XS   256      136   d · (s − 32) · v[q]      4    s    for each 32, of 6 bits

d and m are float16, one of each in a block; v is a table of 16 integers. The formulas are computed
in float32, from left to right, as llama.cpp's Python package does: the numbers are equal bit for
bit. A block never crosses the end of a row. docs/gguf.md explains how the integers are packed.
Source: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tensors import MappedFile, TensorInfo, chunk_lines

_STEP = 1 << 17  # numbers decoded together: what their arithmetic needs stays in a core's cache

# The fields of a block in the order of its bytes: d and m, its scales; s, t and st, those of its
# parts; q, its integers, or their low and high bits.
_Q4_0 = np.dtype([("d", "<f2"), ("q", "u1", 16)])
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
_Q5_0 = np.dtype([("d", "<f2"), ("high", "u1", 4), ("low", "u1", 16)])
_Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("low", "u1", 16)])
_Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])
_Q2_K = np.dtype([("st", "u1", 16), ("q", "u1", 64), ("d", "<f2"), ("m", "<f2")])
_Q3_K = np.dtype([("high", "u1", 32), ("low", "u1", 64), ("s", "u1", 12), ("d", "<f2")])
_Q4_K = np.dtype([("d", "<f2"), ("m", "<f2"), ("st", "u1", 12), ("q", "u1", 128)])
_Q5_K = np.dtype(
    [("d", "<f2"), ("m", "<f2"), ("st", "u1", 12), ("high", "u1", 32), ("low", "u1", 128)]
)
_Q6_K = np.dtype([("low", "u1", 128), ("high", "u1", 64), ("s", "i1", 16), ("d", "<f2")])
_IQ4_XS = np.dtype([("d", "<f2"), ("s_high", "u1", 2), ("s_low", "u1", 4), ("q", "u1", 128)])

_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)


def _unpacked(packed: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Integers of a few bits, uint8 [n, bytes · 8 / bits], from uint8 [n, bytes].

    A group of bytes holds integers in the lowest bits of each of its bytes, then in the bits above,
    and so on.
    """
    groups = packed.reshape(len(packed), -1, group)
    integers = np.empty((*groups.shape[:2], 8 // bits, group), np.uint8)
    for row in range(8 // bits):
        np.right_shift(groups, row * bits, out=integers[:, :, row])
    integers &= np.uint8((1 << bits) - 1)
    return integers.reshape(len(packed), -1)


def _minus(q: np.ndarray, offset: int) -> np.ndarray:
    """q − offset, as int8."""
    signed: np.ndarray = q.view(np.int8) - np.int8(offset)
    return signed


def _scales(blocks: np.ndarray, name: str) -> np.ndarray:
    """`d` or `m` of each block, float32 [n, 1]."""
    return blocks[name].astype(np.float32)[:, None]


def _linear(q: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None) -> np.ndarray:
    """scale · q + offset, float32 [n, length]; q is [n, length], the others [n, parts]."""
    n, parts = scale.shape
    numbers = q.reshape(n, parts, -1).astype(np.float32)
    numbers *= scale[:, :, None]
    if offset is not None:
        numbers += offset[:, :, None]
    return numbers.reshape(q.shape)


def _decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    return _linear(_minus(_unpacked(blocks["q"], 4, 16), 8), _scales(blocks, "d"))


def _decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    return _linear(_unpacked(blocks["q"], 4, 16), _scales(blocks, "d"), _scales(blocks, "m"))


def _five_bits(blocks: np.ndarray) -> np.ndarray:
    """q of Q5_0 and Q5_1, whose high bits are one number of 32 bits, the first the lowest."""
    q = np.unpackbits(blocks["high"], axis=1, bitorder="little") << 4
    q |= _unpacked(blocks["low"], 4, 16)
    return q


def _decode_q5_0(blocks: np.ndarray) -> np.ndarray:
    return _linear(_minus(_five_bits(blocks), 16), _scales(blocks, "d"))


def _decode_q5_1(blocks: np.ndarray) -> np.ndarray:
    return _linear(_five_bits(blocks), _scales(blocks, "d"), _scales(blocks, "m"))


def _decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    return _linear(blocks["q"], _scales(blocks, "d"))


def _decode_q2_k(blocks: np.ndarray) -> np.ndarray:
    scale = _scales(blocks, "d") * (blocks["st"] & 15)
    minimum = _scales(blocks, "m") * (blocks["st"] >> 4)
    return _linear(_unpacked(blocks["q"], 2, 32), scale, -minimum)


def _decode_q3_k(blocks: np.ndarray) -> np.ndarray:
    s = _unpacked(blocks["s"][:, :8], 4, 8) | _unpacked(blocks["s"][:, 8:], 2, 4) << 4
    q = _unpacked(blocks["low"], 2, 32) | _unpacked(blocks["high"], 1, 32) << 2
    return _linear(_minus(q, 4), _scales(blocks, "d") * _minus(s, 32))


def _decode_q4_k(blocks: np.ndarray) -> np.ndarray:
    return _linear(_unpacked(blocks["q"], 4, 32), *_scales_q4_k(blocks))


def _decode_q5_k(blocks: np.ndarray) -> np.ndarray:
    q = _unpacked(blocks["low"], 4, 32) | _unpacked(blocks["high"], 1, 32) << 4
    return _linear(q, *_scales_q4_k(blocks))


def _scales_q4_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(d · s, −m · t) of the 8 parts of each block of Q4_K or Q5_K.

    Four bytes hold s of parts 0 to 3, four hold t, in their low 6 bits; the other four hold the low
    4 bits of s and t of parts 4 to 7, whose high 2 bits are the 2 bits left in the first eight.
    """
    s, t, low = (blocks["st"][:, first : first + 4] for first in (0, 4, 8))
    scale = np.concatenate([s & 63, low & 15 | s >> 6 << 4], axis=1)
    minimum = np.concatenate([t & 63, low >> 4 | t >> 6 << 4], axis=1)
    return _scales(blocks, "d") * scale, -(_scales(blocks, "m") * minimum)


def _decode_q6_k(blocks: np.ndarray) -> np.ndarray:
    q = _unpacked(blocks["low"], 4, 64) | _unpacked(blocks["high"], 2, 32) << 4
    return _linear(_minus(q, 32), _scales(blocks, "d") * blocks["s"])


def _iq4_values(blocks: np.ndarray) -> np.ndarray:
    """v[q] of IQ4_NL and IQ4_XS."""
    q = _unpacked(blocks["q"], 4, 16)
    return np.take(_IQ4_VALUES, q, mode="clip")  # clips nothing, and is the fastest mode


def _decode_iq4_nl(blocks: np.ndarray) -> np.ndarray:
    return _linear(_iq4_values(blocks), _scales(blocks, "d"))


def _decode_iq4_xs(blocks: np.ndarray) -> np.ndarray:
    s = _unpacked(blocks["s_low"], 4, 1) | _unpacked(blocks["s_high"], 2, 1) << 4
    return _linear(_iq4_values(blocks), _scales(blocks, "d") * _minus(s, 32))


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
Q4_0 = Encoding("Q4_0", 2, _Q4_0, 32, _decode_q4_0)
Q8_0 = Encoding("Q8_0", 8, _Q8_0, 32, _decode_q8_0)
_ALL = (
    F32, F16, BF16, Q4_0, Q8_0,
    Encoding("Q4_1", 3, _Q4_1, 32, _decode_q4_1),
    Encoding("Q5_0", 6, _Q5_0, 32, _decode_q5_0),
    Encoding("Q5_1", 7, _Q5_1, 32, _decode_q5_1),
    Encoding("Q2_K", 10, _Q2_K, 256, _decode_q2_k),
    Encoding("Q3_K", 11, _Q3_K, 256, _decode_q3_k),
    Encoding("Q4_K", 12, _Q4_K, 256, _decode_q4_k),
    Encoding("Q5_K", 13, _Q5_K, 256, _decode_q5_k),
    Encoding("Q6_K", 14, _Q6_K, 256, _decode_q6_k),
    Encoding("IQ4_NL", 20, _Q4_0, 32, _decode_iq4_nl),
    Encoding("IQ4_XS", 23, _IQ4_XS, 256, _decode_iq4_xs),
)  # fmt: skip
ENCODINGS = {encoding.type: encoding for encoding in _ALL}


def encode(numbers: np.ndarray, encoding: Encoding) -> np.ndarray:
    """float32 [rows, columns] → flat array of `encoding.block`, row by row; F32, F16 or Q8_0.

    columns is a multiple of `encoding.length`. Q8_0 is rounded as llama.cpp does, to nearest, ties
    away from zero. NaN, infinity and overflow of F16 stay in the result: see `all_finite`.
    """
    with np.errstate(all="ignore"):
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
        lines = self._decoded(self._blocks())
        if self.transposed:
            return lines.T
        return lines.reshape(self.info.shape)

    def chunks(self, nbytes: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first row, first column, chunk) of a matrix, each chunk as `read` returns it.

        A chunk takes about `nbytes`, and is decoded when it is asked for. It has whole rows; of a
        transposed matrix whole columns, as a transposed view.
        """
        blocks, (count, length) = self._blocks(), self._stored_shape()
        itemsize = blocks.itemsize if self.encoding.decode is None else 4
        step = chunk_lines(nbytes, length * itemsize)
        for first in range(0, count, step):
            lines = self._decoded(blocks[first : first + step])
            yield (0, first, lines.T) if self.transposed else (first, 0, lines)

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

    def _decoded(self, blocks: np.ndarray) -> np.ndarray:
        """[lines, blocks in each] → [lines, numbers in each]; floats are not copied."""
        decode, length = self.encoding.decode, self.encoding.length
        if decode is None:
            return np.require(blocks, blocks.dtype.newbyteorder("="), ["A"])
        flat = blocks.reshape(-1)
        numbers = np.empty((len(flat), length), np.float32)
        step = _STEP // length
        with np.errstate(all="ignore"):  # an infinite scale gives NaN, as it does in llama.cpp
            for first in range(0, len(flat), step):
                numbers[first : first + step] = decode(flat[first : first + step])
        return numbers.reshape(len(blocks), -1)
