"""What commands share to tell a person how far they are."""

from __future__ import annotations

import io
import sys

import pytest

from minigpt.cli import terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """stderr from here on, 60 columns wide; no fixture, as pytest sets its own after these."""
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "60")
    return stderr


def test_a_line_takes_the_place_of_the_one_before_and_goes_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stderr = on_a_terminal(monkeypatch)
    for text in ("warm-up", "1 of 2", ""):
        terminal.show_line(text)
    short_repr = stderr.getvalue()
    assert "\n" not in short_repr
    assert "\rwarm-up" in short_repr
    assert "\r1 of 2 " in short_repr  # over the longer one before it
    assert short_repr.rpartition("\r")[2] == ""
    assert set(short_repr.split("\r")[-2]) == {" "}


def test_a_line_never_fills_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = on_a_terminal(monkeypatch)
    terminal.show_line("x" * 100)
    assert {len(part) for part in stderr.getvalue().split("\r")[1:]} == {59}


def test_only_a_terminal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    terminal.show_line("1 of 2")
    terminal.progress_line("a.txt", str)(1, 2)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_failure_takes_the_place_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = on_a_terminal(monkeypatch)
    terminal.show_line("1 of 2")
    terminal.fail("it is over", 1)
    assert stderr.getvalue().endswith(f"\r{' ' * 59}\rError: it is over\n")


def test_progress_is_told_as_seldom_as_it_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stderr = on_a_terminal(monkeypatch)
    now = 100.0
    monkeypatch.setattr(terminal, "perf_counter", lambda: now)
    show = terminal.progress_line("a.txt", lambda rate: f"{rate:.0f} tokens/s")
    short_repr = []
    for now in (100.0, 102.0, 102.05, 110.0):
        show(int(now - 100) * 50, 2000)
        short_repr.append(stderr.getvalue().rpartition("\r")[2])
    first = "a.txt   5 %   50 tokens/s   0:38 left"
    assert short_repr == ["", first, first, "a.txt   25 %   50 tokens/s   0:30 left"]


def test_times_are_written_as_clocks_show_them() -> None:
    clock = terminal.clock
    assert [clock(s) for s in (0, 9.6, 65.2, 3725, 360000)] == [
        "0:00", "0:10", "1:05", "1:02:05", "100:00:00",
    ]  # fmt: skip
