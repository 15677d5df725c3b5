"""Texts from files, for every command; errors name file and line.

The name says whether a file holds JSON: `.jsonl`, `.ndjson`, `.jsonlines` and `.json`, with or
without `.gz` behind. Such a file holds a JSON object a line, an array of objects, or objects one
after the other. Any other file, standard input too, is one text, character for character; a warning
says so where it looks like JSON. encodings.py decodes and decompresses both.
"""

from __future__ import annotations

import io
import json
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from .encodings import CHUNK_BYTES, stream_of, utf8_chunks
from .errors import InputError, short_repr, warn

STDIN = "-"  # the source that stands for standard input
JSON_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".json")
MAX_TEXT_BYTES = 1 << 31  # of a text file, which is read into memory
MAX_LINE_BYTES = 1 << 26  # of a line of JSON
MAX_JSON_BYTES = 1 << 28  # of a JSON file that is not one of lines, which is read into memory


def documents(
    sources: Sequence[str], end: str | None = None, plain_tokens: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the documents in `sources`, in order, with their newlines and white space unchanged.

    sources       names of files. One named as JSON (see JSON_SUFFIXES) holds a document in the
                  field "text" of each object; any other file is one document, and so is standard
                  input, `-`
    end           the text of an end-of-text token, at which documents are cut. Default: nowhere
    plain_tokens  special tokens that are read as plain text: a warning says so of the first that a
                  document holds

    The files are checked to exist at once, before the first is read. Raises InputError, naming the
    file and where possible the line, for a file that is missing or unreadable, for one of another
    kind, for a text or line that is too long, and for an object without a text.
    """
    check_files(sources)
    return _documents(sources, end, PlainTokens(plain_tokens))


def _documents(sources: Sequence[str], end: str | None, plain: PlainTokens) -> Iterator[str]:
    for source in sources:
        for where, text in located_texts(source, MAX_TEXT_BYTES):
            plain.warn_of(text, where)
            yield from cut(text, end) if end else (text,)


def located_texts(source: str, max_bytes: int) -> Iterator[tuple[str, str]]:
    """Yield (where it is, the text) for each text in a file, as `documents` does, uncut.

    max_bytes  of a file that is one text
    """
    if not is_json_lines(source):
        yield name_of(source), read_text(source, max_bytes)
        return
    for where, value in json_objects(source):
        if "text" not in value:
            raise InputError(
                f'{where}: must have a text as its "text"; it has {short_repr(list(value))}'
            )
        yield where, checked_text(value["text"], '"text"', where)


def cut(text: str, end: str) -> Iterator[str]:
    """Yield the parts of a text between the marks `end`, without those of white space alone.

    A text without marks is one part, whatever it consists of.
    """
    if end not in text:
        yield text
        return
    start = 0
    while start <= len(text):
        found = text.find(end, start)
        part = text[start : len(text) if found < 0 else found]
        if part.strip():
            yield part
        start = len(text) + 1 if found < 0 else found + len(end)


class PlainTokens:
    """Warns of the first special token that a text contains as plain text."""

    def __init__(self, tokens: Sequence[str]) -> None:
        pattern = "|".join(map(re.escape, filter(None, tokens)))
        self._pattern = re.compile(pattern) if pattern else None

    def warn_of(self, text: str, where: str) -> None:
        found = self._pattern.search(text) if self._pattern else None
        if found:
            self._pattern = None
            warn(
                f"{where}: holds {found[0]} as plain text; --special (allow_special=True in "
                "Python) reads it as the special token"
            )


# ---- kinds of files ----


def check_files(sources: Sequence[str]) -> None:
    """Raises InputError unless each source is standard input, a file, or a pipe.

    They are not opened: a pipe can be opened only once.
    """
    for source in sources:
        if source == STDIN:
            continue
        try:
            mode = Path(source).stat().st_mode
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise _unreadable(source, error) from None
        if stat.S_ISDIR(mode):
            raise InputError(f"{source}: is a folder; name the files in it")


def name_of(source: str) -> str:
    """The name of a source in messages and tables."""
    return "standard input" if source == STDIN else source


def is_json_lines(source: str) -> bool:
    """Whether the name of a file says that it holds JSON objects."""
    path = Path(source)
    if path.suffix.lower() == ".gz":
        path = path.with_suffix("")
    return path.suffix.lower() in JSON_SUFFIXES


@contextmanager
def _opened(source: str) -> Iterator[Iterator[bytes]]:
    """The bytes of a file or of standard input in UTF-8, in chunks."""
    if source == STDIN:
        yield utf8_chunks(_stdin(), name_of(source))
        return
    check_files([source])
    try:
        file = Path(source).open("rb")  # noqa: SIM115  (closed below)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise _unreadable(source, error) from None
    with file:
        yield utf8_chunks(file, source)


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise InputError("standard input: is closed; name a file, or give a text there")
    try:
        return sys.stdin.buffer
    except AttributeError:  # a notebook's
        return io.BytesIO(sys.stdin.read().encode("utf-8", "surrogatepass"))


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}")


# ---- plain texts ----

# The beginnings of texts that may be meant as something else, and what these are.
_LOOKS = (
    (re.compile(r'\s*(\[\s*)?\{\s*"(?:[^"\\\n]|\\.)*"\s*:'), "JSON"),
    (re.compile(r"\s*<(!doctype\s+html|html|\?xml)\b", re.IGNORECASE), "HTML or XML"),
)
_TABLES = (".csv", ".tsv")


def read_text(source: str, max_bytes: int, is_prompt: bool = False) -> str:
    """The text of a file, or of standard input for `-`, without a byte order mark at its beginning.

    max_bytes  of the text in UTF-8
    is_prompt  False to warn of a text that looks like JSON, HTML or a table

    Raises InputError, naming the file, where it cannot be read, is longer than `max_bytes`, or is
    of another kind than text.
    """
    with _opened(source) as chunks:
        advice = "give less at once" if is_prompt else _SPLIT_TEXT
        text = _whole(chunks, name_of(source), max_bytes, advice)
    if not is_prompt:
        _warn_of_form(text, source)
    return text


def _warn_of_form(text: str, source: str) -> None:
    """Warn of a text that looks like JSON, HTML or a table."""
    form = next((form for pattern, form in _LOOKS if pattern.match(text)), None)
    if not form and Path(source).suffix.lower() in _TABLES:
        form = "a table"
    if form:
        warn(
            f'{name_of(source)}: looks like {form} and is read as one plain text; the "text" of '
            "each JSON object is read from a file whose name ends in .jsonl or .json"
        )


_SPLIT_TEXT = "split it, or make each text of it a line of a .jsonl file"


def _whole(
    chunks: Iterator[bytes], name: str, max_bytes: int, advice: str, first_line: int = 1
) -> str:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > max_bytes:
            raise InputError(f"{name}: longer than {max_bytes} bytes, the maximum; {advice}")
    return _decoded(data, name, first_line)


def _decoded(data: bytes | bytearray, name: str, line: int = 1) -> str:
    """`data` as text. line: the number of its first line in the file, for the message."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise InputError(
            f"{name}, line {line}: the byte {data[error.start]:#04x} is not UTF-8; "
            "save the text in UTF-8"
        ) from None


