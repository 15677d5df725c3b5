"""The options that all commands share: --tokenizer and --special."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt.cli.commands import cli

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
SPECIAL = {"generate", "tokenize", "eval", "compare", "convert", "train", "train-tokenizer"}


def options(command: str) -> set[str]:
    return {option for parameter in cli.commands[command].params for option in parameter.opts}


def test_every_command_with_a_model_takes_a_tokenizer() -> None:
    with_model = {name for name in cli.commands if "--model" in options(name)}
    assert with_model >= {"generate", "eval", "tokenize", "train", "bench"}
    for command in with_model | {"compare", "convert"}:
        assert "--tokenizer" in options(command), command


def test_every_command_with_a_text_reads_special_tokens() -> None:
    assert {name for name in cli.commands if "--special" in options(name)} >= SPECIAL


@pytest.fixture
def bare(model: Path, tmp_path: Path) -> Path:
    """The model without its tokenizer, and a text beside it."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, folder)
    (tmp_path / "a.txt").write_text("hello hello and all the others")
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "generate -m MODEL hello -n 5 --seed 1",
        "tokenize -m MODEL hello",
        "convert MODEL out --to gguf",
        "convert MODEL out --dtype int4 --calibrate a.txt",
    ],
)
def test_a_model_without_a_tokenizer_takes_another(
    run: Run, fails: Callable[..., None], model: Path, bare: Path, tmp_path: Path, line: str
) -> None:
    """With the result of the model that has one; without the option the error names it."""
    words = line.split()
    fails(1, "name a source that has one with --tokenizer", *with_model(words, bare))
    written = []
    for source in (model, bare):
        done = run(*with_model(words, source), "--tokenizer", model)
        assert (done.returncode, done.stderr) == (0, b"")
        out = tmp_path / "out"
        if out.is_dir():
            assert (out / "vocab.json").read_bytes() == (model / "vocab.json").read_bytes()
            written.append((out / "model.safetensors").read_bytes())
            shutil.rmtree(out)
        else:  # a GGUF file holds the name of the folder
            written.append(done.stdout)
            out.unlink(missing_ok=True)
    assert written[0] == written[1]


def with_model(words: list[str], source: Path) -> list[str]:
    return [str(source) if word == "MODEL" else word for word in words]


def test_compare_takes_one_tokenizer_for_both(run: Run, model: Path, bare: Path) -> None:
    done = run("compare", bare, model, "--text", "a.txt", "--tokenizer", model)
    assert (done.returncode, done.stderr) == (0, b"")
    done = run("eval", "-m", bare, "a.txt", "--tokenizer", model)
    assert (done.returncode, done.stderr) == (0, b"")


def test_special_without_a_text_is_a_wrong_command_line(
    fails: Callable[..., None], model: Path
) -> None:
    fails(2, "--calibrate", "convert", model, "out", "--special")


def test_special_tokens_in_a_prompt_are_warned_of_where_they_are_plain_text(
    run: Run, model: Path
) -> None:
    line = ["generate", "-m", model, "hello<|endoftext|>", "-n", "1", "--seed", "1"]
    done = run(*line)
    assert done.stderr.startswith(b"Warning: the prompt: holds <|endoftext|> as plain text")
    assert done.stderr.count(b"\n") == 1
    assert run(*line, "--special").stderr == b""


def test_standard_input_is_read_as_files_are(run: Run, model: Path) -> None:
    """PowerShell pipes UTF-16; the ids of --decode may come from such a file, too."""
    ids = run("tokenize", "-m", model, input="hello h\u00e9".encode()).stdout
    assert run("tokenize", "-m", model, input="hello h\u00e9".encode("utf-16")).stdout == ids
    decoded = run("tokenize", "-m", model, "--decode", input=ids.decode().encode("utf-16"))
    assert decoded.stdout.decode() == "hello h\u00e9"
