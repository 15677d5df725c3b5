"""Strict JSON: no duplicate names, no NaN, and one kind of error.

Python's parser keeps the last of duplicate names, accepts NaN and Infinity, and raises various
errors for deep nesting or an integer of 4300 digits. These functions return a plain dict or raise
one error that names the file.
"""

from __future__ import annotations

import json
import math
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any, NoReturn

from ..errors import SourceError
from .files import read_small_file

# Every value in a list or object takes a comma or a bracket in the text, so a limit on these limits
# the memory of the parsed values (64 bytes for an empty list: 128 MB).
_MAX_VALUES = 2_000_000


def read_json_object(path: Path, max_bytes: int, error: type[SourceError]) -> dict[str, Any]:
    """The JSON object in the file `path`, which may have at most `max_bytes` bytes.

    Raises `error` when the file is missing, not a regular file, too large, or not strict JSON.
    """
    return parse_json_object(read_small_file(path, max_bytes, error), str(path), error)


def parse_json_object(data: bytes, where: str, error: type[SourceError]) -> dict[str, Any]:
    """The JSON object in `data`, UTF-8, with or without a byte order mark; an `error` begins with
    `where`."""
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > _MAX_VALUES:
        raise error(f"{where}: has more than {_MAX_VALUES} values, the limit for such a file")
    try:
        text = data.removeprefix(BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as cause:
        raise error(f"{where}: is not UTF-8 text (byte {cause.start}); JSON must be") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except RecursionError:
        raise error(f"{where}: is nested too deeply") from None
    except ValueError as cause:
        raise error(f"{where}: is not valid JSON: {cause}") from None
    if type(value) is not dict:
        raise error(f"{where}: holds a JSON {type(value).__name__}; an object {{…}} is needed")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name {name[:80]!r} occurs twice in one object")
            seen.add(name)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value
