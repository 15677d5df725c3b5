"""Text files and JSON lines in UTF-8, read as documents; errors name file and line."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError

STDIN = "-"  # the source that stands for standard input
MAX_TEXT_BYTES = 1 << 31  # of a text file, which is read into memory
MAX_LINE_BYTES = 1 << 26  # of a line of JSON


END_OF_TEXT = "<|endoftext|>"  # stands between the documents of many a corpus


def documents(sources: Sequence[str], allow_special: bool = False) -> Iterator[str]:
    """Yield the documents in `sources`, in order, with their newlines and white space unchanged.

    sources        names of files. `name.jsonl` holds one document per line, the field "text" of a
                   JSON object; blank lines are skipped. Any other file is one document, and `-` is
                   standard input. A byte order mark at the beginning of a file is dropped.
    allow_special  True to cut documents at each `<|endoftext|>`. Default: it is plain text

    The files are checked to exist at once, before the first is read. Raises InputError, naming the
    file and where possible the line, for a file that is missing or unreadable, for bytes that are
    not UTF-8, for a text or line that is too long, and for a line that is not such an object.
    """
    for source in sources:
        if source != STDIN:
            _check_exists(source)
    texts = _documents(sources)
    return _cut(texts) if allow_special else texts


def _cut(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield from filter(None, text.split(END_OF_TEXT))


def _documents(sources: Sequence[str]) -> Iterator[str]:
    for source in sources:
        if is_json_lines(source):
            for where, value in json_objects(source):
                yield checked_text(value.get("text"), '"text"', where)
        else:
            yield read_text(source, MAX_TEXT_BYTES)


def read_text(source: str, max_bytes: int) -> str:
    """The text of a file, or of standard input for `-`, without a byte order mark at its beginning.

    Raises InputError, naming the file, where it cannot be read, is longer than `max_bytes`, or is
    not UTF-8.
    """
    if source == STDIN:
        return _read_text(_stdin(), name_of(source), max_bytes)
    with _open(source) as file:
        return _read_text(file, source, max_bytes)


def name_of(source: str) -> str:
    """The name of a source in messages and tables."""
    return "standard input" if source == STDIN else source


def is_json_lines(source: str) -> bool:
    """Whether the name of a file says that each of its lines is a JSON object."""
    return Path(source).suffix.lower() == ".jsonl"


def json_objects(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("name, line 7", the JSON object) for each line of a file that is not blank.

    Raises InputError, naming file and line, as `documents` does.
    """
    with _open(source) as file:
        for where, line in _lines(file, source):
            yield where, _object(line, where)


def checked_text(value: Any, field: str, where: str) -> str:
    """`value`, the field of an object, as a str; raises InputError with `where` if it is no text.

    JSON can escape half of a surrogate pair, which no UTF-8 encodes: that is an error, too.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: must have a text as its {field}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: its {field} has {value[error.start]!a}, half of a character; "
            "such escapes must come in pairs"
        ) from None
    return value


def _check_exists(source: str) -> None:
    """Raises InputError unless `source` is a file or a pipe, which could be opened only once."""
    try:
        mode = Path(source).stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise _unreadable(source, error) from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{source}: is a folder; name the files in it")


def _open(source: str) -> BinaryIO:
    try:
        return Path(source).open("rb")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise _unreadable(source, error) from None


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise InputError("standard input: is closed; name a file, or give a text there")
    return sys.stdin.buffer


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}")


def _read_text(file: BinaryIO, name: str, max_bytes: int) -> str:
    try:
        data = file.read(max_bytes + 1)
    except OSError as error:
        raise _unreadable(name, error) from None
    if len(data) > max_bytes:
        raise InputError(
            f"{name}: longer than {max_bytes} bytes, the maximum for one text; "
            "split it, or make each text of it a line of a .jsonl file"
        )
    return _decoded(data, name).removeprefix("\ufeff")


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """Yield ("name, line 7", the line) for each line that is not blank."""
    number = 0
    while line := _next_line(file, name):
        number += 1
        where = f"{name}, line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise InputError(
                f"{where}: longer than {MAX_LINE_BYTES} bytes, the maximum for one line; "
                "a .jsonl file holds one object a line"
            )
        if line.strip():
            text = _decoded(line, name, number)
            yield where, text.removeprefix("\ufeff") if number == 1 else text


def _next_line(file: BinaryIO, name: str) -> bytes:
    try:
        return file.readline(MAX_LINE_BYTES + 1)
    except OSError as error:
        raise _unreadable(name, error) from None


def _decoded(data: bytes, name: str, line: int = 1) -> str:
    """`data` as text. line: the number of its first line in the file, for the message."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise InputError(
            f"{name}, line {line}: the byte {data[error.start]:#04x} is not UTF-8; "
            "save the text in UTF-8"
        ) from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: is not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # an integer of 4300 digits; 1000 brackets
        raise InputError(f"{where}: is not JSON that can be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f'{where}: must be a JSON object, such as {{"text": "Once…"}}')
    return value
