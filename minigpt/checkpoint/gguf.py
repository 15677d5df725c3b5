"""The GGUF format: values by key, a table of tensors, and the bytes of the tensors, in one file.

    4 bytes    "GGUF"
    u32        version: 2 or 3, which look the same
    u64, u64   the number of tensors, the number of values
    values     each: key, u32 type, value           a string: u64 length, UTF-8
                                                    an array: u32 type, u64 count, its elements
    table      each: name, u32 dimensions, u64 of each (the innermost first), u32 type, u64 offset
    tensors    at their offsets from the next multiple of general.alignment

All numbers are little-endian. gguf_gpt2.py knows what the values and tensors mean. The reader does
not trust the file: every length is compared with the bytes that are left, and arrays, which may
have millions of elements, are skipped and read only when asked for.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from ..errors import CheckpointError, short_repr
from .blocks import ENCODINGS, EncodedTensor
from .tensors import MappedFile, TensorInfo, check_elements

MAGIC = b"GGUF"
ALIGNMENT = 32  # where general.alignment does not say
TEXT, ARRAY = 8, 9
NUMBERS = {  # type → its format for `struct`
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

_MAX_HEADER = 64 << 20  # bytes before the tensors; with GPT-2's vocabulary there are 2 million
_MAX_VALUES = 10_000
_MAX_TEXTS = 1_000_000  # strings in all arrays; no tokenizer has so many tokens and merges
_MAX_TENSORS = 1 << 16
_MAX_DIMENSIONS = 4
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_UNREAD_TYPES = {  # ggml's other types of tensors, for the message
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    34: "TQ1_0",
    35: "TQ2_0",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}


@dataclass(frozen=True)
class Array:
    """An array among the values, unread: `count` elements of that type from byte `start` on."""

    type: int
    count: int
    start: int


Value = bool | int | float | str | Array


@dataclass(frozen=True)
class GGUF:
    """The parsed header of a file.

    values   by key
    tensors  by name; the innermost dimension of a shape is last, as in NumPy
    """

    file: MappedFile
    values: dict[str, Value]
    tensors: dict[str, EncodedTensor]

    def texts(self, key: str) -> list[str] | None:
        """The strings in the array `key`, None if there is no such key. Raises CheckpointError."""
        array = self.values.get(key)
        if array is None:
            return None
        if not isinstance(array, Array) or array.type != TEXT:
            raise CheckpointError(f"{self.file.path}: {key} must be an array of strings")
        header = _Header(self.file, array.start)
        return [header.text(key) for _ in range(array.count)]

    def numbers(self, key: str) -> list[int] | None:
        """The integers in the array `key`, None if there is no such key. Raises CheckpointError."""
        array = self.values.get(key)
        if array is None:
            return None
        if not isinstance(array, Array) or NUMBERS.get(array.type, "f") not in "BbHhIiQq":
            raise CheckpointError(f"{self.file.path}: {key} must be an array of integers")
        dtype = np.dtype("<" + NUMBERS[array.type])
        integers: list[int] = np.frombuffer(
            self.file.data, dtype, array.count, array.start
        ).tolist()
        return integers


def read_gguf(file: MappedFile) -> GGUF:
    """Parse the header of a GGUF file: its values and its table of tensors.

    Raises CheckpointError for a file that violates the format, or has tensors in an encoding that
    cannot be read.
    """
    header = _Header(file, 0)
    _check_version(header)
    tensor_count, value_count = header.number(_U64), header.number(_U64)
    # Both counts are checked before anything of their size is allocated.
    for count, maximum, what in (
        (tensor_count, _MAX_TENSORS, "tensors"),
        (value_count, _MAX_VALUES, "values"),
    ):
        if count > maximum:
            raise header.error(f"claims {count} {what}, where at most {maximum} are allowed")
    values: dict[str, Value] = {}
    for _ in range(value_count):
        key = header.text("a key")
        if key in values:
            raise header.error(f"the key {short_repr(key)} occurs twice")
        values[key] = _value(header, key)
    entries = [_entry(header) for _ in range(tensor_count)]
    return GGUF(file, values, _tensors(header, entries, _alignment(header, values)))


class _Header:
    """A cursor over the bytes before the tensors; each read is checked against their end."""

    def __init__(self, file: MappedFile, position: int) -> None:
        self.file = file
        self.data = file.data
        self.position = position
        self.end = min(len(file.data), _MAX_HEADER)
        self.texts = 0

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.file.path}: {problem}")

    def skip(self, size: int, what: str) -> int:
        """Skip `size` bytes; returns the position at which they begin."""
        start = self.position
        if size > self.end - start:
            problem = f"{what} at byte {start} takes {size} bytes, and there are {self.end - start}"
            raise self.error(f"{problem}; it is damaged or cut short")
        self.position += size
        return start

    def number(self, layout: struct.Struct) -> int:
        start = self.skip(layout.size, "a number")
        return int(layout.unpack_from(self.data, start)[0])

    def text(self, what: str) -> str:
        length = self.number(_U64)
        start = self.skip(length, what)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise self.error(f"{what} at byte {start} is not UTF-8") from None

    def skip_texts(self, count: int, what: str) -> None:
        """Skip the strings of an array; some milliseconds for fifty thousand."""
        self.texts += count
        if self.texts > _MAX_TEXTS:
            raise self.error(
                f"claims more than {_MAX_TEXTS} strings, more than any tokenizer has; it is damaged"
            )
        position, last = self.position, self.end - _U64.size
        length_at = _U64.unpack_from
        for _ in range(count):
            if position > last:
                break
            position += _U64.size + length_at(self.data, position)[0]
        else:
            self.skip(position - self.position, what)
            return
        raise self.error(
            f"{what} has {count} strings, which go past its end; it is damaged or cut short"
        )


def _check_version(header: _Header) -> None:
    start = header.skip(8, "the beginning")
    magic, version = header.data[start : start + 4], header.data[start + 4 : start + 8]
    if magic != MAGIC:
        raise header.error(f"is not a GGUF file: it begins with {magic!r}, which must be {MAGIC!r}")
    if version[:2] == b"\0\0":
        raise header.error("is a big-endian GGUF file; it must be little-endian")
    number = int.from_bytes(version, "little")
    if number not in (2, 3):
        raise header.error(f"is GGUF of version {number}; it must be 2 or 3")


def _value(header: _Header, key: str) -> Value:
    type_number = header.number(_U32)
    if type_number == TEXT:
        return header.text(key)
    if type_number != ARRAY:
        layout = struct.Struct("<" + _number_format(header, key, type_number))
        start = header.skip(layout.size, key)
        value: bool | int | float = layout.unpack_from(header.data, start)[0]
        return value
    element_type, count = header.number(_U32), header.number(_U64)
    array = Array(element_type, count, header.position)
    if element_type == TEXT:
        header.skip_texts(count, key)
    else:
        size = struct.calcsize("<" + _number_format(header, key, element_type))
        header.skip(count * size, key)
    return array


def _number_format(header: _Header, key: str, type_number: int) -> str:
    if type_number == ARRAY:  # only reached from inside an array
        raise header.error(f"{short_repr(key)} is an array of arrays, which cannot be read")
    if type_number not in NUMBERS:
        raise header.error(f"{short_repr(key)} is of the type {type_number}, which does not exist")
    return NUMBERS[type_number]


def _alignment(header: _Header, values: dict[str, Value]) -> int:
    value = values.get("general.alignment", ALIGNMENT)
    if type(value) is not int or value <= 0 or value & (value - 1):
        raise header.error(f"general.alignment is {short_repr(value)}; it must be a power of two")
    return value


@dataclass(frozen=True)
class _Entry:
    """An entry of the table of tensors, unchecked."""

    name: str
    dimensions: tuple[int, ...]
    type: int
    offset: int


def _entry(header: _Header) -> _Entry:
    name = header.text("a tensor's name")
    count = header.number(_U32)
    if not 1 <= count <= _MAX_DIMENSIONS:
        problem = f"tensor {short_repr(name)} has {count} dimensions"
        raise header.error(f"{problem}; it must have 1 to {_MAX_DIMENSIONS}")
    dimensions = tuple(header.number(_U64) for _ in range(count))
    return _Entry(name, dimensions, header.number(_U32), header.number(_U64))


def _tensors(header: _Header, entries: list[_Entry], alignment: int) -> dict[str, EncodedTensor]:
    """The tensors by name, checked: inside the file, and none overlaps another."""
    start = -(-header.position // alignment) * alignment
    tensors: dict[str, EncodedTensor] = {}
    for entry in entries:
        if entry.name in tensors:
            raise header.error(f"the tensor {short_repr(entry.name)} occurs twice")
        tensors[entry.name] = _tensor(header, entry, start, alignment)
    end = start
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise header.error(f"tensor {short_repr(tensor.info.name)} overlaps the one before it")
        end = tensor.offset + tensor.info.nbytes
    return tensors


def _tensor(header: _Header, entry: _Entry, start: int, alignment: int) -> EncodedTensor:
    where = f"tensor {short_repr(entry.name)}"
    shape = entry.dimensions[::-1]
    if entry.type not in ENCODINGS:
        name = _UNREAD_TYPES.get(entry.type, f"number {entry.type}")
        known = ", ".join(encoding.name for encoding in ENCODINGS.values())
        raise header.error(f"{where} is of the type {name}; it must be one of {known}")
    encoding = ENCODINGS[entry.type]
    if min(shape) < 1 or shape[-1] % encoding.length:
        raise header.error(
            f"{where} has the shape {short_repr(list(shape))}; its sizes must be at least 1, "
            f"the last a multiple of {encoding.length}"
        )
    check_elements(shape, f"{header.file.path}: {where}")
    nbytes = math.prod(shape) // encoding.length * encoding.block.itemsize
    if entry.offset % alignment:
        raise header.error(
            f"{where} has the offset {entry.offset}; it must be a multiple of {alignment}"
        )
    left = len(header.data) - start - entry.offset
    if nbytes > left:
        problem = f"{where} takes {nbytes} bytes, and from its offset on there are {max(left, 0)}"
        raise header.error(f"{problem}; it is damaged or cut short")
    info = TensorInfo(entry.name, encoding.name, shape, nbytes)
    return EncodedTensor(info, header.file, start + entry.offset, encoding)
