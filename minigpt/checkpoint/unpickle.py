"""The pickle of a torch file, read as data: no code in it is ever called.

A pickle is a program for a stack machine that can import and call anything in Python's own
`pickle`. This machine imports nothing: a GLOBAL is an inert name. The three functions that a
state dict of torch calls are recognised by their exact names, and their results are plain data
(`Tensor`, `Storage`, dict). Every other call is an error, and so is every instruction that is not
in the table at the end.

    ccollections\\nOrderedDict\\n  )  R      push the name, push (), call it      →  {}
    X…weight                                push the text "weight"
    (… Q                                    push a description, look it up       →  Storage
    R                                       _rebuild_tensor_v2(storage, …)       →  Tensor
    s                                       dict["weight"] = Tensor

The length of the pickle bounds time and memory: each instruction takes at least one byte and
pushes at most one small object. Nested values are never compared, hashed or printed, so depth and
cycles do no harm.

Sources: pickletools.py of CPython for the instructions; torch/serialization.py and torch/_utils.py
for their use.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, short_repr

MAX_PICKLE = 2 * 2**20  # bytes; a 13B model's is 0.1 MB

# dtypes are named as in safetensors.
_STORAGE_DTYPE = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_REQUIRED = "it must be written by torch.save(model.state_dict(), …)"
_MAX_DIMENSIONS = 32
_MAX_NUMBER = 2**62


@dataclass(frozen=True)
class Name:
    """The name of an object that Python's pickle would import."""

    module: str
    attribute: str


@dataclass(frozen=True)
class Storage:
    """`numel` elements elsewhere in the file, found by their `key`."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """The object on the stack before a list of arguments."""


_MARK = _Mark()


class _Machine:
    """The state of the stack machine, and checked reads of its program."""

    def __init__(self, data: bytes, start: int, where: str) -> None:
        self.data = data
        self.position = start
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: at byte {self.position} of the pickle: {problem}")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise self.error(f"{count} bytes are needed and {len(self.data) - self.position} left")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def unsigned(self, width: int) -> int:
        """The next `width` bytes as an unsigned integer."""
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        """The text up to the next newline."""
        end = self.data.find(b"\n", self.position, self.position + 1000)
        if end < 0:
            raise self.error("a name has no end")
        name = self.text(end - self.position)
        self.position = end + 1
        return name

    def text(self, count: int) -> str:
        """The next `count` bytes as UTF-8."""
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise self.error("a text is not UTF-8") from None

    def pop(self) -> Any:
        """Remove and return the top of the stack."""
        if not self.stack or self.stack[-1] is _MARK:
            raise self.error("a value is needed and the stack has none")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Remove the topmost mark and the values above it; returns the values."""
        for depth in range(len(self.stack) - 1, -1, -1):
            if self.stack[depth] is _MARK:
                values = self.stack[depth + 1 :]
                del self.stack[depth:]
                return values
        raise self.error("a mark is needed and the stack has none")

    def top(self, kind: type) -> Any:
        """The top of the stack, which must be of that type."""
        if not self.stack or type(self.stack[-1]) is not kind:
            raise self.error(f"a {kind.__name__} is needed on the stack")
        return self.stack[-1]


def read_pickle(data: bytes, start: int, where: str) -> tuple[Any, int]:
    """(value, end) of the pickle that begins at `data[start]`.

    Values are None, bool, int, float, str, tuple, list, dict, Name, Storage and Tensor; only the
    fields of a Storage and a Tensor are checked. Raises CheckpointError, which begins with `where`,
    for a pickle that is damaged or uses anything else.
    """
    machine = _Machine(data, start, where)
    while True:
        opcode = machine.take(1)
        if opcode == b".":
            return machine.pop(), machine.position
        instruction = _INSTRUCTIONS.get(opcode)
        if instruction is None:
            raise machine.error(
                f"the instruction {opcode!r} is not one of a state dict; {_REQUIRED}"
            )
        instruction(machine)


