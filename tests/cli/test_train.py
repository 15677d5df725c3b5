"""`minigpt train`: what it writes and reports, and how it resumes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt.checkpoint import open_checkpoint
from minigpt.cli import train as command
from minigpt.training.presets import PRESETS, new_config
from minigpt.weights.table import parameter_count

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Fails = Callable[..., None]
ROOT = Path(__file__).resolve().parents[2]
STEPS = 300
OPTIONS = [
    "--preset", "tiny", "--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--context", "16",
    "--batch-size", "2", "--eval-every", "100", "--dtype", "f32",
]  # fmt: skip
NEW = ["text.txt", "--out", "run", "--tokenizer", "base", *OPTIONS]


@pytest.fixture
def texts(tmp_path: Path, model: Path) -> Path:
    """A folder with two texts, and the model `base`."""
    (tmp_path / "text.txt").write_text("hello world, hello all. " * 60)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "more.jsonl").write_text('{"text": "well, hell."}\n' * 9)
    (tmp_path / "base").symlink_to(model)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """An uninterrupted run with one thread."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("hello world, hello all. " * 60)
    (folder / "base").symlink_to(model)
    line = [sys.executable, "-m", "minigpt", "train", *NEW, "--steps", str(STEPS)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*line, "--threads", "1", "--verbose"],
        cwd=folder, env=environment, capture_output=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    (folder / "notes").write_bytes(done.stderr)
    return folder / "run"


def lines(run: Path) -> list[dict]:
    """The lines of metrics.jsonl, without times."""
    text = (run / "metrics.jsonl").read_text()
    return [{**json.loads(line), "seconds": 0} for line in text.splitlines()]


def test_evaluations_are_noted_with_speed_and_time_left(trained: Path) -> None:
    notes = (trained.parent / "notes").read_text().splitlines()
    notes = [note for note in notes if not note.startswith("[compiling ")]  # with an empty cache
    assert len(notes) == 4
    assert [note.startswith(f"[step {n} of {STEPS}   loss ") for note, n in
            zip(notes, (100, 200, 300), strict=False)] == [True] * 3  # fmt: skip
    assert all(word in notes[0] for word in ("   validation ", " tokens/s   ", " left]"))
    assert notes[-1].startswith(f"[run: {STEPS} steps; validation loss ")


def test_the_trained_model_continues_its_text(trained: Path, run: Run) -> None:
    losses = [line["loss"] for line in lines(trained)[1:]]
    assert losses[-1] < 1 < 5 < losses[0]
    done = run("generate", "-m", trained, "hello world,", "-n", "3", "--temperature", "0")
    assert (done.returncode, done.stdout[:6]) == (0, b" hello")


def test_without_a_terminal_it_is_silent(run: Run, texts: Path) -> None:
    done = run("train", *NEW, "more.jsonl", "--held-out", "more.jsonl", "--steps", "2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert sorted(path.name for path in (texts / "run").iterdir()) == [
        "config.json", "held-out.tokens", "lock", "loss.svg", "merges.txt", "metrics.jsonl",
        "model.safetensors", "step-00000002", "text.tokens", "vocab.json",
    ]  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
