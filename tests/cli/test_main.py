"""All commands: help, exit codes, one line per failure, interrupts."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import minigpt
from minigpt.cli.commands import cli

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Fails = Callable[..., None]
ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(cli.commands)


def test_version(run: Run) -> None:
    assert run("--version").stdout.decode() == f"minigpt {minigpt.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_documents_every_option(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    options = re.split(r"\n  (?=-)", done.stdout.decode().partition("Options:")[2])
    assert len(options) > 1
    for option in options[1:]:
        assert len(option.split("  ", 1)[1].split()) > 2, option


def test_every_command_is_in_the_help_test() -> None:
    """The commands of the contract; a group without commands would leave the tests empty."""
    assert {
        "bench", "compare", "compile", "convert", "eval", "generate", "info", "tokenize", "train",
        "train-tokenizer",
    } <= set(COMMANDS)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example(command: str) -> None:
    """The example's options exist: its line is parsed, and nothing is run."""
    epilog = cli.commands[command].epilog or ""
    start, _, line = epilog.partition(f"Example: minigpt {command} ")
    assert (start, bool(line)) == ("", True)
    cli.commands[command].make_context(command, shlex.split(line))


def test_help_lists_the_commands_without_loading_the_engine() -> None:
    program = (
        "import sys; sys.argv = ['minigpt', '--help']; import minigpt.cli.main as m\n"
        "try: m.main()\n"
        "except SystemExit: print(sorted({'numpy', 'numba'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert set(COMMANDS) <= set(done.stdout.split())
    assert done.stdout.endswith("[]\n")


def test_the_command_alone_shows_the_help(run: Run) -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == run("--help").stdout


def test_completion_script(run: Run) -> None:
    done = run(env={"_MINIGPT_COMPLETE": "zsh_source"})
    assert (done.returncode, b"compdef" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("word", "args"),
    [
        ("nonsense", ["nonsense"]),
        ("--nonsense", ["--nonsense"]),
        ("extra", ["info", "a", "b"]),
        ("minigpt generate --help", ["generate", "-m", "x", "text", "--bogus"]),
        ("--max-tokens", ["generate", "-m", "x", "text", "-n", "-1"]),
        ("--max-tokens", ["generate", "-m", "x", "text", "-n", "1.5"]),
        ("--temperature", ["generate", "-m", "x", "text", "--temperature", "-0.1"]),
        ("--temperature", ["generate", "-m", "x", "text", "--temperature", "nan"]),
        ("--temperature", ["generate", "-m", "x", "text", "--temperature", "inf"]),
        ("--top-k", ["generate", "-m", "x", "text", "--top-k", "-1"]),
        ("--top-p", ["generate", "-m", "x", "text", "--top-p", "0"]),
        ("--top-p", ["generate", "-m", "x", "text", "--top-p", "nan"]),
        ("--min-p", ["generate", "-m", "x", "text", "--min-p", "1.1"]),
        ("--seed", ["generate", "-m", "x", "text", "--seed", str(2**64)]),
        ("--stop", ["generate", "-m", "x", "text", "--stop", ""]),
        ("--dtype", ["generate", "-m", "x", "text", "--dtype", "f8"]),
        ("--threads", ["generate", "-m", "x", "text", "--threads", "0"]),
        ("--threads", ["generate", "-m", "x", "text", "--threads", "100000"]),
        ("quote it", ["generate", "-m", "x", "Once", "upon"]),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(fails: Fails, word: str, args: list[str]) -> None:
    fails(2, word, *args)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="arguments are Unicode there")
@pytest.mark.parametrize("args", [[b"\xff"], [b"text", b"--stop", b"\xff"]])
def test_an_argument_that_is_not_utf8(fails: Fails, args: list[bytes]) -> None:
    fails(2, "UTF-8", "generate", "-m", "x", *args, env={"PYTHONUTF8": "1"})


@pytest.mark.parametrize("args", [["generate", "text", "-m"], ["info"], ["tokenize", "text", "-m"]])
def test_a_missing_source(fails: Fails, args: list[str], tmp_path: Path) -> None:
    fails(1, "nowhere", *args, str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["generate", "Once upon a time", "-n", "3", "--temperature", "0"], b" "),
        (["info"], b"tales-6m"),
        (["tokenize", "Once upon a time"], b"\n"),
    ],
)
def test_the_bundled_model_is_the_default(run: Run, args: list[str], found: bytes) -> None:
    done = run(*args)
    assert (done.returncode, found in done.stdout, done.stderr) == (0, True, b"")


def test_an_error_message_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    from minigpt.cli.terminal import fail

    assert fail("a\nb\x1b[2Jc\u2028d", 1) == 1
    assert capsys.readouterr().err == "Error: a b\\x1b[2Jc d\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk(fails: Fails, model: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        fails(1, "standard output", "info", model, stdout=full)


@pytest.mark.skipif(sys.platform == "win32", reason="there, a program cannot close its stdout")
@pytest.mark.parametrize(
    "args", [["info"], ["tokenize", "text"], ["generate", "text", "-n", "1"], ["--version"]]
)
def test_a_closed_stdout(run: Run, model: Path, args: list[str]) -> None:
    if args[0] == "info":
        args = [*args, str(model)]
    elif args[0] != "--version":
        args = [*args, "-m", str(model)]
    done = run(*args, preexec_fn=lambda: os.close(1))
    assert done.returncode == 1
    assert re.fullmatch(rb"Error: .*Bad file descriptor\n", done.stderr)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(("code", "args"), [(2, ["nonsense"]), (1, ["info", "nowhere"])])
def test_stderr_that_cannot_be_written(run: Run, code: int, args: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        assert run(*args, stderr=full).returncode == code


@pytest.mark.parametrize("module", ["click", "numpy", "numba"])
def test_an_interrupt_while_importing(module: str, model: Path) -> None:
    program = f"""
import sys
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
sys.argv = ["minigpt", "generate", "text", "-m", {str(model)!r}]
from minigpt.cli.main import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal to send")
def test_an_interrupt_while_waiting_for_stdin(start: Callable[..., subprocess.Popen]) -> None:
    process = start("tokenize", "-m", "x", "-", stdin=subprocess.PIPE)
    # More than a pipe holds: once this is written, the command is reading; no end of file follows.
    process.stdin.write(b"a" * 2_000_000)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output, error) == (130, b"", b"")