def _push(read: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(read(machine))


def _protocol(machine: _Machine) -> None:
    version = machine.unsigned(1)
    if not 2 <= version <= 5:
        raise machine.error(f"its protocol is {version}; torch writes 2 to 5")


def _frame(machine: _Machine) -> None:
    size = machine.unsigned(8)
    if size > len(machine.data) - machine.position:
        raise machine.error(f"a frame of {size} bytes does not fit the bytes left")


def _signed(width: int) -> Callable[[_Machine], int]:
    return lambda machine: int.from_bytes(machine.take(width), "little", signed=True)


def _long(machine: _Machine) -> int:
    return _signed(machine.unsigned(1))(machine)


def _float(machine: _Machine) -> float:
    return float(struct.unpack(">d", machine.take(8))[0])


def _text(length_width: int) -> Callable[[_Machine], str]:
    return lambda machine: machine.text(machine.unsigned(length_width))


def _tuple(count: int) -> Callable[[_Machine], tuple[Any, ...]]:
    return lambda machine: tuple([machine.pop() for _ in range(count)][::-1])


def _memo_get(index_width: int) -> Callable[[_Machine], Any]:
    def get(machine: _Machine) -> Any:
        index = machine.unsigned(index_width)
        if index not in machine.memo:
            raise machine.error(f"memo {index} is read and was not written")
        return machine.memo[index]

    return get


def _memo_put(index_width: int) -> Callable[[_Machine], None]:
    def put(machine: _Machine) -> None:
        index = machine.unsigned(index_width)
        value = machine.pop()
        machine.stack.append(value)
        machine.memo[index] = value

    return put


def _memoize(machine: _Machine) -> None:
    value = machine.pop()
    machine.stack.append(value)
    machine.memo[len(machine.memo)] = value


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _append_many(machine: _Machine) -> None:
    values = machine.pop_to_mark()
    machine.top(list).extend(values)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _put_items(machine, [key, value])


def _set_items(machine: _Machine) -> None:
    _put_items(machine, machine.pop_to_mark())


def _put_items(machine: _Machine, flat: list[Any]) -> None:
    target = machine.top(dict)
    if len(flat) % 2:
        raise machine.error("a key of a dict has no value")
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        if type(key) not in (str, int):  # hashing a nested tuple would be recursive
            raise machine.error("a key of a dict is neither text nor a number")
        if key in target:
            raise machine.error(f"the key {short_repr(key)} occurs twice in one dict")
        target[key] = value


def _global(machine: _Machine) -> Name:
    return Name(machine.line(), machine.line())


def _stack_global(machine: _Machine) -> Name:
    attribute, module = machine.pop(), machine.pop()
    if type(module) is not str or type(attribute) is not str:
        raise machine.error("a name is not text")
    return Name(module, attribute)


def _build(machine: _Machine) -> None:
    # The attributes of torch's OrderedDict are the versions of the modules: not needed.
    machine.pop()
    machine.top(dict)


def _persistent(machine: _Machine) -> Storage:
    """("storage", class, key, device, numel); older files add a view, which must be None."""
    match machine.pop():
        case (str("storage"), Name(module, kind), str(key), str(), int(numel), *view):
            if module not in ("torch", "torch.cuda") or kind not in _STORAGE_DTYPE:
                found, known = short_repr(f"{module}.{kind}"), ", ".join(_STORAGE_DTYPE)
                raise machine.error(f"the storage class {found} is not one of torch's: {known}")
            if any(part is not None for part in view[:1]) or len(view) > 1:
                raise machine.error("a storage is a view of another, which cannot be read")
            if type(numel) is bool or not 0 <= numel <= _MAX_NUMBER:
                raise machine.error(f"a storage cannot have {numel} elements")
            return Storage(_STORAGE_DTYPE[kind], key, numel)
    raise machine.error("the description of a storage is not in torch's form")


def _reduce(machine: _Machine) -> Any:
    """The result of "calling" a name with a tuple of arguments."""
    arguments, function = machine.pop(), machine.pop()
    if type(function) is not Name or type(arguments) is not tuple:
        raise machine.error("a call needs a name and a tuple of arguments")
    match function.module, function.attribute, arguments:
        case "collections", "OrderedDict", ():
            return {}
        case "torch._utils", "_rebuild_tensor_v2", (Storage(), *_):
            return _rebuild_tensor(machine, arguments)
        case "torch._utils", "_rebuild_parameter", (Tensor() as tensor, bool(), _):
            return tensor
    name = short_repr(f"{function.module}.{function.attribute}")
    raise machine.error(f"it calls {name} as no plain state dict does; {_REQUIRED}")


def _rebuild_tensor(machine: _Machine, arguments: tuple[Any, ...]) -> Tensor:
    """_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, metadata)."""
    if not 6 <= len(arguments) <= 7:
        raise machine.error(f"a tensor is described by {len(arguments)} values, not 6 or 7")
    storage, offset, shape, strides = arguments[:4]
    # Metadata can mark the values as negated or conjugated.
    if len(arguments) == 7 and arguments[6]:
        raise machine.error("a tensor has metadata; weights have none")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise machine.error("shape and strides of a tensor are not two tuples of one length")
    if len(shape) > _MAX_DIMENSIONS:
        raise machine.error(f"a tensor has {len(shape)} dimensions; weights have at most 4")
    for number in (offset, *shape, *strides):
        if type(number) is not int or not 0 <= number <= _MAX_NUMBER:
            raise machine.error("offset, shape or strides of a tensor are not integers >= 0")
    return Tensor(storage, offset, shape, strides)


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    b"(": _push(lambda machine: _MARK),
    b"N": _push(lambda machine: None),
    b"\x88": _push(lambda machine: True),
    b"\x89": _push(lambda machine: False),
    b"K": _push(lambda machine: machine.unsigned(1)),
    b"M": _push(lambda machine: machine.unsigned(2)),
    b"J": _push(_signed(4)),
    b"\x8a": _push(_long),
    b"G": _push(_float),
    b"\x8c": _push(_text(1)),
    b"X": _push(_text(4)),
    b"\x8d": _push(_text(8)),
    b")": _push(lambda machine: ()),
    b"\x85": _push(_tuple(1)),
    b"\x86": _push(_tuple(2)),
    b"\x87": _push(_tuple(3)),
    b"t": _push(lambda machine: tuple(machine.pop_to_mark())),
    b"]": _push(lambda machine: []),
    b"a": _append,
    b"e": _append_many,
    b"}": _push(lambda machine: {}),
    b"s": _set_item,
    b"u": _set_items,
    b"q": _memo_put(1),
    b"r": _memo_put(4),
    b"\x94": _memoize,
    b"h": _push(_memo_get(1)),
    b"j": _push(_memo_get(4)),
    b"c": _push(_global),
    b"\x93": _push(_stack_global),
    b"Q": _push(_persistent),
    b"R": _push(_reduce),
    b"b": _build,
}
