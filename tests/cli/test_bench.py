"""`minigpt bench`, run as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--prompt-tokens", "20", "--gen-tokens", "5", "--depth", "7", "--reps", "2"]


def test_json_has_the_fields_of_the_contract(run: Run, model: Path) -> None:
    done = run("bench", "-m", model, *SHORT, "--dtype", "bf16", "--threads", "1", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    result = json.loads(done.stdout)
    asked = {"model": str(model), "dtype": "bf16", "threads": 1, "prompt_tokens": 20}
    asked |= {"gen_tokens": 5, "depth": 7, "reps": 2}
    measured = [
        "prefill_tokens_per_s", "decode_tokens_per_s", "load_s", "bytes_per_token",
        "stream_bytes_per_s", "bandwidth_fraction", "peak_rss_bytes",
    ]  # fmt: skip
    assert list(result) == [*asked, *measured]
    assert {name: result[name] for name in asked} == asked
    assert all(result[name] > 0 for name in measured)


def test_table(run: Run, model: Path) -> None:
    done = run("bench", "-m", model, *SHORT)
    assert (done.returncode, done.stderr) == (0, b"")
    head, *rows = done.stdout.decode().splitlines()
    assert head.startswith(f"{model}: f32, ")
    assert head.endswith("median of 2")
    units = {row.split()[0]: row.split()[2] for row in rows}
    assert units == {
        "load": "s", "prefill": "tokens/s", "decode": "tokens/s", "reads": "MB/token",
        "memory": "GB/s", "used": "%", "peak": "MB",
    }  # fmt: skip
    assert len({row.index(unit) for row, unit in zip(rows, units.values(), strict=True)}) == 1


@pytest.mark.parametrize(
    ("code", "word", "args"),
    [
        (2, "context is 2048", ["--prompt-tokens", "2049"]),
        (2, "context is 2048", ["--depth", "2048"]),
        (2, "context is 2048", ["--depth", "2000", "--gen-tokens", "64"]),
        (2, "--prompt-tokens", ["--prompt-tokens", "0"]),
        (2, "--gen-tokens", ["--gen-tokens", "0"]),
        (2, "--depth", ["--depth", "-1"]),
        (2, "--reps", ["--reps", "0"]),
        (2, "--dtype", ["--dtype", "f8"]),
        (2, "--threads", ["--threads", "0"]),
        (2, "extra", ["text"]),
    ],
)
def test_a_wrong_option(
    fails: Callable[..., None], model: Path, code: int, word: str, args: list[str]
) -> None:
    fails(code, word, "bench", "-m", model, *args)


def test_a_missing_source(fails: Callable[..., None], tmp_path: Path) -> None:
    fails(1, "nowhere", "bench", "-m", str(tmp_path / "nowhere"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal to send")
def test_an_interrupt_ends_the_process(model: Path) -> None:
    """The first forward pass interrupts its own process, which would otherwise sleep."""
    program = f"""
import os, signal, sys, time
from minigpt.model.engine import Engine
def interrupted(*_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(100)
Engine.forward = interrupted
sys.argv = ["minigpt", "bench", "-m", {str(model)!r}]
from minigpt.cli.main import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
