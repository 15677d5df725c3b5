"""`minigpt generate` on a tiny random model, run as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Start = Callable[..., "subprocess.Popen[bytes]"]
GREEDY = ["--temperature", "0"]


@pytest.fixture(scope="module")
def expected(model: Path) -> str:
    """The library's greedy continuation of "hello" by 20 tokens."""
    from minigpt import GPTModel, GPTTokenizer

    tokenizer = GPTTokenizer.from_pretrained(model)
    ids = tokenizer.encode("hello", return_tensors="np")
    out = GPTModel.from_pretrained(model).generate(ids, max_new_tokens=20)
    return tokenizer.decode(out[0, ids.shape[1] :])


def test_stdout_is_the_continuation(run: Run, model: Path, expected: str) -> None:
    done = run("generate", "-m", model, "hello", "-n", "20", *GREEDY)
    assert (done.stdout.decode(), done.stderr, done.returncode) == (expected, b"", 0)


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_the_prompt_on_stdin(run: Run, model: Path, expected: str, dash: list[str]) -> None:
    done = run("generate", "-m", model, "-n", "20", *GREEDY, *dash, "--echo", input=b"hello")
    assert done.stdout.decode() == "hello" + expected


def test_an_empty_prompt_begins_a_text(run: Run, model: Path) -> None:
    from minigpt import GPTModel

    loaded = GPTModel.from_pretrained(model)
    right = loaded.generate([loaded.config.eos_token_id], 5, temperature=0.8, seed=3)[0, 1:]
    assert loaded.generate([], 5, temperature=0.8, seed=3).tolist() == [right.tolist()]
    line = ["generate", "-m", model, "-n", "5", "--seed", "3", "--json"]
    for found in (run(*line, ""), run(*line, input=b"")):
        result = json.loads(found.stdout)
        assert (result["ids"], result["prompt"], result["prompt_tokens"]) == (right.tolist(), "", 0)


def test_special_tokens_in_the_prompt(run: Run, model: Path) -> None:
    line = ["generate", "-m", model, "hello<|endoftext|>", "-n", "1", "--json"]
    assert json.loads(run(*line, "--special").stdout)["prompt_tokens"] == 2
    assert json.loads(run(*line).stdout)["prompt_tokens"] == 14


def test_words_without_quotes_are_a_wrong_command_line(fails: Callable[..., None]) -> None:
    fails(2, 'quote it: "Once upon a time"', "generate", "Once", "upon", "-n", "3", "a", "time")


def test_top_k_0_is_off(run: Run, model: Path) -> None:
    line = ["generate", "-m", model, "hello", "-n", "8", "--seed", "1"]
    assert run(*line, "--top-k", "0").stdout == run(*line).stdout


def test_filters_at_temperature_0_are_noted(run: Run, model: Path) -> None:
    line = ["generate", "-m", model, "hello", "-n", "1", *GREEDY, "--top-p", "0.9", "--top-k", "2"]
    assert run(*line).stderr == b""
    assert b"with or without --top-k, --top-p" in run(*line, "--verbose").stderr


def test_zero_tokens(run: Run, model: Path) -> None:
    done = run("generate", "-m", model, "hello", "-n", "0")
    assert (done.stdout, done.returncode) == (b"", 0)


def test_a_seed_gives_the_same_text_with_any_number_of_threads(run: Run, model: Path) -> None:
    line = ["generate", "-m", model, "hello", "-n", "30", "--seed"]
    first = run(*line, "1", "--threads", "1").stdout
    assert first
    assert run(*line, "1", "--threads", "2").stdout == first
    assert run(*line, "2").stdout != first


def test_json(run: Run, model: Path, expected: str) -> None:
    done = run("generate", "-m", model, "hello", "-n", "20", *GREEDY, "--json", "--seed", "3")
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["prompt"], found["text"], found["reason"]) == ("hello", expected, "length")
    assert (found["prompt_tokens"], found["new_tokens"], found["seed"]) == (1, 20, 3)
    assert len(found["ids"]) == 20
    assert found["load_s"] > 0
    assert found["first_token_s"] > 0
    assert found["tokens_per_s"] > 0


def test_a_stop_string_ends_the_text_before_it(run: Run, model: Path, expected: str) -> None:
    stop = expected[5:7]
    done = run("generate", "-m", model, "hello", "-n", "20", *GREEDY, "--stop", stop)
    assert done.stdout.decode() == expected[: expected.index(stop)]


def test_notes_go_to_stderr_when_asked_for(run: Run, model: Path) -> None:
    prompt = b"a" * 2046
    done = run("generate", "-m", model, "--verbose", "--temperature", "0", input=prompt)
    assert b"context is full: stopped at 2048 tokens" in done.stderr
    assert b"prompt_tokens 2046, new_tokens 2, seed" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_notes_that_cannot_be_written_are_dropped(run: Run, model: Path, expected: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run("generate", "-m", model, "hello", "-n20", *GREEDY, "--verbose", stderr=full)
    assert (done.stdout.decode(), done.returncode) == (expected, 0)


@pytest.mark.parametrize(("word", "text"), [("2048", b"a" * 2049), ("UTF-8", b"\xff")])
def test_a_wrong_prompt(fails: Callable[..., None], model: Path, word: str, text: bytes):
    fails(1, word, "generate", "-m", model, input=text)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locale")
def test_output_is_utf8_whatever_the_locale(run: Run, model: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    text = "h\u00e9\u65e5\r\n".encode()
    done = run("generate", "-m", model, "-n", "0", "--echo", input=text, env=plain)
    assert (done.stdout, done.stderr) == (text, b"")


def test_a_closed_pipe_is_no_error(start: Start, model: Path) -> None:
    process = start("generate", "-m", model, "hello", "-n", "2000", *GREEDY)
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal to send")
def test_an_interrupt_keeps_the_text_written_before(start: Start, model: Path) -> None:
    # The signal follows the first token; hundreds are still to come.
    process = start("generate", "-m", model, "hello", "-n", "2000", "--seed", "1")
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal to send")
@pytest.mark.slow
def test_an_interrupt_during_compilation(start: Start, model: Path) -> None:
    uncached = {"MINIGPT_CACHE": ""}  # nothing is compiled yet
    process = start("generate", "-m", model, "hello", "--verbose", env=uncached)
    assert b"compiling" in process.stderr.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=4)
    assert (process.returncode, output, error) == (130, b"", b"")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_terminal_gets_the_prompt_and_a_final_newline(
    start: Start, model: Path, expected: str
) -> None:
    import pty

    master, slave = pty.openpty()
    process = start("generate", "-m", model, "hello", "-n", "20", *GREEDY, stdout=slave)
    _, error = process.communicate(timeout=120)
    os.close(slave)
    written = os.read(master, 10_000).replace(b"\r\n", b"\n")
    os.close(master)
    assert error == b""  # stderr is a pipe here
    assert written.decode() == "hello" + expected.replace("\r\n", "\n") + "\n"


def test_dtypes_and_max_threads_equal_the_librarys() -> None:
    from minigpt.arguments import MAX_THREADS
    from minigpt.cli import terminal
    from minigpt.weights.table import DTYPES

    assert (terminal.DTYPES, terminal.MAX_THREADS) == (DTYPES, MAX_THREADS)
