"""Every command that compiles kernels says so on a terminal, before it starts."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from minigpt.cli import main
from minigpt.kernels import jit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


COMMANDS = {
    "generate": ["generate", "-m", "MODEL", "hi", "-n", "1"],
    "eval": ["eval", "-m", "MODEL", "TEXT"],
    "compare": ["compare", "MODEL", "MODEL", "--text", "TEXT"],
    "bench": ["bench", "-m", "MODEL", "--prompt-tokens", "2", "--gen-tokens", "1", "--reps", "1"],
    "convert": ["convert", "MODEL", "FOLDER", "--dtype", "int8"],
    "train": ["train", "TEXT", "-m", "MODEL", "--out", "FOLDER", "--steps", "1", "--context", "8"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("must_compile", [True, False])
def test_a_command_that_compiles_says_so(
    name: str, must_compile: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hello world, hello hello world\n" * 4)
    paths = {"MODEL": str(model), "TEXT": str(text), "FOLDER": str(tmp_path / "new")}
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(jit, "must_compile", lambda: must_compile)
    assert main._run([paths.get(word, word) for word in COMMANDS[name]]) == 0
    assert isinstance(sys.stderr, Terminal)
    assert ("[compiling the kernels" in sys.stderr.getvalue()) == must_compile
