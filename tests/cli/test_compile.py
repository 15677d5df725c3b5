"""`minigpt compile`: afterwards nothing is left to compile; a failure if nothing can be kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def test_a_cache_that_is_turned_off_is_an_error(fails):
    fails(1, "MINIGPT_CACHE", "compile", env={"MINIGPT_CACHE": ""})


def test_a_folder_that_cannot_be_written_is_an_error_before_all_is_compiled(fails, tmp_path):
    (tmp_path / "file").write_text("")
    fails(1, "cannot be kept", "compile", env={"MINIGPT_CACHE": str(tmp_path / "file")})


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("MINIGPT_CACHE") == "", reason="the cache is turned off")
def test_afterwards_no_command_compiles(run, model, tmp_path):
    done = run("compile")
    assert (done.returncode, done.stderr) == (0, b"")
    cache = Path(done.stdout.decode().strip())
    before = set(cache.rglob("*.bin"))
    (tmp_path / "text").write_text("hello world " * 25_000)
    short = ("--prompt-tokens", "2", "--gen-tokens", "1", "--reps", "1")
    sizes = ("--tokenizer", model, "--preset", "tiny", "--steps", "1")
    for command in (
        ("train", "text", "--out", "run", *sizes, "--dtype", "f32"),
        ("train", "text", "--out", "run-bf16", *sizes, "--dtype", "bf16"),
        ("convert", model, "int8", "--dtype", "int8"),
        ("convert", model, "bf16", "--dtype", "bf16"),
        ("convert", "bf16", "int4", "--dtype", "int4"),
        ("bench", "-m", "int4", *short),
        *(("bench", "-m", model, "--dtype", dtype, *short) for dtype in ("f32", "bf16", "int8")),
        ("generate", "-n", "2", "hello"),
        ("tokenize", "-m", model, "-"),
    ):
        done = run(*command, input=(tmp_path / "text").read_bytes())
        assert done.returncode == 0, done.stderr
        assert set(cache.rglob("*.bin")) == before, command
