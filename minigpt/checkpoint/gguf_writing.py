"""Writing GGUF files; gguf.py describes the format."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .atomic import replacing
from .blocks import Encoding
from .gguf import ALIGNMENT, ARRAY, MAGIC, TEXT

_VERSION = 3
_U32, _I32, _F32, _BOOL = 4, 5, 6, 7  # types of values

WrittenValue = bool | int | float | str | Sequence[int] | Sequence[str]


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written; the innermost dimension of its shape is last."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.encoding.length * self.encoding.block.itemsize


def write_gguf(
    path: Path,
    values: Mapping[str, WrittenValue],
    tensors: Sequence[NewTensor],
    blocks: Callable[[NewTensor], Iterable[np.ndarray]],
) -> None:
    """Write a GGUF file, atomically; a file at `path` is replaced.

    values  by key; an int is written as u32, a float as f32, integers in a sequence as i32, an
            empty sequence as one of texts
    blocks  called once for each tensor, in order; returns its blocks, in arrays of any length

    Raises CheckpointError on an error of the system (disk full, no permission).
    """
    head = MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(values))
    head += b"".join(_text(key) + _value(value) for key, value in values.items())
    offset = 0
    for tensor in tensors:
        head += _table_line(tensor, offset)
        offset += tensor.nbytes + _padding(tensor.nbytes)
    with replacing(path) as file:
        file.write(head + bytes(_padding(len(head))))
        for tensor in tensors:
            for array in blocks(tensor):
                file.write(np.ascontiguousarray(array).view(np.uint8).data)
            file.write(bytes(_padding(tensor.nbytes)))


def _padding(size: int) -> int:
    return -size % ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: WrittenValue) -> bytes:
    """The bytes of a value, its type first."""
    if isinstance(value, bool):  # before int, its base class
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + _text(value)
    texts = [_text(item) for item in value if isinstance(item, str)]
    numbers = [item for item in value if isinstance(item, int)]
    elements = b"".join(texts) + struct.pack(f"<{len(numbers)}i", *numbers)
    return struct.pack("<IIQ", ARRAY, _I32 if numbers else TEXT, len(value)) + elements


def _table_line(tensor: NewTensor, offset: int) -> bytes:
    dimensions = tensor.shape[::-1]
    sizes = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return _text(tensor.name) + sizes + struct.pack("<IQ", tensor.encoding.type, offset)
