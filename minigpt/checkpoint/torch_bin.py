"""pytorch_model.bin: a state dict written by `torch.save`, in the current or the older form.

Since torch 1.6 the file is a ZIP archive of uncompressed entries:

    NAME/data.pkl     the pickled state dict, with a key for each storage (see unpickle.py)
    NAME/data/KEY     the bytes of one storage
    NAME/byteorder    "little" or "big"; only since torch 2.1

The older form, still available on request, is five pickles and then the storages:

    magic, protocol, system, state dict, [key, …]
    8 bytes count, count × element size bytes         for every key in that order

References: torch/serialization.py (`_save`, `_legacy_save`).
"""

from __future__ import annotations

from typing import Any

from ..errors import CheckpointError, short_repr
from .tensors import (
    NUMPY_DTYPE,
    MappedFile,
    StoredTensor,
    TensorInfo,
    by_name,
    checked_nbytes,
)
from .unpickle import MAX_PICKLE, Storage, Tensor, read_pickle
from .zip_entries import ZIP_MAGIC, read_zip_entries

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def read_torch_bin(file: MappedFile) -> dict[str, StoredTensor]:
    """The tensors of a file written by `torch.save(model.state_dict(), …)`, by name.

    No code in the file is run, and no tensor is read. Values that are not tensors are ignored.
    Raises CheckpointError when the file is damaged or is not a plain state dict.
    """
    if file.data[:4] == ZIP_MAGIC:
        state, spans = _read_archive(file)
    elif file.data[257:262] == b"ustar":
        raise CheckpointError(
            f"{file.path}: is a TAR archive of torch before 0.2, which cannot be read; "
            "load and save it with a newer torch"
        )
    else:
        state, spans = _read_legacy(file)
    tensors = [
        _locate(file, name, tensor, spans)
        for name, tensor in state.items()
        if type(tensor) is Tensor
    ]
    return by_name(tensors, file)


def _read_archive(file: MappedFile) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """(state dict, {storage key: (offset, size) of its bytes})"""
    where = str(file.path)
    entries = read_zip_entries(file)
    roots = [name[: -len("/data.pkl")] for name in entries if name.endswith("/data.pkl")]
    roots = [root for root in roots if "/" not in root]
    if len(roots) != 1:
        problem = f"{len(roots)} entries of the archive are named */data.pkl"
        raise CheckpointError(f"{where}: {problem}; a file written by torch.save has one")
    root = roots[0]
    offset, size = entries[f"{root}/data.pkl"]
    if size > MAX_PICKLE:
        raise CheckpointError(
            f"{where}: data.pkl has {size} bytes; {MAX_PICKLE} are enough for any model"
        )
    order_offset, order_size = entries.get(f"{root}/byteorder", (0, 0))
    order = file.data[order_offset : order_offset + min(order_size, 16)]
    if order not in (b"", b"little"):
        raise CheckpointError(f"{where}: its byte order is {order!r}; it must be little")
    state, end = read_pickle(file.data[offset : offset + size], 0, where)
    if end != size:
        raise CheckpointError(f"{where}: data.pkl has {size - end} bytes after its end")
    prefix = f"{root}/data/"
    spans = {name[len(prefix) :]: span for name, span in entries.items() if name.startswith(prefix)}
    return _state_dict(state, where), spans


def _read_legacy(file: MappedFile) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """As `_read_archive`, for the form before torch 1.6."""
    where = str(file.path)
    data = file.data[:MAX_PICKLE]
    if data[:2] != b"\x80\x02":
        raise CheckpointError(f"{where}: is not a file written by torch.save")
    magic, position = read_pickle(data, 0, where)
    protocol, position = read_pickle(data, position, where)
    if (type(magic), type(protocol)) != (int, int) or magic != _LEGACY_MAGIC:
        raise CheckpointError(f"{where}: is a pickle, but not one of torch.save")
    if protocol != _LEGACY_PROTOCOL:
        raise CheckpointError(f"{where}: its protocol is {protocol}; it must be {_LEGACY_PROTOCOL}")
    system, position = read_pickle(data, position, where)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise CheckpointError(f"{where}: its byte order is not little-endian; it must be")
    state, position = read_pickle(data, position, where)
    keys, position = read_pickle(data, position, where)
    state = _state_dict(state, where)
    storages = {
        value.storage.key: value.storage for value in state.values() if type(value) is Tensor
    }
    return state, _legacy_spans(file, keys, storages, position)


def _legacy_spans(
    file: MappedFile, keys: Any, storages: dict[str, Storage], position: int
) -> dict[str, tuple[int, int]]:
    """{storage key: (offset, size)}; the storages follow each other from `position` on."""
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise CheckpointError(f"{file.path}: the list of its storages is damaged")
    spans: dict[str, tuple[int, int]] = {}
    for key in keys:
        # Only the storage of a tensor has a known element size, and so a known end.
        if key not in storages or key in spans:
            raise CheckpointError(f"{file.path}: {short_repr(key)} is the storage of no tensor")
        storage = storages[key]
        count = int.from_bytes(file.data[position : position + 8], "little")
        size = count * NUMPY_DTYPE[storage.dtype].itemsize
        position += 8
        if count != storage.numel or size > len(file.data) - position:
            problem = (
                f"storage {short_repr(key)} of {storage.numel} elements is cut short or damaged"
            )
            raise CheckpointError(f"{file.path}: {problem}; download or save the file again")
        spans[key] = (position, size)
        position += size
    if position != len(file.data):
        problem = f"{len(file.data) - position} bytes follow its last storage"
        raise CheckpointError(f"{file.path}: {problem}; it is damaged")
    return spans


def _state_dict(value: Any, where: str) -> dict[str, Any]:
    """A pickle's value, checked to be a dict with tensors by name; other values are allowed."""
    if type(value) is not dict or not any(type(entry) is Tensor for entry in value.values()):
        raise CheckpointError(
            f"{where}: holds no tensors by name; "
            "it must be written by torch.save(model.state_dict(), …)"
        )
    if any(type(entry) is Tensor and type(name) is not str for name, entry in value.items()):
        raise CheckpointError(f"{where}: the name of a tensor is a number; it must be text")
    return value


def _locate(
    file: MappedFile, name: str, tensor: Tensor, spans: dict[str, tuple[int, int]]
) -> StoredTensor:
    """The position of a tensor in the file, checked: its elements are inside its storage."""
    where = f"{file.path}: tensor {short_repr(name)}"
    storage = tensor.storage
    itemsize = NUMPY_DTYPE[storage.dtype].itemsize
    if storage.key not in spans:
        raise CheckpointError(f"{where}: its storage {short_repr(storage.key)} is not in the file")
    offset, size = spans[storage.key]
    if size != storage.numel * itemsize:
        problem = f"its storage has {size} bytes and {storage.numel} elements of {storage.dtype}"
        raise CheckpointError(f"{where}: {problem}, which do not agree")
    nbytes = checked_nbytes(storage.dtype, tensor.shape, where)
    extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)) + 1
    if nbytes and tensor.offset + extent > storage.numel:
        problem = f"it reaches past the {storage.numel} elements of its storage"
        raise CheckpointError(f"{where}: {problem}; the file is damaged")
    # The stride of a dimension of one element is never used, and may be any number.
    strides = tuple(s if n > 1 else 0 for n, s in zip(tensor.shape, tensor.strides, strict=True))
    info = TensorInfo(name, storage.dtype, tensor.shape, nbytes)
    return StoredTensor(info, file, offset + tensor.offset * itemsize, strides)
