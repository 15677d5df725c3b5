"""Documents from files: texts are unchanged, and errors name the file and the line."""

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
from minigpt.texts import documents, read_text


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_documents_are_unchanged_and_in_order(tmp_path, monkeypatch) -> None:
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
def test_a_wrong_line_is_named(tmp_path, monkeypatch, line: bytes, message: str) -> None:
    if "longer" in message:
        monkeypatch.setattr(texts, "MAX_LINE_BYTES", 99)
    name = write(tmp_path / "a.jsonl", b'{"text": "good"}\n\n' + line + b"\n")
    found = documents([name])
    assert next(found) == "good"
    with pytest.raises(InputError, match=message) as error:
        next(found)
    assert str(error.value).startswith(f"{name}, line 3: ")
    assert "\n" not in str(error.value)


def test_reading_stops_at_the_limit(tmp_path, monkeypatch) -> None:
    """The file has a hundred times the limit; less than ten times of it reach the memory."""
    monkeypatch.setattr(texts, "MAX_LINE_BYTES", 1 << 16)
    monkeypatch.setattr(texts, "MAX_TEXT_BYTES", 1 << 16)
    for name in ("a.jsonl", "a.txt"):
        path = write(tmp_path / name, bytes(100 << 16))
        tracemalloc.start()
        with pytest.raises(InputError, match="longer than 65536 bytes"):
            list(documents([path]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 << 16


def test_a_byte_that_is_not_utf8_is_named_with_its_line(tmp_path, monkeypatch) -> None:
    name = write(tmp_path / "a.txt", b"one\ntwo\nthr\xffee\n")
    with pytest.raises(InputError, match="line 3: the byte 0xff is not UTF-8"):
        list(documents([name]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\xc3")))
    with pytest.raises(InputError, match="standard input, line 2: the byte 0xc3 is not UTF-8"):
        list(documents(["-"]))


def test_a_missing_file_is_an_error_before_the_first_is_read(tmp_path, monkeypatch) -> None:
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
def test_a_pipe_is_opened_only_once(tmp_path) -> None:
    """Opening a pipe to see whether it can be read would break it for its writer."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=["x" * (1 << 18)])
    writer.start()
    assert list(documents([str(tmp_path / "pipe")])) == ["x" * (1 << 18)]
    writer.join()


def test_a_byte_order_mark_is_dropped_and_line_ends_are_not_changed(tmp_path) -> None:
    name = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n")
    assert read_text(name, 99) == "one\r\n"
    assert list(documents([name])) == ["one\r\n"]


def test_read_text_raises_for_a_longer_text(tmp_path) -> None:
    name = write(tmp_path / "a.txt", b"12345")
    assert read_text(name, 5) == "12345"
    with pytest.raises(InputError, match=r"a\.txt: longer than 4 bytes"):
        read_text(name, 4)
