"""GGUF files and their names: a model is one file, or in parts.

    gpt2-xl-00001-of-00003.gguf   split.no 0   split.count 3   the config and the tokenizer
    gpt2-xl-00002-of-00003.gguf   split.no 1   split.count 3   tensors alone
    gpt2-xl-00003-of-00003.gguf   split.no 2   split.count 3

Any part stands for the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError, SourceError, short_repr
from .blocks import EncodedTensor
from .files import read_beginning
from .gguf import GGUF, MAGIC, read_gguf
from .tensors import open_weights

_SUFFIX = ".gguf"
_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})(\.gguf)", re.IGNORECASE | re.DOTALL)
_MAX_PARTS = 1000


def is_gguf(path: Path) -> bool:
    """Whether a file is in GGUF format: by its name, or by its first bytes."""
    if path.suffix.lower() == _SUFFIX:
        return True
    try:
        return read_beginning(path, len(MAGIC), SourceError) == MAGIC
    except SourceError:
        return False


def gguf_models(names: Iterable[str]) -> list[list[str]]:
    """The GGUF models among the files of a folder, each as the names of its parts, in order."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        part = _PART.fullmatch(name)
        if part:
            models.setdefault(_part_name(part, 1), []).append(name)
        elif name.lower().endswith(_SUFFIX):
            models[name] = [name]
    return list(models.values())


def listed(names: list[str]) -> str:
    """Names of files for a message, the first of many."""
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


def _part_name(part: re.Match[str], number: int) -> str:
    stem, _, count, suffix = part.groups()
    return f"{stem}-{number:05}-of-{count}{suffix}"


def open_parts(path: Path) -> GGUF:
    """The parsed header of a GGUF file; of a part, the first part's, with the tensors of all.

    Raises CheckpointError for a damaged file, and for parts that are missing or do not fit.
    """
    gguf = read_gguf(open_weights(path))
    count = gguf.values.get("split.count", 1)
    if count in (0, 1):
        return gguf
    if type(count) is not int or not 1 < count <= _MAX_PARTS:
        raise CheckpointError(
            f"{path}: split.count is {short_repr(count)}; it must be at most {_MAX_PARTS}"
        )
    part = _PART.fullmatch(path.name)
    if part is None or int(part[3]) != count:
        raise CheckpointError(
            f"{path}: is one of {count} parts; their names must end in -00001-of-{count:05}.gguf "
            "and so on"
        )
    paths = [path.with_name(_part_name(part, number)) for number in range(1, count + 1)]
    missing = [other.name for other in paths if not other.exists()]
    if missing:
        raise CheckpointError(f"{path}: is one of {count} parts; missing are {listed(missing)}")
    return _joined([gguf if other == path else read_gguf(open_weights(other)) for other in paths])


def _joined(parts: list[GGUF]) -> GGUF:
    """The parts as one; raises CheckpointError where one is not what its name says."""
    tensors: dict[str, EncodedTensor] = {}
    for number, part in enumerate(parts):
        path, found = part.file.path, (part.values.get("split.no"), part.values.get("split.count"))
        if found != (number, len(parts)):
            raise CheckpointError(
                f"{path}: split.no and split.count are {short_repr(list(found))}; "
                f"by its name they must be {[number, len(parts)]}"
            )
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            name = short_repr(min(twice))
            raise CheckpointError(f"{path}: tensor {name} is in another part, too")
        tensors |= part.tensors
    total = parts[0].values.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise CheckpointError(
            f"{parts[0].file.path}: split.tensors.count is {short_repr(total)}, "
            f"and its parts hold {len(tensors)}"
        )
    return replace(parts[0], tensors=tensors)
