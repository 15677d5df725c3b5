"""The safetensors format: the length of a header, the header in JSON, the bytes of the tensors.

    8 bytes   N, little-endian
    N bytes   {"wte.weight": {"dtype": "F32", "shape": [V, C], "data_offsets": [0, 4·V·C]}, …}
    the rest  the tensors at their offsets, without gap, overlap or remainder

Format: https://huggingface.co/docs/safetensors (and its README on GitHub).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, short_repr
from .atomic import replacing
from .strict_json import parse_json_object
from .tensors import (
    NUMPY_DTYPE,
    MappedFile,
    StoredTensor,
    TensorInfo,
    by_name,
    checked_nbytes,
    packed_strides,
)

_MAX_HEADER = 100_000_000
_MAX_DIMENSIONS = 32
_ALIGNMENT = 64  # bytes, of the first tensor in the files we write: a cache line


def read_safetensors(file: MappedFile) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name; only the header is read.

    Raises CheckpointError for a file that violates the format.
    """
    where = str(file.path)
    header, start = _header(file)
    metadata = header.pop("__metadata__", {})
    if type(metadata) is not dict or any(type(text) is not str for text in metadata.values()):
        raise CheckpointError(f"{where}: __metadata__ in its header must map text to text")
    tensors = [_tensor(file, name, entry, start) for name, entry in header.items()]

    expected = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.info.nbytes)):
        if tensor.offset != expected:
            kind = "overlaps" if tensor.offset < expected else "leaves a gap after"
            problem = f"{short_repr(tensor.info.name)} {kind} the tensor before it"
            raise CheckpointError(f"{where}: {problem}; tensors must lie end to end")
        expected += tensor.info.nbytes
    if expected != len(file.data):
        problem = f"its header describes {expected} bytes and the file has {len(file.data)}"
        raise CheckpointError(f"{where}: {problem}; it is damaged or cut short")
    return by_name(tensors, file)


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """(the parsed header, the offset of the first tensor)"""
    size = len(file.data)
    length = int.from_bytes(file.data[:8], "little")
    if size < 8 or length > size - 8:
        problem = f"a header of {length} bytes does not fit a file of {size}"
        raise CheckpointError(f"{file.path}: {problem}; it is not a safetensors file, or cut short")
    if length > _MAX_HEADER:
        problem = f"its header of {length} bytes is larger than the {_MAX_HEADER} the format allows"
        raise CheckpointError(f"{file.path}: {problem}")
    text = file.data[8 : 8 + length]
    if text[:1] != b"{":
        raise CheckpointError(f"{file.path}: its header does not begin with {{")
    return parse_json_object(text, f"{file.path}: its header", CheckpointError), 8 + length


def _tensor(file: MappedFile, name: str, entry: Any, start: int) -> StoredTensor:
    where = f"{file.path}: tensor {short_repr(name)}"
    if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in NUMPY_DTYPE:
        known = ", ".join(NUMPY_DTYPE)
        raise CheckpointError(
            f"{where}: its dtype {short_repr(dtype)} cannot be read; known are {known}"
        )
    if not _sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(
            f"{where}: its shape must be a list of at most {_MAX_DIMENSIONS} integers >= 0"
        )
    if not _sizes(span) or len(span) != 2 or not span[0] <= span[1] <= len(file.data) - start:
        right = f"must be two ascending offsets of at most {len(file.data) - start}"
        raise CheckpointError(f"{where}: its data_offsets {right}; the file may be cut short")
    nbytes = checked_nbytes(dtype, shape, where)
    if nbytes != span[1] - span[0]:
        problem = (
            f"its dtype and shape make {nbytes} bytes and its data_offsets {span[1] - span[0]}"
        )
        raise CheckpointError(f"{where}: {problem}")
    shape = tuple(shape)
    info = TensorInfo(name, dtype, shape, nbytes)
    return StoredTensor(info, file, start + span[0], packed_strides(shape))


def _sizes(values: Any) -> bool:
    """Whether parsed JSON is a list of integers that NumPy can multiply."""
    return type(values) is list and all(type(n) is int and 0 <= n < 2**62 for n in values)


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as a safetensors file, atomically; a file at `path` is replaced.

    tensors   {name: array of a dtype in NUMPY_DTYPE}; uint16 arrays are the bits of bfloat16
    metadata  as for write_tensors

    Raises CheckpointError for another dtype, a full disk, or a folder that cannot be written.
    """
    infos = [_described(path, name, array) for name, array in tensors.items()]
    write_tensors(path, by_width(infos), lambda info: [tensors[info.name]], metadata)


def by_width(infos: Iterable[TensorInfo]) -> list[TensorInfo]:
    """Tensors with wider elements first, which aligns all of them; otherwise in the given order."""
    return sorted(infos, key=lambda info: -NUMPY_DTYPE[info.dtype].itemsize)


def write_tensors(
    path: Path,
    infos: Sequence[TensorInfo],
    arrays: Callable[[TensorInfo], Iterable[np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, atomically, whose tensors are computed while it is written.

    infos     the tensors, in the order of the file
    arrays    called once for each, in this order; returns arrays that together are the tensor
    metadata  default: {"format": "pt"}, which Hugging Face's loaders require

    Raises CheckpointError for a full disk, or a folder that cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for info in infos:
        span = [end, end + info.nbytes]
        header[info.name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": span}
        end += info.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for info in infos:
            for part in arrays(info):
                dtype = NUMPY_DTYPE[info.dtype]  # of the part already, but for the byte order
                array = part.astype(dtype, order="C", casting="equiv", copy=False)
                file.write(array.reshape(-1).view(np.uint8).data)


def _described(path: Path, name: str, array: np.ndarray) -> TensorInfo:
    for dtype, numpy_dtype in NUMPY_DTYPE.items():
        if array.dtype == numpy_dtype:
            return TensorInfo(name, dtype, array.shape, array.nbytes)
    raise CheckpointError(f"{path}: tensor {short_repr(name)} cannot be stored as {array.dtype}")
