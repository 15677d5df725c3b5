"""Progress lines, error lines and clock times of minigpt.cli.terminal."""

from __future__ import annotations

import io
import sys

import pytest

from minigpt.cli import terminal


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
