"""A model's folder: the files that hold its weights, and the tensors in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, SourceError, short_repr
from .named import Checkpoint
from .safetensors import read_safetensors
from .strict_json import read_json_object
from .tensors import MappedFile, StoredTensor, open_weights

if TYPE_CHECKING:
    from .gguf import GGUF

_Reader = Callable[[MappedFile], dict[str, StoredTensor]]


def _read_torch_bin(file: MappedFile) -> dict[str, StoredTensor]:
    from .torch_bin import read_torch_bin  # only such a file needs its reader

    return read_torch_bin(file)


# In order of precedence, where a folder holds several.
_SINGLE_AND_INDEX: tuple[tuple[str, _Reader], ...] = (
    ("model.safetensors", read_safetensors),
    ("pytorch_model.bin", _read_torch_bin),
)
_OTHER_KINDS = (".ggml", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".ckpt")

_MAX_INDEX_BYTES = 64_000_000
_MAX_SHARDS = 10_000


def open_checkpoint(files: Path | GGUF) -> Checkpoint:
    """Open the weights in a folder in Hugging Face layout, or in a GGUF file.

    files  the folder, the GGUF file, or its parsed header

    model.safetensors wins over model.safetensors.index.json, and that over pytorch_model.bin
    and pytorch_model.bin.index.json. Raises SourceError when the folder holds none of them,
    CheckpointError when one that it holds is damaged.
    """
    if not isinstance(files, Path) or files.is_file():
        from .gguf_gpt2 import gguf_checkpoint  # only a GGUF file needs its reader

        return gguf_checkpoint(files)
    folder = files
    for single, reader in _SINGLE_AND_INDEX:
        if _exists(folder / single):
            stored = reader(open_weights(folder / single))
            return _checkpoint(folder, [single], stored)
        index = folder / f"{single}.index.json"
        if _exists(index):
            return _open_shards(folder, index, reader)
    raise SourceError(_nothing_found(folder))


def _exists(path: Path) -> bool:
    """True for a broken link, too: opening it then raises an error that names it."""
    return path.is_symlink() or path.exists()


def _checkpoint(folder: Path, names: list[str], stored: dict[str, StoredTensor]) -> Checkpoint:
    tensors = {name: tensor.info for name, tensor in stored.items()}
    return Checkpoint(folder, tuple(folder / name for name in names), tensors, stored)


def _open_shards(folder: Path, index: Path, reader: _Reader) -> Checkpoint:
    names_by_shard = _read_index(index)
    stored: dict[str, StoredTensor] = {}
    for shard in sorted(names_by_shard):
        if not _exists(folder / shard):
            raise CheckpointError(f"{folder / shard}: is missing, and {index.name} names it")
        tensors = reader(open_weights(folder / shard))
        missing = names_by_shard[shard] - tensors.keys()
        if missing:
            problem = f"lacks {short_repr(min(missing))}, which {index.name} says it holds"
            raise CheckpointError(f"{folder / shard}: {problem}")
        twice = stored.keys() & tensors.keys()
        if twice:
            other = stored[min(twice)].file.path.name
            raise CheckpointError(
                f"{folder / shard}: {short_repr(min(twice))} is in {other} as well"
            )
        stored |= tensors
    return _checkpoint(folder, sorted(names_by_shard), stored)


def _read_index(index: Path) -> dict[str, set[str]]:
    """{shard: the names of the tensors that it must hold}"""
    weight_map = read_json_object(index, _MAX_INDEX_BYTES, CheckpointError).get("weight_map")
    if type(weight_map) is not dict or not weight_map:
        raise CheckpointError(f"{index}: its weight_map must map the names of tensors to files")
    names_by_shard: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if type(shard) is not str or not _is_plain_name(shard):
            problem = f"tensor {short_repr(name)} is in {short_repr(shard)}"
            raise CheckpointError(f"{index}: {problem}; only files of the same folder are read")
        names_by_shard.setdefault(shard, set()).add(name)
    if len(names_by_shard) > _MAX_SHARDS:
        raise CheckpointError(f"{index}: names {len(names_by_shard)} files, far more than a model")
    return names_by_shard


def _is_plain_name(name: str) -> bool:
    """Whether every system takes `name` for a file of the same folder: no drive, no path."""
    printable = name != "" and name.isprintable()
    return printable and not name.startswith(".") and not set(name) & set('/\\:*?"<>|')


def _nothing_found(folder: Path) -> str:
    looked_for = "model.safetensors or pytorch_model.bin, or the index.json of either"
    if not folder.is_dir():
        return f"{folder}: is not a folder; a model is a folder with config.json and {looked_for}"
    others = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_KINDS)
    if others:
        return (
            f"{folder}: holds {short_repr(others[0])}, which cannot be read; needed: " + looked_for
        )
    return f"{folder}: holds no weights; needed: {looked_for}"
