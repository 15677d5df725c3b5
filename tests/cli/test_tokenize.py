"""The command `minigpt tokenize`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_ids_are_printed_on_one_line(run: Run, model: Path) -> None:
    done = run("tokenize", "-m", model, "hello hello")
    assert (done.stdout, done.stderr, done.returncode) == (b"259 32 259\n", b"", 0)


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_stdin_is_encoded_unchanged(run: Run, model: Path, dash: list[str]) -> None:
    text = "h\u00e9\r\n\u65e5 \n".encode()
    ids = run("tokenize", "-m", model, *dash, input=text).stdout
    assert len(ids.split()) == len(text)
    decoded = run("tokenize", "-m", model, "--decode", *dash, input=ids)
    assert decoded.stdout == text


def test_an_empty_text_has_no_ids(run: Run, model: Path) -> None:
    assert run("tokenize", "-m", model, "").stdout == b"\n"
    assert run("tokenize", "-m", model, "--decode", "[]").stdout == b""


def test_special_tokens_are_plain_text_unless_allowed(run: Run, model: Path) -> None:
    plain = run("tokenize", "-m", model, "<|endoftext|>").stdout.split()
    assert len(plain) == len("<|endoftext|>")
    assert run("tokenize", "-m", model, "--special", "<|endoftext|>").stdout == b"261\n"
    assert run("tokenize", "-m", model, "--decode", "261,259").stdout == b"hello"
    decoded = run("tokenize", "-m", model, "--decode", "--special", "[261, 259]").stdout
    assert decoded == b"<|endoftext|>hello"


def test_json_has_text_ids_and_their_number(run: Run, model: Path) -> None:
    done = run("tokenize", "-m", model, "--json", "hello")
    assert json.loads(done.stdout) == {"text": "hello", "ids": [259], "tokens": 1}


@pytest.mark.parametrize("ids", ["x", "1.0", "-- -1", "99999", "9" * 5000, "\u0661"])
def test_wrong_ids(fails: Callable[..., None], model: Path, ids: str) -> None:
    fails(1, "id", "tokenize", "-m", model, "--decode", *ids.split())


def test_stdin_that_is_not_utf8(fails: Callable[..., None], model: Path) -> None:
    fails(1, "line 1: the byte 0xff is not UTF-8", "tokenize", "-m", model, input=b"ab\xff")
