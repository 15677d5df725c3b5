"""What a text file is: encodings and gzip are read as UTF-8, other kinds refused by name."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest

from minigpt import encodings
from minigpt.encodings import stream_of, utf8_chunks
from minigpt.errors import InputError

TEXT = "Grüße, 日本 😀\r\nzwei\n" * 3000  # more than one chunk


def read(data: bytes) -> bytes:
    return b"".join(utf8_chunks(io.BytesIO(data), "a"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_text_is_the_same_in_each_encoding(encoding: str, packed: bool) -> None:
    data = TEXT.encode(encoding)
    assert read(gzip.compress(data) if packed else data) == TEXT.encode()


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-32-be"])
def test_big_endian_with_a_mark(encoding: str) -> None:
    assert read(("\ufeff" + TEXT).encode(encoding)) == TEXT.encode()


@pytest.mark.parametrize(
    "text", ["", "a", "\0" * 9, "a\0b, a text with a zero byte", "\x1b[1mbold\n"]
)
def test_short_texts_and_control_characters(text: str) -> None:
    assert read(text.encode()) == text.encode()
    assert read(b"\xef\xbb\xbf" + text.encode()) == text.encode()


@pytest.mark.parametrize("text", ["a tale", "Жил-был король", "Ήταν ένας βασιλιάς"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf16_without_a_mark_is_refused(text: str, encoding: str) -> None:
    with pytest.raises(InputError, match="UTF-16 without a byte order mark; save it in UTF-8"):
        read(text.encode(encoding))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\x28\xb5\x2f\xfd\x04\x00", "zstd"),
        (b"\xfd7zXZ\x00\x00\x04", "xz"),
        (b"BZh91AY&SY\x00", "bzip2"),
        (b"PK\x03\x04\x14\x00", "a ZIP archive"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"%PDF-1.7\n%\xe2", "a PDF document"),
        (b"{\\rtf1\\ansi ", "an RTF document"),
        (b"a" * 257 + b"ustar\x0000", "a tar archive"),
        (b"SQLite format 3\x00\x10\x00", "an SQLite database"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s12--4d7a.txt\n", "git annex get"),
        (b"a tale\x01\x02\x03", "control characters"),
        (b"\xff\xfea\x00\x00\xd8b\x00", "mark of UTF-16, and is not"),
        (b"\xff\xfea\x00b", "mark of UTF-16, and is not"),
        (b"\xff\xfe\x00\x00abcd", "mark of UTF-32, and is not"),
        (gzip.compress(gzip.compress(b"text")), "by gzip twice"),
        (gzip.compress(b"%PDF-1.7"), "a PDF document"),
        (gzip.compress(b"text" * 999)[:-9], "cut short or damaged"),
        (gzip.compress(b"text")[:-8] + bytes(8), "cut short or damaged"),
        (gzip.compress(b"text") + b"more", "cut short or damaged"),
        (b"\x1f\x8b\x08", "cut short or damaged"),
    ],
)
def test_another_kind_is_refused_by_name(data: bytes, word: str) -> None:
    with pytest.raises(InputError, match=word) as error:
        read(data)
    assert str(error.value).startswith("a: ")


def test_several_members_of_gzip_are_one_text() -> None:
    assert read(gzip.compress(b"one ") + gzip.compress(b"two") + bytes(512)) == b"one two"


def test_a_gzip_file_that_expands_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of zeros to each kilobyte, without end; memory does not grow with it."""
    monkeypatch.setattr(encodings, "FREE_EXPANSION_BYTES", 1 << 20)
    packer = zlib.compressobj(9, wbits=31)
    data = b"".join(packer.compress(b"a" * (1 << 20)) for _ in range(64)) + packer.flush()
    tracemalloc.start()
    with pytest.raises(InputError, match="expands to more than 200 times its size"):
        for _ in utf8_chunks(io.BytesIO(data), "a"):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_stream_of_chunks_reads_as_a_file() -> None:
    def chunks() -> Iterator[bytes]:
        yield from (b"", b"one\ntw", b"", b"o\nthree")

    assert list(stream_of(chunks())) == [b"one\n", b"two\n", b"three"]


def test_an_error_of_the_system_is_named() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(InputError, match="a: cannot be read: Input/output error"):
        list(utf8_chunks(Broken(), "a"))
