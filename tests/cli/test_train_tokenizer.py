"""The command `minigpt train-tokenizer`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Fails = Callable[..., None]
A, B = "A hen said: help me bake the bread!\r\n" * 3, "Not I, said the cat é; not I, said the dog."
ENOUGH = ["--vocab-size", "270", "--out", "vocabulary"]
FILES = ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]


@pytest.fixture(autouse=True)
def texts(tmp_path: Path) -> None:
    """a.txt, b.txt, and both texts as lines of both.jsonl."""
    (tmp_path / "a.txt").write_bytes(A.encode())
    (tmp_path / "b.txt").write_bytes(B.encode())
    lines = [json.dumps({"text": text, "more": 1}) for text in (A, B)]
    (tmp_path / "both.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_is_that_of_the_library(run: Run, tmp_path: Path) -> None:
    from minigpt.tokenizer.training import train_tokenizer

    done = run("train-tokenizer", "a.txt", "b.txt", *ENOUGH)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    train_tokenizer([A, B], 270).save_pretrained(tmp_path / "expected")
    found = content(tmp_path / "vocabulary")
    assert sorted(found) == FILES
    assert found == content(tmp_path / "expected")
    assert run("tokenize", "-m", "vocabulary", "--special", "<|endoftext|>").stdout == b"269\n"


def test_order_form_and_hash_seed_do_not_matter(run: Run, tmp_path: Path) -> None:
    ways: list[tuple[list[str], dict[str, Any]]] = [
        (["a.txt", "b.txt"], {"env": {"PYTHONHASHSEED": "1"}}),
        (["b.txt", "a.txt"], {"env": {"PYTHONHASHSEED": "2"}}),
        (["both.jsonl"], {}),
        (["b.txt", "-"], {"input": A.encode()}),
    ]
    for number, (sources, options) in enumerate(ways):
        done = run(
            "train-tokenizer", *sources, "--vocab-size", "270", "--out", f"{number}", **options
        )
        assert done.returncode == 0, done.stderr
        assert content(tmp_path / f"{number}") == content(tmp_path / "0"), sources


def test_an_existing_folder_is_not_changed(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary" / "vocab.json").write_bytes(b"{}")
    fails(1, "already exists", "train-tokenizer", "a.txt", *ENOUGH)
    assert content(tmp_path / "vocabulary") == {"vocab.json": b"{}"}


@pytest.mark.parametrize(
    ("code", "word", "args"),
    [
        (1, "ask for no more, or give more text", ["a.txt", *ENOUGH, "--vocab-size", "8192"]),
        (1, "nowhere.txt", ["a.txt", "nowhere.txt", *ENOUGH]),
        (1, "b.jsonl", ["b.jsonl", *ENOUGH]),
        (2, "257", ["a.txt", *ENOUGH, "--vocab-size", "256"]),
        (2, "TEXT", ENOUGH),
        (2, "--vocab-size", ["a.txt", "--out", "vocabulary"]),
        (2, "--out", ["a.txt", "--vocab-size", "270"]),
        (2, "'--out': '' does not name", ["a.txt", "--vocab-size", "270", "--out", ""]),
        (2, "'--out': '.' does not name", ["a.txt", "--vocab-size", "270", "--out", "."]),
    ],
)
def test_a_failure_leaves_no_folder(
    fails: Fails, tmp_path: Path, code: int, word: str, args: list[str]
) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"words": "b"}\n', encoding="utf-8")
    before = sorted(path.name for path in tmp_path.iterdir())
    fails(code, word, "train-tokenizer", *args)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal to send")
def test_an_interrupt_leaves_no_folder(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    process = start("train-tokenizer", "-", *ENOUGH, stdin=subprocess.PIPE)  # stays open
    while sorted(tmp_path.iterdir()) == before:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert sorted(tmp_path.iterdir()) == before


def test_help_has_an_example(run: Run) -> None:
    text = " ".join(run("train-tokenizer", "--help").stdout.decode().split())
    assert "minigpt train-tokenizer books/*.txt --vocab-size 8192 --out vocabulary" in text


def test_end_of_text_tokens_are_no_words(run: Run, tmp_path: Path) -> None:
    text = "the cat sat on the mat<|endoftext|>\n" * 9
    (tmp_path / "marked.jsonl").write_text(json.dumps({"text": text}))
    for options, warnings in (((), 1), (("--special",), 0)):
        folder = f"out{warnings}"
        line = ["marked.jsonl", "--vocab-size", "265", "--out", folder, *options]
        done = run("train-tokenizer", *line)
        assert (done.returncode, done.stderr.count(b"Warning: ")) == (0, warnings)
        tokens = json.loads((tmp_path / folder / "vocab.json").read_bytes())
        assert [token for token in tokens if "<|" in token] == ["<|endoftext|>"]
