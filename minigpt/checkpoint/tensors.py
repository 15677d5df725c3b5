"""Tensors in mapped files: their description, their position, and reading them as arrays."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, short_repr
from .files import map_file

# safetensors' names of the dtypes. NumPy has no bfloat16: its bits come as uint16.
NUMPY_DTYPE: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

# Tensors may share a storage (tied weights, expanded masks), so a small file can describe more
# bytes of tensors than it has. More than this factor, and this constant, is an attack.
_MAX_SHARING = 16
_FREE_SHARING = 64 * 2**20  # bytes
_MAX_ELEMENTS = 2**56
_LFS_POINTER = b"version https://git-lfs"
_LINES = 64  # packed together


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a file's header describes it: dtype as in safetensors, or a GGUF encoding."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class MappedFile:
    """A file of weights mapped into memory; arrays over it keep the mapping alive."""

    path: Path
    data: mmap.mmap


def open_weights(path: Path) -> MappedFile:
    """Map a file of weights. Raises CheckpointError where it cannot be, or is an LFS pointer."""
    data = map_file(path)
    if data[: len(_LFS_POINTER)] == _LFS_POINTER:
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the file; run `git lfs pull`")
    return MappedFile(path, data)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and its position in a file: `offset` in bytes, strides in elements."""

    info: TensorInfo
    file: MappedFile
    offset: int
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The tensor as a C-contiguous, aligned array: a view of the file where its bytes are both.

        The array's dtype is NUMPY_DTYPE of the tensor's.
        """
        dtype = NUMPY_DTYPE[self.info.dtype]
        shape = self.info.shape
        if math.prod(shape) == 0:
            return np.empty(shape, dtype)
        extent = 1 + sum((n - 1) * s for n, s in zip(shape, self.strides, strict=True))
        elements = np.frombuffer(self.file.data, dtype, extent, self.offset)
        if self.info.dtype == "BOOL":
            elements = elements.view(np.uint8) != 0  # any byte but 0 is true; NumPy knows only 1
        strides = [dtype.itemsize * stride for stride in self.strides]
        array = np.lib.stride_tricks.as_strided(elements, shape, strides)
        return np.require(array, dtype.newbyteorder("="), ["C", "A"])

    def chunks(self, nbytes: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first row, 0, rows) of a matrix, about `nbytes` at a time."""
        array = self.read()
        step = chunk_lines(nbytes, array.nbytes // max(1, len(array)))
        for first in range(0, len(array), step):
            yield first, 0, array[first : first + step]


def chunk_lines(nbytes: int, line_nbytes: int) -> int:
    """The lines of a chunk of about `nbytes`: a multiple of the lines that are packed together."""
    return max(1, nbytes // max(1, line_nbytes * _LINES)) * _LINES


def packed_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a C-contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def checked_nbytes(dtype: str, shape: Sequence[int], where: str) -> int:
    """The size of a tensor in bytes; raises CheckpointError for a shape that is too large."""
    check_elements(shape, where)
    return math.prod(shape) * NUMPY_DTYPE[dtype].itemsize


def check_elements(shape: Sequence[int], where: str) -> None:
    """Raise CheckpointError for a shape whose product overflows int64 in NumPy.

    NumPy multiplies the other dimensions even where one is zero.
    """
    if math.prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:
        raise CheckpointError(
            f"{where}: its shape {short_repr(list(shape))} is too large to be real"
        )


def by_name(tensors: list[StoredTensor], file: MappedFile) -> dict[str, StoredTensor]:
    """The tensors of one file by name.

    Raises CheckpointError when together they are far larger than the file, as in a hostile file
    of overlapping tensors.
    """
    total = sum(tensor.info.nbytes for tensor in tensors)
    if total > _MAX_SHARING * len(file.data) + _FREE_SHARING:
        raise CheckpointError(
            f"{file.path}: its tensors take {total} bytes and the file has {len(file.data)}; "
            "weights never share so much"
        )
    return {tensor.info.name: tensor for tensor in tensors}