# ---- JSON ----


def json_objects(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("name, line 7", the JSON object) for each line of a file that is not blank.

    A file that begins with an array, or with a line that is the beginning of an object, holds
    objects one after the other: they are named "name, item 7". Raises InputError, naming file and
    line, as `documents` does.
    """
    name = name_of(source)
    with _opened(source) as chunks:
        stream, number, is_first = stream_of(chunks), 0, True
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if not line.strip():
                continue
            where = f"{name}, line {number}"
            if is_first and _begins_items(line):
                rest = iter(lambda: stream.read(CHUNK_BYTES), b"")
                yield from _items(chain([line], rest), name, number)
                return
            is_first = False
            if len(line) > MAX_LINE_BYTES:
                raise InputError(
                    f"{where}: longer than {MAX_LINE_BYTES} bytes, the maximum for one line; "
                    "a .jsonl file holds one object a line"
                )
            yield where, _object(_decoded(line, name, number), where)


_SPLIT_JSON = "its first line is no JSON object: make each object a line of its own"


def _begins_items(line: bytes) -> bool:
    """Whether the first line of a file begins an array, or an object that goes on after it."""
    start = line.lstrip()[:1]
    if start != b"{" or len(line) > MAX_LINE_BYTES:
        return start == b"["
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _items(
    chunks: Iterator[bytes], name: str, first_line: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects in an array, or one after the other, beginning at line `first_line`."""
    text = _whole(chunks, name, MAX_JSON_BYTES, _SPLIT_JSON, first_line)
    offset = _skip_space(text, 0)
    is_array = text[offset] == "["
    offset = _skip_space(text, offset + is_array)
    count, close = 0, offset  # an array may end where it begins, or after a value
    while offset < len(text) or is_array:
        if is_array and offset == close and text.startswith("]", offset):
            if text[offset + 1 :].strip():
                reason = "Expecting the end of the file after the array"
                raise _not_json(text, offset + 1, reason, name, first_line)
            return
        count += 1
        where = f"{name}, item {count}"
        value, offset = _value_at(text, offset, name, where, first_line)
        yield where, _checked_object(value, where)
        offset = close = _skip_space(text, offset)
        if is_array and text.startswith(",", offset):
            offset = _skip_space(text, offset + 1)
        elif is_array and not text.startswith("]", offset):
            raise _not_json(text, offset, "Expecting ',' or ']'", name, first_line)


def _skip_space(text: str, offset: int) -> int:
    space = _SPACE.match(text, offset)
    assert space
    return space.end()


_SPACE = re.compile(r"[ \t\r\n]*")


def _value_at(text: str, offset: int, name: str, where: str, first_line: int) -> tuple[object, int]:
    """The JSON value at `offset`, and the offset of what follows it."""
    try:
        return _DECODER.raw_decode(text, offset)
    except json.JSONDecodeError as error:
        raise _not_json(text, error.pos, error.msg, name, first_line) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not JSON that can be read: {error}") from None


_DECODER = json.JSONDecoder()


def _not_json(text: str, offset: int, reason: str, name: str, first_line: int) -> InputError:
    at = json.JSONDecodeError(reason, text, offset)
    line = at.lineno + first_line - 1
    return InputError(f"{name}, line {line}: is not JSON: {reason} (column {at.colno})")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: is not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # an integer of 4300 digits; 1000 brackets
        raise InputError(f"{where}: is not JSON that can be read: {error}") from None
    return _checked_object(value, where)


def _checked_object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f'{where}: must be a JSON object, such as {{"text": "Once…"}}')
    return value


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
