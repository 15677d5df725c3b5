"""Task files: each form is read, and errors name file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt.errors import InputError
from minigpt.evaluation.task_files import Choice, Document, LastWord, read_task_file

WORD = {"context": "The cat sat on the", "continuation": "mat"}
CHOICE = {"query": "Question: Which?", "choices": ["this", "that"], "gold": 1}


def write(folder: Path, *lines: Any) -> str:
    """A task file of these lines: bytes as they are, others as JSON."""
    path = folder / "task.jsonl"
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(data))
    return str(path)


def test_last_words_are_stripped(tmp_path: Path) -> None:
    other = {"continuation": " two\nwords\n", "context": "\n\nSome  text \n", "id": 7}
    name = write(tmp_path, WORD, b"", other)
    assert read_task_file(name) == [
        LastWord(f"{name}, line 1", "The cat sat on the", "mat"),
        LastWord(f"{name}, line 3", "Some  text", "two\nwords"),
    ]


def test_questions_get_an_answer_line(tmp_path: Path) -> None:
    """Only a query that begins with Question: and does not end in Answer: gets one."""
    plain = {
        "query": "He opened ",
        "choices": [" a door ", "the sea", "\u00e9"],
        "gold": 0,
        "text": 1,
    }
    asked = {**CHOICE, "query": "Question: Which?\nAnswer:"}
    name = write(tmp_path, CHOICE, plain, asked)
    assert read_task_file(name) == [
        Choice(f"{name}, line 1", "Question: Which?\nAnswer:", ("this", "that"), 1),
        Choice(f"{name}, line 2", "He opened", ("a door", "the sea", "\u00e9"), 0),
        Choice(f"{name}, line 3", "Question: Which?\nAnswer:", ("this", "that"), 1),
    ]


def test_documents_are_unchanged(tmp_path: Path) -> None:
    name = write(tmp_path, {"text": " a\n"}, {"text": "b\u2028c"})
    lines = [Document(f"{name}, line 1", " a\n"), Document(f"{name}, line 2", "b\u2028c")]
    assert read_task_file(name) == lines


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("must be a JSON object", b"[]"),
        ("is not JSON", b'{"context": "a"'),
        ("is not JSON that can be read", b"[" * 100_000),
        ("not UTF-8", b'{"context": "\xff", "continuation": "a"}'),
        ('has no "continuation"; all lines must be of the first', {"context": "a"}),
        ('has no "context"', CHOICE),
        ('has no "context"', {}),
        ('a text as its "context"', WORD | {"context": None}),
        ('a text as its "continuation"', WORD | {"continuation": ["mat"]}),
        ('its "continuation" is empty', WORD | {"continuation": " \n"}),
        ('its "context" is empty', WORD | {"context": ""}),
        ("half of a character", b'{"context": "\\ud800", "continuation": "a"}'),
    ],
)
def test_wrong_last_word_lines_are_named(tmp_path: Path, message: str, line: Any) -> None:
    assert_refused(write(tmp_path, WORD, b"", line), 3, message)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ('a text as its "query"', {"query": 3}),
        ('its "query" is empty', {"query": "\t"}),
        ('"choices" that are a list of two texts or more', {"choices": "this"}),
        ('"choices" that are a list of two texts or more', {"choices": ["this"]}),
        ("a text as its choice 1", {"choices": ["this", None]}),
        ("its choice 0 is empty", {"choices": [" ", "that"]}),
        ("its choice 1 has '\\\\udc00', half of a character", {"choices": ["this", "\udc00"]}),
        ('its "gold" is 2; must be the number of a choice, from 0 to 1', {"gold": 2}),
        ('its "gold" is -1', {"gold": -1}),
        ('its "gold" is True', {"gold": True}),
        ('its "gold" is 1.0', {"gold": 1.0}),
        ("its \"gold\" is 'B'", {"gold": "B"}),
        ('its "gold" is ', {"gold": 10**4000}),
    ],
)
def test_wrong_multiple_choice_lines_are_named(
    tmp_path: Path, message: str, change: dict[str, Any]
) -> None:
    assert_refused(write(tmp_path, CHOICE, CHOICE | change), 2, message)


def test_an_unknown_form_is_named(tmp_path: Path) -> None:
    forms = '"context", "continuation"; or "query", "choices", "gold"; or "text"'
    assert_refused(write(tmp_path, {"question": "a"}), 1, f"is of no known form; must have {forms}")


def test_a_file_without_lines_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task\.jsonl: holds no lines"):
        read_task_file(write(tmp_path, b"\n \n"))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_task_file(str(path))


@pytest.mark.parametrize("file", [None, 5, b"a.jsonl", ["a.jsonl"], ""])
def test_a_file_is_a_name_or_a_path(tmp_path: Path, file: Any) -> None:
    with pytest.raises(InputError, match=r"^file .*: must be a file name"):
        read_task_file(file)
    path = Path(write(tmp_path, CHOICE))
    assert read_task_file(path) == read_task_file(str(path))


def assert_refused(name: str, line: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_task_file(name)
    assert str(caught.value).startswith(f"{name}, line {line}: ")
    assert "\n" not in str(caught.value)
