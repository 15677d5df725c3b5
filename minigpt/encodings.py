"""The bytes of text files: UTF-8, UTF-16, UTF-32 and gzip are read as UTF-8, other kinds refused.

The first bytes of a file decide its kind, not its name. UTF-16 and UTF-32 begin with a byte order
mark; a text without one is UTF-8.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from .errors import InputError

CHUNK_BYTES = 1 << 18
# gzip shrinks texts to a fifth and, if they repeat themselves, to a fiftieth. A file that expands
# by more is made to fill a memory or a disk; short texts may expand by any factor.
MAX_EXPANSION = 200
FREE_EXPANSION_BYTES = 64 << 20
_HEAD_BYTES = 4096  # read to detect the kind of a file

_MARKS = (  # UTF-32's before UTF-16's, which it begins with
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_GZIP = b"\x1f\x8b"
_UNPACK = "unpack it, or compress it with gzip"
_EXTRACT = "take its text out"
_EXPORT = "export its texts as JSON lines"
# (offset, bytes there, what such a file is, what to do with it)
_OTHER_KINDS = (
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (0, b"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (4, b"1AY&SY", "compressed by bzip2", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4", _UNPACK),
    (0, b"\x1f\x9d", "compressed by compress", _UNPACK),
    (0, b"\xff\x06\x00\x00sNaPpY", "compressed by snappy", _UNPACK),
    (0, b"PK\x03\x04", "a ZIP archive, as .docx, .epub and .npz files are", _EXTRACT),
    (0, b"PK\x05\x06", "an empty ZIP archive", _EXTRACT),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _EXTRACT),
    (0, b"Rar!\x1a\x07", "a RAR archive", _EXTRACT),
    (257, b"ustar", "a tar archive", _EXTRACT),
    (0, b"%PDF-", "a PDF document", _EXTRACT),
    (0, b"{\\rtf", "an RTF document", _EXTRACT),
    (0, b"%!PS", "a PostScript document", _EXTRACT),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of Microsoft Office", _EXTRACT),
    (0, b"PAR1", "a Parquet file", _EXPORT),
    (0, b"ARROW1", "an Arrow file", _EXPORT),
    (0, b"Obj\x01", "an Avro file", _EXPORT),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", _EXPORT),
    (0, b"SQLite format 3\x00", "an SQLite database", _EXPORT),
    (0, b"\x93NUMPY", "a NumPy array", _EXPORT),
    (0, b"GGUF", "a GGUF model", "give a text"),
)
# Control characters that no text has, unless as the halves of UTF-16: all but tab, line ends, form
# feed and escape.
_CONTROLS = bytes(sorted({*range(32)} - {*b"\t\n\v\f\r\x1b"}))


def utf8_chunks(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the bytes of a text file in UTF-8, without a byte order mark.

    Memory holds a chunk. Raises InputError, which begins with `name`, for a file of another kind
    than text, for a damaged one, and for one that cannot be read.
    """
    head, chunks = _peeked(_chunks(file, name))
    if head.startswith(_GZIP):
        head, chunks = _peeked(_unzipped(chunks, name))
        if head.startswith(_GZIP):
            raise InputError(f"{name}: is compressed by gzip twice; unpack it")
    mark, encoding = next((each for each in _MARKS if head.startswith(each[0])), (b"", ""))
    if encoding in ("utf-16", "utf-32"):
        return _recoded(chunks, encoding, name)
    if mark:
        return _without_mark(chunks)
    _check_is_text(head, name)
    return chunks


def stream_of(chunks: Iterator[bytes]) -> io.BufferedReader:
    """Chunks of bytes as a file to read."""
    return io.BufferedReader(_Chunks(chunks), CHUNK_BYTES)


class _Chunks(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _chunks(file: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from None


def _peeked(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes of the chunks, and all chunks."""
    head = b""
    while len(head) < _HEAD_BYTES and (chunk := next(chunks, None)) is not None:
        head += chunk
    return head[:_HEAD_BYTES], chain([head], chunks)


def _unzipped(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    import gzip  # few texts need them
    import zlib

    packed = unpacked = 0

    def counted() -> Iterator[bytes]:
        nonlocal packed
        for chunk in chunks:
            packed += len(chunk)
            yield chunk

    with gzip.GzipFile(fileobj=stream_of(counted())) as file:
        while True:
            try:
                chunk = file.read(CHUNK_BYTES)
            except (EOFError, OSError, zlib.error) as error:
                raise InputError(
                    f"{name}: is a gzip file that is cut short or damaged: {error}"
                ) from None
            if not chunk:
                return
            unpacked += len(chunk)
            if unpacked > max(FREE_EXPANSION_BYTES, MAX_EXPANSION * packed):
                raise InputError(
                    f"{name}: is a gzip file that expands to more than {MAX_EXPANSION} times its "
                    "size; unpack it, if it is a text"
                )
            yield chunk


def _recoded(chunks: Iterator[bytes], encoding: str, name: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()  # reads and drops the mark
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: begins with the mark of {encoding.upper()}, and is not: {error.reason}; "
            "save the text in UTF-8"
        ) from None


def _without_mark(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield next(chunks).removeprefix(codecs.BOM_UTF8)
    yield from chunks


def _check_is_text(head: bytes, name: str) -> None:
    """Raises InputError for the first bytes of a file of another kind."""
    for offset, magic, kind, advice in _OTHER_KINDS:
        if head[offset : offset + len(magic)] == magic:
            raise InputError(f"{name}: is {kind}, not a text; {advice}")
    if head.startswith(b"version https://git-lfs") and b"\noid sha256:" in head:
        raise InputError(f"{name}: is a git-lfs pointer, not the file; fetch it: git lfs pull")
    if head.startswith(b"/annex/objects/"):
        raise InputError(f"{name}: is a git-annex pointer, not the file; fetch it: git annex get")
    controls = len(head) - len(head.translate(None, _CONTROLS))
    if len(head) > max(3, controls) and 4 * controls >= len(head):  # zeros alone are not UTF-16
        raise InputError(
            f"{name}: is no text in UTF-8: a quarter of it is control characters, as in UTF-16 "
            "without a byte order mark; save it in UTF-8"
        )
