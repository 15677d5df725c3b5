"""The command line inside a process that lives on: a notebook, a thread, a captured test."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt import __version__
from minigpt.cli import main

from .conftest import ENVIRONMENT


class BareStream:
    """The least that print() needs."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


class NotebookStream(BareStream):
    """What a notebook puts in the place of sys.stdout: no file, no buffer, no descriptor."""

    encoding = "UTF-8"

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("stream", [NotebookStream(), BareStream()])
def test_the_result_goes_to_a_stream_that_is_no_file(
    stream: BareStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    assert main._run(["--version"]) == 0
    assert main._run(["tokenize", "hi"]) == 0
    assert stream.text == f"minigpt {__version__}\n71 72\n"


def test_an_error_goes_to_a_stream_that_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = NotebookStream()
    monkeypatch.setattr(sys, "stderr", stream)
    assert main._run(["info", "nowhere"]) == 1
    assert stream.text.startswith("Error: ")


def test_a_redirected_stream_receives_the_result() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        assert main._run(["tokenize", "hi"]) == 0
    assert stream.getvalue() == "71 72\n"


@pytest.mark.parametrize("command", [["tokenize"], ["tokenize", "-"]])
def test_a_text_comes_from_a_stdin_that_is_no_file(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    assert main._run(command) == 0
    assert capsys.readouterr().out == "71 72\n"


def _python(code: str, model: Path) -> str:
    """What a program prints that runs `code` with `model`, the path of a model folder."""
    done = subprocess.run(
        [sys.executable, "-c", f"model = {str(model)!r}\n{code}"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_signal_handlers_are_put_back(model: Path) -> None:
    code = """
import signal
from minigpt.cli import main
signals = signal.SIGINT, signal.SIGTERM
before = [signal.getsignal(s) for s in signals]
main._run(["generate", "-m", model, "-n", "1", "hi"])
print([signal.getsignal(s) for s in signals] == before)
"""
    assert _python(code, model).endswith("True\n")


def test_a_command_runs_in_a_thread(model: Path) -> None:
    code = """
import threading
from minigpt.cli import main
codes = []
command = ["generate", "-m", model, "-n", "1", "hi"]
thread = threading.Thread(target=lambda: codes.append(main._run(command)))
thread.start()
thread.join()
print(codes)
"""
    assert _python(code, model).endswith("[0]\n")


INTERACTIVE = """
import runpy, sys
sys.ps1 = ">>> "  # what makes a Python interactive

def run(*args):
    sys.argv = ["minigpt", *args]
    try:
        runpy.run_module("minigpt", run_name="__main__")
    except SystemExit as exit:
        return exit.code
"""


def test_an_interactive_python_keeps_its_settings(model: Path) -> None:
    code = f"""{INTERACTIVE}
import gc, signal
before = gc.get_threshold(), gc.get_freeze_count(), signal.getsignal(signal.SIGINT)
code = run("generate", "-m", model, "-n", "1", "hi")
print(code, (gc.get_threshold(), gc.get_freeze_count(), signal.getsignal(signal.SIGINT)) == before)
"""
    assert _python(code, model).endswith("0 True\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a whole console")
def test_an_interactive_python_survives_ctrl_c(model: Path) -> None:
    code = f"""{INTERACTIVE}
import signal

class Stdout:
    encoding = "UTF-8"

    def write(self, text):
        signal.raise_signal(signal.SIGINT)  # while the first token is written

    def flush(self):
        pass

stdout, sys.stdout = sys.stdout, Stdout()
try:
    run("generate", "-m", model, "-n", "100", "hi", "--temperature", "0")
    print("not interrupted", file=stdout)
except KeyboardInterrupt:
    print("alive", file=stdout)
"""
    assert _python(code, model) == "alive\n"
