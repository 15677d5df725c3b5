"""Documents from files: texts are unchanged, and errors name the file and the line."""

from __future__ import annotations

import gzip
import io
import os
import sys
import threading
import tracemalloc
import warnings
from pathlib import Path

import pytest

from minigpt import texts
from minigpt.errors import InputError, MinigptWarning
from minigpt.texts import PlainTokens, cut, documents, is_json_lines, json_objects, read_text


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
    with pytest.raises(InputError, match="is a folder; name the files in it"):
        read_text(str(tmp_path), 99)
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


# ---- JSON ----

FORMS = {
    "lines": '{"text": "one"}\n\n{"text": "two\\n"}\n',
    "one line": '[{"text": "one"}, {"text": "two\\n"}]',
    "array of lines": '[\n{"text": "one"},\n{"text": "two\\n"}\n]\n',
    "pretty": '\n[\n  {\n    "text": "one"\n  },\n  {\n    "text": "two\\n"\n  }\n]',
    "pretty objects": '{\n  "text": "one"\n}\n{\n  "text": "two\\n"\n}\n',
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "b.NDJSON", "c.jsonlines", "d.json.gz"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_name_says_json_and_the_content_its_form(tmp_path, name: str, form: str) -> None:
    data = form.encode("utf-8-sig" if name == "a.json" else "utf-8")
    path = write(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    assert list(documents([path])) == ["one", "two\n"]


def test_utf16_lines_of_json(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "é"}\n{"text": "日"}\n'.encode("utf-16"))
    assert list(documents([path])) == ["é", "日"]


def test_an_empty_array_has_no_texts(tmp_path) -> None:
    for content in (b"[]", b" [ ] \n", b"", b"\n \n"):
        assert list(documents([write(tmp_path / "a.json", content)])) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}', r"line 1: is not JSON: Expecting ',' or '\]' \(column 15\)"),
        ('[{"text": "a"},', "line 1: is not JSON: Expecting value"),
        ('[{"text": "a"},]', "line 1: is not JSON: Expecting value"),
        ('\n[\n{"text": "a"}\n{"text": "b"}]', "line 4: is not JSON: Expecting ','"),
        ("[", "line 1: is not JSON: Expecting value"),
        ('["a", "b"]', "item 1: must be a JSON object"),
        ('[{"text": "a"}] {"text": "b"}', "line 1: is not JSON: Expecting the end"),
        ('{"text": "a', "line 1: is not JSON: Unterminated string"),
        ("{", "line 1: is not JSON: Expecting property name"),
        ("[" * 100_000, "item 1: is not JSON that can be read"),
        ('{"a":' * 100_000, "item 1: is not JSON that can be read"),
        ('[{"text": "a", "n": ' + "9" * 5000 + "}]", "item 1: is not JSON that can be read"),
        ('{"data": [{"text": "a"}]}', r"line 1: must have a text as its \"text\"; it has .'data'"),
        ('[{"text": "\\ud83d"}]', "item 1: its .* half of a character"),
        ("Once upon a time", "line 1: is not JSON: Expecting value"),
    ],
)
def test_wrong_json_is_one_line(tmp_path, content: str, message: str) -> None:
    name = write(tmp_path / "a.json", content.encode())
    with pytest.raises(InputError, match=message) as error:
        list(documents([name]))
    assert str(error.value).startswith(f"{name}, ")
    assert "\n" not in str(error.value)


def test_json_that_is_no_lines_has_a_limit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(texts, "MAX_JSON_BYTES", 99)
    name = write(tmp_path / "a.json", b'[\n{"text": "' + b"a" * 99 + b'"}]')
    with pytest.raises(InputError, match="longer than 99 bytes, the maximum; its first line is"):
        list(json_objects(name))


def test_which_names_say_json() -> None:
    assert all(map(is_json_lines, ("a.jsonl", "b/a.JSON", "a.x.ndjson", "a.jsonlines.gz")))
    assert not any(map(is_json_lines, ("-", "a.txt", "json", "a.jsonl.txt", "a.gz", "a.json.bak")))


# ---- what a text may be besides ----


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS)
def test_json_in_a_file_named_as_text_is_one_text_and_a_warning(tmp_path, content: str) -> None:
    name = write(tmp_path / "a.txt", content.encode())
    with pytest.warns(MinigptWarning, match=r"a\.txt: looks like JSON and is read as one"):
        assert list(documents([name])) == [content]


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.csv", "text,label\none,1\n", "a table"),
        ("a.txt", "<!DOCTYPE html>\n<p>one", "HTML"),
        ("a", '<?xml version="1.0"?>', "XML"),
    ],
)
def test_other_forms_are_one_text_and_a_warning(
    tmp_path, name: str, content: str, form: str
) -> None:
    path = write(tmp_path / name, content.encode())
    with pytest.warns(MinigptWarning, match=f"looks like .*{form}"):
        assert list(documents([path])) == [content]


@pytest.mark.parametrize("content", ["{}", "[1]", "{ int a; }", "[link]: x", '"a": {', ""])
def test_a_text_that_is_no_json_gives_no_warning(tmp_path, content: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_text(write(tmp_path / "a.txt", content.encode()), 99) == content
        text = FORMS["lines"]
        assert read_text(write(tmp_path / "a.txt", text.encode()), 99, is_prompt=True) == text


def test_documents_are_cut_or_a_warning_says_that_they_are_not(tmp_path) -> None:
    text = "one<|endoftext|>\ntwo<|endoftext|><|endoftext|> \n"
    names = [write(tmp_path / name, text.encode()) for name in ("a.txt", "b.txt")]
    assert list(documents(names[:1], "<|endoftext|>")) == ["one", "\ntwo"]
    with pytest.warns(MinigptWarning, match=r"a\.txt: holds <\|endoftext\|> as plain") as caught:
        assert list(documents(names, None, ["<|endoftext|>"])) == [text, text]
    assert len(caught) == 1
    lines = write(tmp_path / "c.jsonl", b'{"text": "a"}\n{"text": "b<|end|>"}\n')
    with pytest.warns(MinigptWarning, match=r"c\.jsonl, line 2: holds <\|end\|>"):
        list(documents([lines], None, ["<|user|>", "<|end|>"]))
    assert list(documents([lines], "<|end|>")) == ["a", "b"]


def test_cut_keeps_a_text_without_marks() -> None:
    assert list(cut(" \n", "|")) == [" \n"]
    assert list(cut("", "|")) == [""]
    assert list(cut("a|b", "|")) == ["a", "b"]
    assert list(cut("|", "|")) == []


def test_no_tokens_give_no_warning() -> None:
    PlainTokens([]).warn_of("text", "a")


def test_standard_input_without_bytes(monkeypatch) -> None:
    """A notebook's has characters only."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("é"))
    assert read_text("-", 99) == "é"
