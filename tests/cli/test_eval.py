"""The command `minigpt eval`."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Fails = Callable[..., None]
TEXT = "hello world, h\u00e9llo\r\n" * 9
SHORT = ["--window", "64", "--stride", "16", "--threads", "1"]
NAMES = [
    "model", "dtype", "method", "window", "stride", "tokens", "bytes", "words", "nats_per_token",
    "perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity", "seconds", "tokens_per_s",
    "files",
]  # fmt: skip


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with a.txt and b.txt."""
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    (tmp_path / "b.txt").write_bytes(b"hello hello")
    return tmp_path


def test_json_is_the_result_of_the_library(run: Run, model: Path, texts: Path) -> None:
    from minigpt import GPTModel, GPTTokenizer
    from minigpt.evaluation.perplexity import perplexity

    done = run("eval", "-m", model, "a.txt", *SHORT, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert list(found) == NAMES
    ids = GPTTokenizer.from_pretrained(model).encode(TEXT)
    expected = perplexity(GPTModel.from_pretrained(model), ids, len(TEXT.encode()), 64, 16)
    for name in ("dtype", "window", "stride", "tokens", "bytes", "perplexity", "bits_per_byte"):
        assert found[name] == getattr(expected, name), name
        assert found["files"][0][name] == found[name], name
    assert (found["model"], found["files"][0]["file"]) == (str(model), "a.txt")


def test_json_has_each_file_and_the_total(run: Run, model: Path, texts: Path) -> None:
    done = run("eval", "-m", model, "a.txt", "b.txt", "--dtype", "bf16", "--json")
    found = json.loads(done.stdout)
    a, b = found["files"]
    assert (found["dtype"], found["window"], found["stride"]) == ("bf16", 2048, 1024)
    assert (a["file"], b["file"], b["tokens"], b["bytes"]) == ("a.txt", "b.txt", 3, 11)
    assert found["tokens"] == a["tokens"] + 3
    nats = a["tokens"] * a["nats_per_token"] + 3 * b["nats_per_token"]
    assert math.isclose(found["perplexity"], math.exp(nats / found["tokens"]))


def test_table_of_texts(run: Run, model: Path, texts: Path) -> None:
    done = run("eval", "-m", model, "a.txt", "b.txt", *SHORT)
    assert (done.returncode, done.stderr) == (0, b"")
    head, titles, *rows = done.stdout.decode().splitlines()
    assert head == f"{model}: f32, window 64, stride 16"
    assert titles.split() == ["text", "tokens", "perplexity", "bits/byte", "tokens/s"]
    assert [row.split()[0] for row in rows] == ["a.txt", "b.txt", "together"]
    assert {len(row) for row in rows} == {len(titles)}


@pytest.fixture
def tasks(texts: Path) -> Path:
    """The folder of the texts with files of JSON lines beside them."""
    documents = [{"text": TEXT}, {"text": "hello hello"}]
    words = [{"context": "hello hello", "continuation": word} for word in ("world", "hello", "x")]
    choices = [
        {"query": f"Question: {n}?", "choices": ["hello", "world hello"], "gold": n}
        for n in (0, 1, 1)
    ]
    for name, lines in {"d": documents, "w": words, "c": choices}.items():
        text = "\n\n".join(map(json.dumps, lines))
        (texts / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return texts


def test_json_of_tasks_is_the_result_of_the_library(run: Run, model: Path, tasks: Path) -> None:
    from minigpt import GPTModel, GPTTokenizer
    from minigpt.evaluation.task_files import read_task_file
    from minigpt.evaluation.tasks import last_word_accuracy, multiple_choice

    done = run("eval", "-m", model, "c.jsonl", "w.jsonl", "--threads", "1", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    found = json.loads(done.stdout)
    assert list(found) == ["model", "dtype", "average", "files"]
    loaded = GPTModel.from_pretrained(model), GPTTokenizer.from_pretrained(model)
    for file, evaluated in zip(found["files"], (multiple_choice, last_word_accuracy), strict=True):
        expected = asdict(evaluated(*loaded, read_task_file(str(tasks / file["file"]))))
        assert list(file) == ["file", *expected]
        for name in expected:
            if name not in ("seconds", "tokens_per_s"):
                assert file[name] == expected[name], name
    assert [file["questions"] for file in found["files"]] == [3, 3]
    assert found["files"][0]["accuracy"] in (1 / 3, 2 / 3)


def test_documents_are_scored_as_separate_texts(run: Run, model: Path, tasks: Path) -> None:
    args = ["eval", "-m", model, *SHORT, "--json"]
    documents, files = (
        json.loads(run(*args, *names).stdout) for names in (["d.jsonl"], ["a.txt", "b.txt"])
    )
    for name in ("tokens", "bytes", "nats_per_token", "perplexity", "bits_per_byte"):
        assert documents[name] == documents["files"][0][name] == files[name], name


def test_each_kind_of_file_has_a_table(run: Run, model: Path, tasks: Path) -> None:
    done = run("eval", "-m", model, "c.jsonl", "a.txt", "w.jsonl", "d.jsonl", *SHORT)
    assert (done.returncode, done.stderr) == (0, b"")
    head, *tables = done.stdout.decode().removesuffix("\n").split("\n\n")
    head, *choices = head.splitlines()
    assert head == f"{model}: f32, window 64, stride 16"
    texts, words, (average,) = (table.splitlines() for table in tables)
    for (titles, *rows), names in (
        (choices, ["choice", "c.jsonl"]),
        (texts, ["text", "a.txt", "d.jsonl", "together"]),
        (words, ["last word", "w.jsonl"]),
    ):
        assert titles.startswith(names[0])
        assert [row.split()[0] for row in rows] == names[1:]
        assert {len(row) for row in rows} == {len(titles)}
    titles = "choice questions right by sum per token per byte per character tokens/s"
    assert " ".join(choices[0].split()) == titles
    assert choices[1].count("\u00b1") == choices[1].count("%") == 4
    assert words[1].split()[1:6:2] == ["3", "\u00b1", "%"]
    shown = [float(row.split()[2]) for row in (choices[1], words[1])]
    assert average.startswith("average of 2 files: ")
    assert abs(float(average.split()[4]) - sum(shown) / 2) < 0.011


def test_rolling_windows_are_named_in_table_and_json(run: Run, model: Path, texts: Path) -> None:
    args = ["eval", "-m", model, "a.txt", "--window", "64", "--threads", "1"]
    head, titles, row = run(*args, "--rolling").stdout.decode().splitlines()
    assert head == f"{model}: f32, rolling windows of 64"
    assert " ".join(titles.split()) == (
        "text, rolling tokens perplexity per byte per word bits/byte tokens/s"
    )
    assert len(row) == len(titles)
    rolling, sliding = (
        json.loads(run(*args, *option, "--json").stdout) for option in (["--rolling"], [])
    )
    assert (rolling["method"], sliding["method"]) == ("rolling", "sliding")
    assert rolling["words"] == len(TEXT.split()) + 1  # what follows the last newline counts
    nats = rolling["nats_per_token"] * rolling["tokens"]
    assert math.isclose(rolling["word_perplexity"], math.exp(nats / rolling["words"]))
    assert math.isclose(rolling["bits_per_byte"], math.log2(rolling["byte_perplexity"]))
    assert rolling["perplexity"] != sliding["perplexity"]


def test_options_of_task_files_reach_the_library(run: Run, model: Path, tasks: Path) -> None:
    (tasks / "l.jsonl").write_text('{"text": "hello world"}\n' * 4, encoding="utf-8")
    args = ["--last-word", "--limit", "2", "--shots", "1", "--examples", "w.jsonl", "--seed", "7"]
    done = run("eval", "-m", model, "l.jsonl", *args, "--output", "items.jsonl", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    (found,) = json.loads(done.stdout)["files"]
    assert (found["questions"], found["shots"]) == (2, 1)
    lines = (tasks / "items.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["item"] for line in lines] == ["l.jsonl, line 1", "l.jsonl, line 2"]
    done = run("eval", "-m", model, "l.jsonl", "--no-last-word", "--json")
    assert json.loads(done.stdout)["tokens"] > 0


def test_the_maximum_of_shots_is_that_of_the_library() -> None:
    from minigpt.cli.eval import MAX_SHOTS, SEED
    from minigpt.evaluation import run as library

    assert (MAX_SHOTS, SEED) == (library.MAX_SHOTS, library.SEED)


def test_a_file_that_cannot_be_scored_leaves_the_others_their_results(
    run: Run, model: Path, tasks: Path
) -> None:
    (tasks / "e.txt").write_bytes(b"")
    done = run("eval", "-m", model, "e.txt", "b.txt", "nowhere.txt", "c.jsonl", "--json")
    assert done.returncode == 1
    assert [file["file"] for file in json.loads(done.stdout)["files"]] == ["b.txt", "c.jsonl"]
    error, warning = done.stderr.decode().splitlines()
    assert error.startswith("Error: nowhere.txt: cannot be read")
    assert warning.startswith("Warning: e.txt: nothing in it can be scored")
    done = run("eval", "-m", model, "e.txt", "b.txt")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ('has no "continuation"', b'{"context": "a"}'),
        ("is not JSON", b"a text"),
        ("the byte 0xff is not UTF-8", b'{"context": "\xff"}'),
    ],
)
def test_a_wrong_line_is_named(
    fails: Fails, model: Path, tasks: Path, word: str, line: bytes
) -> None:
    with (tasks / "w.jsonl").open("ab") as file:
        file.write(b"\n" + line)
    fails(1, f"w.jsonl, line 6: {word}", "eval", "-m", model, "w.jsonl")


def test_an_empty_document_is_named_or_counted(
    run: Run, fails: Fails, model: Path, tasks: Path
) -> None:
    (tasks / "e.jsonl").write_bytes(b'{"text": ""}')
    fails(1, "e.jsonl, line 1: empty", "eval", "-m", model, "e.jsonl")
    (tasks / "e.jsonl").write_bytes(b'{"text": "hello"}\n{"text": ""}')
    done = run("eval", "-m", model, "e.jsonl", "--json")
    assert (done.returncode, json.loads(done.stdout)["tokens"]) == (0, 1)
    assert done.stderr == b"Warning: e.jsonl: 1 of 2 texts are empty, and left out\n"


def test_a_word_longer_than_the_context_is_named(fails: Fails, model: Path, tasks: Path) -> None:
    line = json.dumps({"context": "a", "continuation": "x" * 3000})
    (tasks / "e.jsonl").write_text(line, encoding="utf-8")
    fails(1, "e.jsonl, line 1: a continuation of 3001 tokens", "eval", "-m", model, "e.jsonl")


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_a_text_may_come_on_stdin(run: Run, model: Path, dash: list[str]) -> None:
    done = run("eval", "-m", model, *dash, input=b"hello hello")
    row = done.stdout.decode().splitlines()[-1]
    assert (row.startswith("standard input "), row.split()[2]) == (True, "3")


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (": empty", b""),
        (", line 1: the byte 0xff is not UTF-8", b"ab\xff"),
    ],
)
def test_a_wrong_text_is_named(
    fails: Fails, model: Path, tmp_path: Path, word: str, text: bytes
) -> None:
    (tmp_path / "text.txt").write_bytes(text)
    fails(1, f"text.txt{word}", "eval", "-m", model, "text.txt")
    fails(1, f"standard input{word}", "eval", "-m", model, input=text)


def test_a_file_longer_than_the_limit_is_an_error(
    fails: Fails, model: Path, tmp_path: Path
) -> None:
    with (tmp_path / "long.txt").open("wb") as file:
        file.truncate((64 << 20) + 1)  # zeros that take no disk
    fails(1, "long.txt: longer than", "eval", "-m", model, "long.txt")


def test_a_missing_file_is_an_error(fails: Fails, model: Path, texts: Path) -> None:
    fails(1, "nowhere.txt", "eval", "-m", model, "nowhere.txt")
    fails(1, "nowhere", "eval", "-m", "nowhere", "a.txt")
    (texts / "folder").mkdir()
    fails(1, "folder", "eval", "-m", model, "folder")


@pytest.mark.parametrize(
    ("code", "word", "args"),
    [
        (2, "window 2049: must be an integer from 1 to 2048", ["--window", "2049"]),
        (2, "stride 2049: must be an integer from 1 to 2048", ["--stride", "2049"]),
        (2, "--window", ["--window", "0"]),
        (2, "--stride", ["--stride", "0"]),
        (2, "--stride", ["--window", "8", "--stride", "9"]),
        (2, "--dtype", ["--dtype", "f8"]),
        (2, "--threads", ["--threads", "0"]),
        (2, "--rolling has no --stride", ["--rolling", "--stride", "4"]),
        (2, "--limit", ["--limit", "0"]),
        (2, "--shots", ["--shots", "1001"]),
        (2, "--seed", ["--seed", "-1"]),
        (1, "none.jsonl", ["--examples", "none.jsonl"]),
        (1, "none/items.jsonl: cannot be written", ["--output", "none/items.jsonl"]),
    ],
)
def test_wrong_options(
    fails: Fails, model: Path, texts: Path, code: int, word: str, args: list[str]
) -> None:
    fails(code, word, "eval", "-m", model, "a.txt", *args)
