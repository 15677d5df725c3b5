"""Fields of the JSON files of a tokenizer, checked to be of their kind."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from reprlib import repr as brief
from typing import Any, TypeAlias, TypeVar

from ..errors import TokenizerError

_KIND_NAMES = {dict: "an object", list: "a list", bool: "true or false", str: "a text"}

Kind = TypeVar("Kind")
# {file name: its JSON object}, {} for a file that is absent
Objects: TypeAlias = defaultdict[str, dict[str, Any]]


def field(data: dict[str, Any], name: str, kind: type[Kind], where: Path | None) -> Kind | None:
    """`data[name]`, which must be of `kind`; None where it is absent or null."""
    value = data.get(name)
    if value is not None and not isinstance(value, kind):
        raise TokenizerError(f"{where}: {name} is {brief(value)}: it must be {_KIND_NAMES[kind]}")
    return value