@pytest.mark.slow
def test_a_run_interrupted_and_resumed_ends_with_the_same_bits(
    trained: Path, start: Callable[..., subprocess.Popen[bytes]], run: Run, texts: Path
) -> None:
    """With other numbers of threads. SIGINT and SIGTERM save a checkpoint, SIGKILL does not."""
    process = start("train", *NEW, "--steps", str(STEPS), "--threads", "2", "--verbose")
    wait_for(texts / "run" / "metrics.jsonl", 20, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.decode().splitlines()[-1] == (
        "[interrupted; `minigpt train --resume run` goes on]"
    )
    count = len(lines(texts / "run"))
    assert (texts / "run" / f"step-{count - 1:08}").is_dir()

    process = start("train", "--resume", "run", "--threads", "1")
    wait_for(texts / "run" / "metrics.jsonl", count + 5, process)
    process.terminate()
    assert process.wait() == 130
    count = len(lines(texts / "run"))
    assert (texts / "run" / f"step-{count - 1:08}").is_dir()

    process = start("train", "--resume", "run", "--threads", "1")
    wait_for(texts / "run" / "metrics.jsonl", count + 5, process)
    process.kill()
    process.wait()

    done = run("train", "--resume", "run", "--threads", "2")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert lines(texts / "run") == lines(trained)
    for name in ("model.safetensors", f"step-{STEPS:08}/moments.safetensors"):
        assert (texts / "run" / name).read_bytes() == (trained / name).read_bytes()


def wait_for(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the file has `count` lines."""
    deadline = time.monotonic() + 200  # functions may have to be compiled
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_fine_tuning_starts_from_the_weights_of_a_model(run: Run, texts: Path, model: Path) -> None:
    fine = ["text.txt", "--out", "fine", "-m", "base", "--context", "16", "--dtype", "f32"]
    done = run("train", *fine, "--steps", "1", "--lr", "1e-30", "--weight-decay", "0")
    assert (done.returncode, done.stderr) == (0, b"")
    before, after = open_checkpoint(model), open_checkpoint(texts / "fine")
    for name in before.tensors:
        assert (before.read(name) == after.read(f"transformer.{name}")).all(), name
    assert (texts / "fine" / "vocab.json").read_bytes() == (model / "vocab.json").read_bytes()


def test_minutes_set_the_number_of_steps(run: Run, texts: Path) -> None:
    assert run("train", *NEW, "--minutes", "0.01", "--batch-size", "200").returncode == 0
    (state,) = (texts / "run").glob("step-*/state.json")
    record = json.loads(state.read_text())
    assert 1 <= record["state"]["step"] <= record["settings"]["steps"] < 100


def test_a_run_that_ends_early_says_how_many_of_its_steps_it_made(run: Run, texts: Path) -> None:
    done = run("train", *NEW, "--steps", "1000", "--patience", "1", "--lr", "10", "--verbose")
    assert done.returncode == 0, done.stderr
    last = done.stderr.decode().splitlines()[-1]
    assert re.match(
        r"\[run: [0-9]+ of 1000 planned steps; validation loss [0-9.]+ after step ", last
    )


def test_a_folder_that_holds_a_run(fails: Fails, run: Run, texts: Path) -> None:
    assert run("train", *NEW, "--steps", "1").returncode == 0
    fails(1, "run: holds a training run; `minigpt train --resume run`", "train", *NEW)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("'--out'", ["text.txt"]),
        ("'--out': '' does not name a new folder", ["text.txt", "--out", ""]),
        ("'--out': '.' does not name a new folder", ["text.txt", "--out", "."]),
        ("'--out': '/' does not name a new folder", ["text.txt", "--out", "/"]),
        ("'--out': 'base/..' does not name a new", ["text.txt", "--out", "base/.."]),
        ("'--resume': it is empty", ["--resume", ""]),
        ("the name of a file is empty", [*NEW, ""]),
        ("'--held-out': the name of a file is empty", [*NEW, "--held-out", ""]),
        ("'--resume'", ["text.txt", "--out", "run", "--resume", "run"]),
        ("TEXT...", ["--out", "run", "--tokenizer", "base"]),
        ("'--lr' cannot be given with '--resume'", ["--resume", "run", "--lr", "1"]),
        ("'TEXT' cannot be given with '--resume'", ["text.txt", "--resume", "run"]),
        ("'--recompute' cannot be given", ["--resume", "run", "--recompute"]),
        (
            "'--n-head' cannot be given with '--model'",
            [*NEW[:3], "-m", "base", "--n-head", "2"],
        ),
        ("'--preset' cannot be given with '--model'", [*NEW, "-m", "base"]),
        ("not both", [*NEW, "--steps", "1", "--epochs", "1"]),
        ("--lr", [*NEW, "--lr", "0"]),
        ("'--lr': nan", [*NEW, "--lr", "nan"]),
        ("'--lr': inf", [*NEW, "--lr", "inf"]),
        ("lr 1e+31", [*NEW, "--lr", "1e31"]),
        ("--min-lr", [*NEW, "--min-lr", "-1"]),
        ("min_lr 1: must be at most lr, 0.003", [*NEW, "--min-lr", "1"]),
        ("--warmup", [*NEW, "--warmup", "-1"]),
        ("--decay", [*NEW, "--decay", "step"]),
        ("--weight-decay", [*NEW, "--weight-decay", "nan"]),
        ("--beta-1", [*NEW, "--beta-1", "-0.1"]),
        ("--beta-2", [*NEW, "--beta-2", "1"]),
        ("--clip", [*NEW, "--clip", "inf"]),
        ("--steps", [*NEW, "--steps", "0"]),
        ("steps 9007199254740992", [*NEW, "--steps", str(2**53)]),
        ("--epochs", [*NEW, "--epochs", "0"]),
        ("--patience", [*NEW, "--patience", "0"]),
        ("--eval-every", [*NEW, "--eval-every", "0"]),
        ("--save-every", [*NEW, "--save-every", "1.5"]),
        ("--seed", [*NEW, "--seed", "-1"]),
        ("--dtype", [*NEW, "--dtype", "int8"]),
        ("--batch-size", [*NEW, "--batch-size", "0"]),
        ("batch_size 1000000000", [*NEW, "--batch-size", "1000000000"]),
        ("context 1000000000", [*NEW, "--context", "1000000000"]),
        ("--context", [*NEW, "--context", "0"]),
        ("--threads", [*NEW, "--threads", "0"]),
        ("--n-layer", [*NEW, "--n-layer", "0"]),
        ("n_layer cannot be 10001", [*NEW, "--n-layer", "10001"]),
        ("n_embd 16 is not a multiple of n_head 3", [*NEW, "--n-head", "3"]),
        ("--preset", [*NEW, "--preset", "huge"]),
        ("--minutes", [*NEW, "--minutes", "0"]),
        ("--minutes", [*NEW, "--minutes", "inf"]),
        ("--minutes", ["--resume", "run", "--minutes", "nan"]),
        (
            "context 2049: must be an integer from 1 to 2048",
            [*NEW[:3], "-m", "base", "--context", "2049"],
        ),
    ],
)
def test_a_wrong_command_line(fails: Fails, texts: Path, word: str, line: list[str]) -> None:
    fails(2, word, "train", *line)
    assert not (texts / "run").exists()


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("nowhere.txt", ["nowhere.txt", *NEW[1:]]),
        ("nowhere.txt", [*NEW, "--held-out", "nowhere.txt"]),
        ("the held-out texts are empty", [*NEW, "--held-out", "empty.txt"]),
        ("nowhere", ["text.txt", "--out", "run", "--tokenizer", "nowhere"]),
        ("nowhere: holds no training run", ["--resume", "nowhere"]),
        ("base: holds no training run", ["--resume", "base"]),
        ("context 9999: the text has", [*NEW, "--context", "9999"]),
    ],
)
def test_bad_files_and_data(fails: Fails, texts: Path, word: str, line: list[str]) -> None:
    fails(1, word, "train", *line)
    assert not (texts / "run").exists()


def test_presets_are_those_of_the_library() -> None:
    assert tuple(PRESETS) == command.PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_help_has_the_size_of_each_preset(name: str) -> None:
    """Memory: 16 bytes a parameter, 10 C numbers for each layer and token of a pass, 512 rows of
    logits, and 0.2 GB for the process; tiny to 111M were measured, up to a tenth more or less."""
    preset, help_text = PRESETS[name], command.train.help
    vocab_size = 4096 if name in ("tiny", "small", "medium") else 50257
    context = preset.training.context
    assert context and help_text
    config = new_config(preset, context, vocab_size, None)
    parameters = parameter_count(config, tied=True)
    activations = 2048 * preset.n_layer * 10 * preset.n_embd
    expected = 16 * parameters + 4 * activations + 4 * 512 * vocab_size + 2e8
    (row,) = re.findall(rf"^ *{name} .* GB$", help_text, re.MULTILINE)
    _, size, tokens, gigabytes, unit = row.split()
    assert float(size[:-1]) * {"M": 1e6, "B": 1e9}[size[-1]] == pytest.approx(parameters, 0.03)
    assert (int(tokens), unit) == (context, "GB")
    assert float(gigabytes) == pytest.approx(expected / 1e9, rel=0.05, abs=0.05)
