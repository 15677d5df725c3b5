"""`minigpt convert`, run as a process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_a_converted_folder_generates_what_the_source_in_that_dtype_does(
    run: Run, model: Path, tmp_path: Path
) -> None:
    done = run("convert", model, "small", "--dtype", "int4")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    generate = ("generate", "hello", "-n", "20", "--temperature", "0")
    converted = run(*generate, "-m", "small")
    assert converted.returncode == 0
    assert converted.stdout == run(*generate, "-m", model, "--dtype", "int4").stdout


def test_info_of_a_converted_folder(run: Run, model: Path) -> None:
    run("convert", model, "small")
    facts = json.loads(run("info", "small", "--json").stdout)
    source = json.loads(run("info", model, "--json").stdout)
    assert facts["dtype"] == "int8"
    assert facts["parameters"] == source["parameters"]
    assert facts["weights_bytes"] < 0.5 * source["weights_bytes"]


@pytest.mark.slow
def test_bench_of_a_converted_folder(run: Run, model: Path) -> None:
    run("convert", model, "small")
    short = ("--prompt-tokens", "8", "--gen-tokens", "2", "--reps", "1", "--json")
    found = json.loads(run("bench", "-m", "small", *short).stdout)
    assert found["dtype"] == "int8"


def test_a_gguf_file_generates_what_the_source_does(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("convert", model, "model.gguf", "--to", "gguf", "--dtype", "f32")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    generate = ("generate", "hello", "-n", "20", "--temperature", "0")
    assert run(*generate, "-m", "model.gguf").stdout == run(*generate, "-m", model).stdout


def test_calibration_with_a_text(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello hello world " * 20)
    assert run("convert", model, "plain", "--dtype", "int4").returncode == 0
    assert run("convert", model, "fitted", "--dtype", "int4", "--calibrate", "text").returncode == 0
    plain, fitted = (tmp_path / name / "model.safetensors" for name in ("plain", "fitted"))
    assert plain.stat().st_size == fitted.stat().st_size
    assert plain.read_bytes() != fitted.read_bytes()


def test_wrong_arguments(fails: Callable[..., None], model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    fails(1, "already exists", "convert", model, "full")
    fails(1, "nowhere", "convert", "nowhere", "new")
    fails(2, "--dtype", "convert", model, "new", "--dtype", "int2")
    fails(2, "--threads", "convert", model, "new", "--threads", "0")
    fails(2, "--threads", "convert", model, "new.gguf", "--to", "gguf", "--threads", "1")
    fails(2, "FOLDER", "convert", model)
    for name in ("", ".", "/", ".."):
        fails(2, f"{name!r} does not name a new folder or file", "convert", model, name)
    fails(2, "q8_0", "convert", model, "new", "--dtype", "q8_0")
    fails(2, "int8", "convert", model, "new.gguf", "--to", "gguf", "--dtype", "int8")
    fails(2, "--calibrate", "convert", model, "new", "--calibrate", "full/mine")
    fails(1, "nowhere", "convert", model, "new", "--dtype", "int4", "--calibrate", "nowhere")
    (tmp_path / "latin").write_bytes(b"\xe4")
    fails(1, "UTF-8", "convert", model, "new", "--dtype", "int4", "--calibrate", "latin")
    (tmp_path / "latin").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
