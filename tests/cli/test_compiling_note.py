"""Every command that compiles kernels says so on a terminal, once, when it begins to."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from minigpt.cli import main, terminal
from minigpt.kernels import events


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def compile_twice(*_: Any, **__: Any) -> None:
    """What a command does that calls two kernels which are not in the cache."""
    for _ in range(2):
        on_compile = events.on_compile.get()
        assert on_compile is not None
        on_compile()


@pytest.mark.parametrize(
    ("stream", "arguments", "notes"),
    [(Terminal, [], 1), (io.StringIO, [], 0), (io.StringIO, ["--verbose"], 1)],
)
def test_a_command_that_compiles_says_so_once(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], arguments: list[str], notes: int
) -> None:
    written = stream()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(terminal, "read_text", compile_twice)
    monkeypatch.setattr("minigpt.cli.generate.read_text", compile_twice)
    main._run(["generate", *arguments, "-m", "nowhere", "hi"])
    assert written.getvalue().count("[compiling the kernels") == notes
    assert events.on_compile.get() is None  # outside of a command nothing is written
