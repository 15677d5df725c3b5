"""Progress lines, error lines and clock times of minigpt.cli.terminal."""

from __future__ import annotations

import io
import os
import sys
import threading
import warnings
from pathlib import Path

import click
import pytest

from minigpt.cli import terminal
from minigpt.cli.commands import cli
from minigpt.errors import MinigptWarning, warn, warnings_shown_by


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def stderr_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace stderr by a terminal 60 columns wide.

    Called inside the test: pytest installs its own stderr after the fixtures have run.
    """
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "60")
    return stderr


def test_a_line_replaces_the_one_before_and_is_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = stderr_terminal(monkeypatch)
    for text in ("warm-up", "1 of 2", ""):
        terminal.show_line(text)
    written = stderr.getvalue()
    assert "\n" not in written
    assert "\rwarm-up" in written
    assert "\r1 of 2 " in written  # the space erases part of the longer line before it
    assert written.rpartition("\r")[2] == ""
    assert set(written.split("\r")[-2]) == {" "}


def test_a_line_never_fills_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = stderr_terminal(monkeypatch)
    terminal.show_line("x" * 100)
    assert {len(part) for part in stderr.getvalue().split("\r")[1:]} == {59}


def test_progress_is_written_to_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    terminal.show_line("1 of 2")
    terminal.progress_line("a.txt", str)(1, 2)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_an_error_line_replaces_the_progress_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = stderr_terminal(monkeypatch)
    terminal.show_line("1 of 2")
    terminal.fail("it is over", 1)
    assert stderr.getvalue().endswith(f"\r{' ' * 59}\rError: it is over\n")


def test_progress_is_written_at_most_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = stderr_terminal(monkeypatch)
    now = 100.0
    monkeypatch.setattr(terminal, "perf_counter", lambda: now)
    show = terminal.progress_line("a.txt", lambda rate: f"{rate:.0f} tokens/s")
    written = []
    for now in (100.0, 102.0, 102.05, 110.0):
        show(int(now - 100) * 50, 2000)
        written.append(stderr.getvalue().rpartition("\r")[2])
    first = "a.txt   5 %   50 tokens/s   0:38 left"
    assert written == ["", first, first, "a.txt   25 %   50 tokens/s   0:30 left"]


def test_clock() -> None:
    clock = terminal.clock
    assert [clock(s) for s in (0, 9.6, 65.2, 3725, 360000)] == [
        "0:00", "0:10", "1:05", "1:02:05", "100:00:00",
    ]  # fmt: skip


# ---- wildcards ----


def expanded(*names: str) -> list[str]:
    command = click.Command("test", params=[click.Argument(["names"], nargs=-1)])
    context = click.Context(command)
    return list(terminal.expand_wildcards(context, command.params[0], names))


def test_wildcards_are_expanded_on_windows_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.txt", "[1].txt", "c.md"):
        Path(name).touch()
    names = ("*.md", "?.txt", "-", "c.md", "[1].*", "*.none", "[ab].txt")
    monkeypatch.setattr(os, "name", "posix")
    assert expanded(*names) == list(names)
    monkeypatch.setattr(os, "name", "nt")
    right = ["c.md", "a.txt", "b.txt", "-", "c.md", "[1].txt", "*.none", "[ab].txt"]
    assert expanded(*names) == right


@pytest.mark.parametrize(
    ("command", "expands"),
    [
        ("train", {"texts", "held_out"}),
        ("eval", {"files"}),
        ("train-tokenizer", {"sources"}),
        ("generate", set()),
        ("tokenize", set()),
    ],
)
def test_names_of_files_alone_are_expanded(command: str, expands: set[str]) -> None:
    found = {
        p.name for p in cli.commands[command].params if p.callback is terminal.expand_wildcards
    }
    assert found == expands


def test_a_warning_is_a_line_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under any filter of Python's warnings, in a thread of its own, too."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)

    def work() -> None:
        with warnings_shown_by(terminal.show_warning):
            warn("a\nb")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        work()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with pytest.raises(MinigptWarning, match="c"):
            warn("c")
    assert stderr.getvalue() == "Warning: a\\nb\n" * 2
