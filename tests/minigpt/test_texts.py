"""Documents from files: read as they are, and each bad byte or line named."""

from __future__ import annotations

import io
import os
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from minigpt import texts
from minigpt.errors import InputError
from minigpt.texts import documents


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_documents_come_as_they_are_and_in_order(tmp_path, monkeypatch) -> None:
    text = write(tmp_path / "a.txt", "one\r\n  two é\n".encode())
    marked = write(tmp_path / "b.TXT", b"\xef\xbb\xbfa mark\xef\xbb\xbf")
    lines = write(
        tmp_path / "c.JSONL",
        b'\xef\xbb\xbf{"text": "three\\n", "id": 1}\r\n\n  \n{"text": ""}\n'
        b'{"meta": {"text": 0}, "text": "\\ud83d\\ude00"}',
    )
    empty = write(tmp_path / "d.jsonl", b"")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("four\r\nü".encode())))
    assert list(documents([text, "-", marked, lines, empty])) == [
        "one\r\n  two é\n",
        "four\r\nü",
        "a mark\ufeff",
        "three\n",
        "",
        "😀",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text" "no colon"}', r"not JSON: .* \(column 9\)"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"text": "a"} {"text": "b"}', "not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"story": "a"}', 'must have a text as its "text"'),
        (b'{"text": ["a"]}', 'must have a text as its "text"'),
        (b'["text"]', "must be a JSON object"),
        (b'\xef\xbb\xbf{"text": "a"}', "not JSON"),  # a mark that is not at the beginning
        (b"null", "must be a JSON object"),
        (b'{"text": "a \\ud83d b"}', r"has '\\ud83d', half of a character"),
        (b'{"text": "caf\xe9"}', "the byte 0xe9 is not UTF-8"),
        (b'{"text": "' + b"a" * 100 + b'"}', "longer than 99 bytes"),
    ],
)
def test_a_bad_line_is_named(tmp_path, monkeypatch, line: bytes, message: str) -> None:
    if "longer" in message:
        monkeypatch.setattr(texts, "LARGEST_LINE", 99)
    name = write(tmp_path / "a.jsonl", b'{"text": "good"}\n\n' + line + b"\n")
    found = documents([name])
    assert next(found) == "good"
    with pytest.raises(InputError, match=message) as error:
        next(found)
    assert str(error.value).startswith(f"{name}, line 3: ")
    assert "\n" not in str(error.value)


def test_an_endless_line_or_text_is_not_read_to_its_end(tmp_path, monkeypatch) -> None:
    """The file has a hundred times what it may have; the memory sees little of it."""
    monkeypatch.setattr(texts, "LARGEST_LINE", 1 << 16)
    monkeypatch.setattr(texts, "LARGEST_TEXT", 1 << 16)
    for name in ("a.jsonl", "a.txt"):
        path = write(tmp_path / name, bytes(100 << 16))
        tracemalloc.start()
        with pytest.raises(InputError, match="longer than 65536 bytes"):
            list(documents([path]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 << 16


def test_a_byte_that_is_no_text_is_found_by_its_line(tmp_path, monkeypatch) -> None:
    name = write(tmp_path / "a.txt", b"one\ntwo\nthr\xffee\n")
    with pytest.raises(InputError, match="line 3: the byte 0xff is not UTF-8"):
        list(documents([name]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\xc3")))
    with pytest.raises(InputError, match="standard input, line 2: the byte 0xc3 is not UTF-8"):
        list(documents(["-"]))


def test_a_missing_file_is_told_before_the_first_is_read(tmp_path, monkeypatch) -> None:
    good = write(tmp_path / "a.txt", b"text")
    for bad in (str(tmp_path / "none.txt"), "zero\0byte"):
        with pytest.raises(InputError, match="cannot be read"):
            documents([good, bad])
    with pytest.raises(InputError, match="is a folder; name the files in it"):
        documents([good, str(tmp_path)])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input: is closed"):
        list(documents(["-"]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_opened_but_once(tmp_path) -> None:
    """Who writes into one would find it closed after a look at whether it can be read."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=["x" * (1 << 18)])
    writer.start()
    assert list(documents([str(tmp_path / "pipe")])) == ["x" * (1 << 18)]
    writer.join()
