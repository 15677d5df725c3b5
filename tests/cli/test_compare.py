"""The command `minigpt compare`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Fails = Callable[..., None]
TEXT = b"hello world, h\xc3\xa9llo\r\n" * 9
SHORT = ["--window", "64", "--stride", "16"]
NAMES = [
    "model_a", "model_b", "dtype_a", "dtype_b", "window", "stride", "tokens", "perplexity_a",
    "perplexity_b", "perplexity_change_percent", "kl_mean", "kl_p99", "kl_max", "top1_agreement",
    "seconds", "tokens_per_s",
]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_bytes(TEXT)
    return tmp_path / "a.txt"


def test_json_of_two_dtypes(run: Run, model: Path, text: Path) -> None:
    done = run("compare", model, model, "--text", text, "--dtype-b", "bf16", *SHORT, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    found = json.loads(done.stdout)
    assert list(found) == NAMES
    assert (found["model_a"], found["model_b"]) == (str(model), str(model))
    assert (found["dtype_a"], found["dtype_b"]) == ("f32", "bf16")
    assert (found["window"], found["stride"]) == (64, 16)
    assert 0 < found["kl_mean"] <= found["kl_p99"] <= found["kl_max"]
    assert 0 < found["top1_agreement"] <= 1
    assert found["perplexity_a"] != found["perplexity_b"]


def test_a_model_does_not_diverge_from_itself(run: Run, model: Path) -> None:
    line = ["compare", model, model, "--text", "-", "--dtype-a", "bf16", "--dtype-b", "bf16"]
    done = run(*line, "--threads", "1", input=TEXT)
    assert (done.returncode, done.stderr) == (0, b"")
    a, b, size, *rows = done.stdout.decode().splitlines()
    assert (a, b) == (f"A  {model}: bf16", f"B  {model}: bf16")
    assert size.endswith("tokens, window 2048, stride 1024")
    assert "B, +0.000 % to A's" in rows[1]
    numbers = [row[11:21].strip() for row in rows]
    assert numbers[0] == numbers[1]
    assert numbers[2:6] == ["0", "0", "0", "100.00"]


def test_different_tokenizers_are_an_error(
    fails: Fails, model: Path, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "merges.txt").write_text("h e\n", encoding="utf-8")
    fails(1, "tokenizers differ", "compare", model, other, "--text", text)


@pytest.mark.parametrize(
    ("word", "content"),
    [
        ("a.txt: empty", b""),
        ("a.txt, line 1: the byte 0xff is not UTF-8", b"ab\xff"),
    ],
)
def test_a_wrong_text_is_named(
    fails: Fails, model: Path, text: Path, word: str, content: bytes
) -> None:
    text.write_bytes(content)
    fails(1, word, "compare", model, model, "--text", "a.txt")


@pytest.mark.parametrize(
    ("code", "word", "args"),
    [
        (1, "nowhere.txt", ["--text", "nowhere.txt"]),
        (2, "window 2049", ["--text", "a.txt", "--window", "2049"]),
        (2, "--text", []),
        (2, "--stride", ["--text", "a.txt", "--window", "8", "--stride", "9"]),
        (2, "--window", ["--text", "a.txt", "--window", "0"]),
        (2, "--dtype-a", ["--text", "a.txt", "--dtype-a", "f8"]),
        (2, "--dtype-b", ["--text", "a.txt", "--dtype-b", "f8"]),
        (2, "extra", ["--text", "a.txt", "c"]),
    ],
)
def test_wrong_options(
    fails: Fails, model: Path, text: Path, code: int, word: str, args: list[str]
) -> None:
    fails(code, word, "compare", model, model, *args)


def test_both_sources_are_required(fails: Fails, model: Path, text: Path) -> None:
    fails(2, "'B'", "compare", model, "--text", text)
    fails(1, "nowhere", "compare", model, "nowhere", "--text", text)
