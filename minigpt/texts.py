"""Text files and JSON lines, read as UTF-8 documents with errors that name file and line."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError

LARGEST_TEXT = 1 << 31  # bytes of a text file, which is held in memory


LARGEST_LINE = 1 << 26  # bytes of a line of JSON


# ---- texts ----
def documents(sources: Sequence[str]) -> Iterator[str]:
    """The documents in `sources`, one after the other; text comes as it is.

    sources  names of files. `name.jsonl` holds a document a line, a JSON object's field "text";
             empty lines are passed over. Any other file is a document, and `-` is standard input.
             A byte order mark at the beginning of a file is no part of it.

    That all files are there is seen at once, before the first is read. Raises InputError, with the
    file, and the line where there is one to blame: for a file that is absent or cannot be read,
    for what is not UTF-8 or too long, and for a line that is no such object.
    """
    for source in sources:
        if source != "-":
            _require_file(source)
    return _documents(sources)


def _documents(sources: Sequence[str]) -> Iterator[str]:
    for source in sources:
        if source == "-":
            yield _whole_text(_stdin(), "standard input")
        elif holds_objects(source):
            for where, value in objects(source):
                yield checked_text(value.get("text"), '"text"', where)
        else:
            with _open(source) as file:
                yield _whole_text(file, source)


def holds_objects(source: str) -> bool:
    """Whether a file's name says that each of its lines is a JSON object."""
    return Path(source).suffix.lower() == ".jsonl"


def objects(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("name, line 7", the JSON object) of each line of a file that is not empty.

    Raises InputError, with the file and the line, as `documents` does.
    """
    with _open(source) as file:
        for where, line in _lines(file, source):
            yield where, _object(line, where)


def checked_text(value: Any, field: str, where: str) -> str:
    """The value of an object's field, which must be a text; raises InputError with `where`."""
    if not isinstance(value, str):
        raise InputError(f"{where}: must have a text as its {field}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as flaw:
        raise InputError(
            f"{where}: its {field} has {value[flaw.start]!a}, half of a character; "
            "such escapes must come in pairs"
        ) from None
    return value


def _require_file(source: str) -> None:
    """Raises InputError where there is no such file. A pipe, which opens only once, is one."""
    try:
        mode = Path(source).stat().st_mode
    except (OSError, ValueError) as flaw:  # ValueError: a zero byte in the name
        raise _unreadable(source, flaw) from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{source}: is a folder; name the files in it")


def _open(source: str) -> BinaryIO:
    try:
        return Path(source).open("rb")
    except OSError as flaw:
        raise _unreadable(source, flaw) from None


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise InputError("standard input: is closed; name a file, or give a text there")
    return sys.stdin.buffer


def _unreadable(name: str, flaw: Exception) -> InputError:
    return InputError(f"{name}: cannot be read: {getattr(flaw, 'strerror', None) or flaw}")


def _whole_text(file: BinaryIO, name: str) -> str:
    try:
        data = file.read(LARGEST_TEXT + 1)
    except OSError as flaw:
        raise _unreadable(name, flaw) from None
    if len(data) > LARGEST_TEXT:
        raise InputError(
            f"{name}: longer than {LARGEST_TEXT} bytes, the most one document may have; "
            "cut it, or make each text of it a line of a .jsonl file"
        )
    return _decoded(data, name)


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """("name, line 7", the line) of each line that is not empty."""
    number = 0
    while line := _next_line(file, name):
        number += 1
        where = f"{name}, line {number}"
        if len(line) > LARGEST_LINE:
            raise InputError(
                f"{where}: longer than {LARGEST_LINE} bytes, the most one may have; "
                "a .jsonl file holds one object a line"
            )
        if line.strip():
            yield where, _decoded(line, name, number)


def _next_line(file: BinaryIO, name: str) -> bytes:
    try:
        return file.readline(LARGEST_LINE + 1)
    except OSError as flaw:
        raise _unreadable(name, flaw) from None


def _decoded(data: bytes, name: str, line: int = 1) -> str:
    """`data`, which begins in this line of the file, without a byte order mark."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as flaw:
        line += data.count(b"\n", 0, flaw.start)
        raise InputError(
            f"{name}, line {line}: the byte {data[flaw.start]:#04x} is not UTF-8; "
            "save the text in UTF-8"
        ) from None
    return text.removeprefix("\ufeff") if line == 1 else text


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as flaw:
        raise InputError(f"{where}: is not JSON: {flaw.msg} (column {flaw.colno})") from None
    except (ValueError, RecursionError) as flaw:  # a number of 4300 digits; 1000 brackets
        raise InputError(f"{where}: is not JSON that can be read: {flaw}") from None
    if not isinstance(value, dict):
        raise InputError(f'{where}: must be a JSON object, such as {{"text": "Once…"}}')
    return value
