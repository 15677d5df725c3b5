"""Training runs: they learn, end where they should, and go on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from tiny_run import SETTINGS, ReferenceLearner, begin, go_on, stopping_after

from minigpt import GPTConfig, GPTTokenizer
from minigpt.checkpoint import open_checkpoint
from minigpt.errors import CheckpointError, InputError, MinigptError, SourceError
from minigpt.training import train as training
from minigpt.training.create import create_run
from minigpt.training.metrics import read_lines
from minigpt.training.run_folder import open_run, run_lock
from minigpt.training.schedule import learning_rate
from minigpt.training.train import Limits, train
from minigpt.weights.table import tensor_shapes

N = SETTINGS.steps
_EXPECTED: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time; and a batch has two parts."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(training, "_PART_TOKENS", 16)


@pytest.fixture
def expected(_quick: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a run that nothing interrupted."""
    if not _EXPECTED:
        _EXPECTED.update(whole_run(tmp_path_factory.mktemp("whole") / "run"))
    return _EXPECTED


@pytest.fixture
def run(tmp_path: Path) -> Path:
    begin(tmp_path / "run")
    return tmp_path / "run"


def result(folder: Path) -> dict[str, Any]:
    """All that a run has come to but the time it took: weights, moments, state and metrics."""
    (checkpoint,) = folder.glob("step-*")
    record = json.loads((checkpoint / "state.json").read_text())
    del record["state"]["seconds"], record["state"]["metrics_bytes"]
    lines = [{**line, "seconds": None} for line in read_lines(folder / "metrics.jsonl")]
    arrays = [checkpoint / "model.safetensors", checkpoint / "moments.safetensors"]
    arrays.append(folder / "model.safetensors")
    return {"record": record, "lines": lines, "bytes": [path.read_bytes() for path in arrays]}


def whole_run(folder: Path, **options: Any) -> dict[str, Any]:
    """The result of a run that nothing interrupts."""
    begin(folder, **options)
    go_on(folder)
    return result(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, by its path, but the metrics and the lock."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in paths}
    return {n: p.read_bytes() for n, p in names.items() if n not in ("metrics.jsonl", "lock")}


# ---- what it comes to ----


def test_it_learns_and_writes_down_how(run: Path) -> None:
    state = go_on(run)
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(N + 1))
    assert lines[N]["loss"] < 0.75 * lines[1]["loss"]
    assert [line["step"] for line in lines if "held_out" in line] == [0, 4, 8, 12]
    assert (state.step, state.best, state.best_step) == (N, lines[N]["held_out"], N)
    assert (run / "loss.svg").stat().st_size > 1000


def test_the_folder_is_a_model_source(run: Path) -> None:
    go_on(run)
    config = GPTConfig.from_source(run)
    weights = open_checkpoint(run)
    found = {f"transformer.{name}": shape for name, shape in tensor_shapes(config).items()}
    assert {name: info.shape for name, info in weights.tensors.items()} == found
    assert {info.dtype for info in weights.tensors.values()} == {"F32"}
    assert GPTTokenizer.from_pretrained(run).encode("cat") == [99, 256]


def test_the_losses_are_those_of_the_text(run: Path) -> None:
    """The first loss, and the first on the held-out text, found without the trainer."""
    opened, _, learned = open_run(run)
    tokens = tiny_run.tokenizer(run.parent / "tokenizer")
    ids = np.array([*tokens.encode(tiny_run.HELD_OUT[0]), tokens.eos_token_id])
    learner, nats = ReferenceLearner(opened.config, learned.tensors), 0.0
    for first in range(0, len(ids) - 1, 8):
        row = ids[first : first + 9]
        nats += learner.loss(row[None, :-1], row[None, 1:])
    go_on(run)
    lines = read_lines(run / "metrics.jsonl")
    assert lines[0]["held_out"] == pytest.approx(nats / (len(ids) - 1), 1e-6)
    assert lines[1]["loss"] == pytest.approx(np.log(opened.config.vocab_size), 0.02)


def test_parts_of_a_batch_add_up_to_it(
    run: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_PART_TOKENS", 32)  # all four sequences at once
    go_on(run)
    losses = [line.get("loss", 0) for line in result(run)["lines"]]
    parted = [line.get("loss", 0) for line in expected["lines"]]
    assert losses != parted
    np.testing.assert_allclose(losses, parted, 1e-4)


def test_without_a_held_out_text_the_end_is_held_back(tmp_path: Path) -> None:
    texts = ["the cat sat on the mat. " * 30]
    plan = begin(tmp_path / "run", texts=texts, held_out=None)
    ids = GPTTokenizer.from_pretrained(tmp_path / "run").encode(texts[0])
    assert len(ids) // 100 < 9 == plan.held_back  # a sequence and what follows it
    assert go_on(tmp_path / "run").best is not None


def test_a_text_too_short_to_be_parted_is_learned_from_as_a_whole(tmp_path: Path) -> None:
    assert begin(tmp_path / "run", texts=["a cat sat on it"], held_out=None).held_back == 0
    state = go_on(tmp_path / "run")
    (checkpoint,) = (tmp_path / "run").glob("step-*")
    assert state.best is None
    latest = (checkpoint / "model.safetensors").read_bytes()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == latest


def test_the_model_is_the_best_so_far(tmp_path: Path) -> None:
    """Learning one text by heart makes it worse at another."""
    settings = replace(SETTINGS, steps=40, lr=0.1, eval_every=2)
    begin(tmp_path / "run", settings, ["at" * 200], ["zebras quiz vexed. " * 4])
    best: dict[int, bytes] = {}

    def report(told: Any) -> None:
        best[told.step] = (tmp_path / "run" / "model.safetensors").read_bytes()

    state = go_on(tmp_path / "run", report=report)
    assert state.best_step < state.step == 40
    assert best[40] == best[state.best_step or 1]
    (checkpoint,) = (tmp_path / "run").glob("step-*")
    assert best[40] != (checkpoint / "model.safetensors").read_bytes()


# ---- going on ----


@pytest.mark.parametrize("calls", range(0, 24, 3))
def test_stopped_and_resumed_is_the_same_to_the_bit(run: Path, expected: Any, calls: int) -> None:
    """Also between the two parts of a batch, at odd numbers of calls."""
    assert go_on(run, stop=stopping_after(calls)).step == calls // 2
    assert go_on(run).step == N
    assert result(run) == expected


def test_limits_end_a_run_and_change_nothing_else(run: Path, expected: Any) -> None:
    for steps in (5, 5, 8):
        assert go_on(run, limits=Limits(steps=steps)).step == steps
    assert go_on(run, limits=Limits(minutes=1e-9)).step == 8
    assert go_on(run).step == N
    assert result(run) == expected
    before = contents(run)
    assert go_on(run).step == N
    assert contents(run) == before


def test_a_run_may_go_beyond_its_plan(run: Path) -> None:
    assert go_on(run, limits=Limits(steps=N + 3)).step == N + 3
    lines = read_lines(run / "metrics.jsonl")
    assert {line["lr"] for line in lines[-3:]} == {SETTINGS.lr / 10}


def test_patience_counts_across_a_restart(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=60, lr=0.1, eval_every=2)
    patient = Limits(patience=3)

    def begin_one(folder: Path) -> None:
        begin(folder, settings, ["at" * 200], ["zebras quiz vexed. " * 4])

    begin_one(tmp_path / "whole")
    state = go_on(tmp_path / "whole", limits=patient)
    assert (state.worse, state.step) == (3, state.best_step + 6)
    begin_one(tmp_path / "run")
    go_on(tmp_path / "run", limits=replace(patient, steps=state.step - 1))
    assert go_on(tmp_path / "run", limits=patient).step == state.step
    assert go_on(tmp_path / "run", limits=patient).step == state.step
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_what_is_left_of_a_process_that_died_is_swept(run: Path, expected: Any) -> None:
    """Lines of updates that are made again, half a line, temporaries, an older checkpoint."""
    go_on(run, limits=Limits(steps=4))
    (run / "step-00000000").mkdir()
    (run / ".step-00000008.12ab.tmp").mkdir()
    (run / ".step-00000008.12ab.tmp" / "model.safetensors").write_bytes(b"half")
    (run / ".model.safetensors.link.tmp").write_bytes(b"")
    (run / "model.safetensors").unlink()
    (run / "model.safetensors").write_bytes(b"an older one")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    go_on(run)
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(N + 1))
    assert not list(run.glob(".*"))
    assert [path.name for path in run.glob("step-*")] == [f"step-{N:08}"]
    assert result(run) == expected


def test_a_run_can_be_moved(run: Path, expected: Any) -> None:
    go_on(run, limits=Limits(steps=5))
    shutil.copytree(run, run.parent / "elsewhere")
    shutil.rmtree(run)
    go_on(run.parent / "elsewhere")
    assert result(run.parent / "elsewhere") == expected


# ---- what goes wrong ----


class Diverging(ReferenceLearner):
    """Of whose numbers one kind is none at update 7."""

    what = "loss"
    updates = 4  # already made

    def accumulate(self, ids: np.ndarray, targets: np.ndarray, share: float) -> float:
        nats = super().accumulate(ids, targets, share)
        return float("nan") if self.updates == 6 and self.what == "loss" else nats

    def update(self, step: int, *numbers: float) -> float:
        self.updates = step
        norm = super().update(step, *numbers)
        if step == 7 and self.what == "weights":
            self.tensors["wte.weight"][3, 3] = np.inf
        return float("inf") if step == 7 and self.what == "norm" else norm


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("loss", "update 7: the loss is nan"),
        ("norm", "update 7: the norm of its gradient is inf"),
        ("weights", "update 7: wte.weight is not finite"),
    ],
)
def test_a_run_that_diverges_keeps_its_checkpoint(
    run: Path, expected: Any, what: str, told: str
) -> None:
    go_on(run, limits=Limits(steps=4))
    before = contents(run)

    def learner(*arguments: Any) -> Diverging:
        made = Diverging(*arguments)
        made.what = what
        return made

    limits = Limits(steps=7)
    with pytest.raises(MinigptError, match=told) as caught:
        train(run, limits, make_learner=learner)
    assert "run is as it was after update 4: begin a new run" in str(caught.value)
    assert contents(run) == before
    go_on(run)
    assert result(run) == expected


def test_two_cannot_train_in_a_folder(run: Path) -> None:
    with (
        run_lock(run),
        pytest.raises(InputError, match="run: another process trains here; wait for it"),
    ):
        go_on(run)
    assert go_on(run).step == N


def test_no_run_no_lock(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"tmp.*: holds no training run; `minigpt train TEXT…"):
        go_on(tmp_path)
    with pytest.raises(SourceError, match="nowhere: holds no training run"):
        go_on(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def change(path: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def changed(run: Path) -> None:
        (file,) = run.glob(path)
        file.write_bytes(edit(file.read_bytes()))

    return changed


def swap(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def swapped(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return swapped


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


CHANGES = {
    "config.json: has changed": change("config.json", swap(b'"n_head": 2', b'"n_head": 4')),
    "config.json: no such file": lambda run: (run / "config.json").unlink(),
    "text.tokens: has changed": change("text.tokens", flip_last),
    "held-out.tokens: has changed": change("held-out.tokens", flip_last),
    "text.tokens: no such file": lambda run: (run / "text.tokens").unlink(),
    "state.json: is not valid JSON": change("step-*/state.json", lambda data: data[:100]),
    "state.json: is of version 9": change("step-*/state.json", swap(b'ion": 1', b'ion": 9')),
    "state.json: settings: lr -1": change("step-*/state.json", swap(b'"lr": 0.02', b'"lr": -1')),
    "state.json: settings: must have no": change(
        "step-*/state.json", swap(b'"warmup": 2', b'"warmup": null')
    ),
    "state.json: settings: must have context": change(
        "step-*/state.json", swap(b'"warmup"', b'"warm"')
    ),
    "state.json: state: worse": change("step-*/state.json", swap(b'se": 0', b'se": -1')),
    "state.json: state: must have": change("step-*/state.json", swap(b'"best_step"', b'"step2"')),
    "model.safetensors: .*cut short": change("step-*/model.safetensors", lambda data: data[:-9]),
    "moments.safetensors: .*cut short": change(
        "step-*/moments.safetensors", lambda data: data[:-9]
    ),
    "moments.safetensors: must hold first.wte": change(
        "step-*/moments.safetensors", swap(b"first.wte", b"worst.wte")
    ),
    "moments.safetensors: no such file": lambda run: next(run.glob("step-*/mom*")).unlink(),
}


@pytest.mark.parametrize("told", CHANGES)
def test_what_has_changed_or_is_damaged_is_told(run: Path, told: str) -> None:
    go_on(run, limits=Limits(steps=4))
    CHANGES[told](run)
    before = contents(run)
    with pytest.raises(SourceError, match=told) as caught:
        go_on(run)
    assert len(str(caught.value).splitlines()) == 1
    assert contents(run) == before


def test_a_new_run_does_not_begin_in_one_that_is(run: Path) -> None:
    with pytest.raises(InputError, match="holds a training run; `minigpt train --resume"):
        begin(run)
    (run.parent / "other").mkdir()
    (run.parent / "other" / "mine").write_text("kept")
    with pytest.raises(CheckpointError, match="is there already"):
        begin(run.parent / "other")


@pytest.mark.parametrize(
    ("told", "settings"),
    [
        ("context 9: the model has 8 positions", replace(SETTINGS, context=9)),
        ("batch_size 4.0: must be a whole number", replace(SETTINGS, batch_size=4.0)),
        ("lr 0: must be a number, above 0", replace(SETTINGS, lr=0)),
        ("lr nan: must be a number", replace(SETTINGS, lr=float("nan"))),
        ("beta_2 1.0: must be a number, from 0 to below 1", replace(SETTINGS, beta_2=1.0)),
        ("steps 0: must be a whole number from 1 on", replace(SETTINGS, steps=0)),
        ("decay 'step': must be one of cosine, linear", replace(SETTINGS, decay="step")),
        ("dtype 'f16': must be one of f32, bf16", replace(SETTINGS, dtype="f16")),
        ("recompute 1: must be one of False, True", replace(SETTINGS, recompute=1)),
        ("seed True: must be a whole number", replace(SETTINGS, seed=True)),
        ("epochs 2: give these or steps", replace(SETTINGS, epochs=2)),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, told: str, settings: Any) -> None:
    with pytest.raises(InputError, match=told):
        begin(tmp_path / "run", settings)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.parametrize(
    ("told", "limits"),
    [
        ("steps 0:", Limits(steps=0)),
        ("patience 1.5:", Limits(patience=1.5)),  # type: ignore[arg-type]
        ("minutes 0:", Limits(minutes=0)),
        ("minutes nan:", Limits(minutes=float("nan"))),
    ],
)
def test_limits_that_cannot_be(run: Path, told: str, limits: Limits) -> None:
    with pytest.raises(InputError, match=told):
        go_on(run, limits=limits)


def test_texts_that_are_too_short(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="context 8: the text has 4 tokens"):
        begin(tmp_path / "run", texts=["cats"])
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_the_model_does_not_know(tmp_path: Path) -> None:
    words = tiny_run.tokenizer(tmp_path / "tokenizer")
    config = GPTConfig.from_dict(
        {"n_layer": 1, "n_head": 1, "n_embd": 4, "n_positions": 8, "vocab_size": 9}, "config"
    )
    with pytest.raises(InputError, match="has 258 tokens, and the model knows 9"):
        create_run(tmp_path / "run", ["a"], None, words, config, {}, SETTINGS)


# ---- a disk that fills up ----


class Disk:
    """Lets a number of bytes be written, and a last write in part; then the disk is full."""

    def __init__(self, room: int) -> None:
        self.room = room

    def fdopen(self, descriptor: int, *arguments: Any, **options: Any) -> Any:
        disk, file = self, REAL_FDOPEN(descriptor, *arguments, **options)
        if "r" in file.mode:
            return file
        write = file.write

        class File:
            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def __enter__(self) -> File:
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

            def write(self, data: bytes) -> int:
                size = memoryview(data).nbytes
                if size > disk.room:
                    write(memoryview(data).cast("B")[: disk.room])
                    disk.room = 0
                    raise OSError(28, "No space left on device")
                disk.room -= size
                return write(data)

        return File()


REAL_FDOPEN = os.fdopen
# of a checkpoint with what follows from it: 61 kB, of which 18 are weights and 36 moments
ROOM = [0, 50, 400, 3_000, 19_000, 30_000, 56_000, 57_500, 59_000]


@pytest.mark.parametrize("room", ROOM)
def test_a_full_disk_leaves_the_checkpoint(
    run: Path, expected: Any, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(run, limits=Limits(steps=4))
    disk = Disk(room)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", disk.fdopen)
        with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
            go_on(run)
    steps = {path.name for path in run.glob("step-*")}
    assert steps <= {"step-00000004", "step-00000008"}
    assert not list(run.glob(".step-*")) or steps == {"step-00000008"}
    go_on(run)
    assert result(run) == expected


@pytest.mark.parametrize("room", [0, 500, 2_000, 10_000, 20_000])
def test_a_full_disk_at_the_beginning_leaves_nothing(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fdopen", Disk(room).fdopen)
    with pytest.raises(CheckpointError, match="No space left on device"):
        begin(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


# ---- the learning rate ----


def test_the_learning_rate_rises_and_falls() -> None:
    def rates(decay: str) -> list[float]:
        return [learning_rate(step, 1.0, 0.1, 4, 12, decay) for step in range(1, 15)]

    rise, end = [0.25, 0.5, 0.75, 1.0], [0.1, 0.1, 0.1]
    linear = [1 - 0.9 * n / 8 for n in range(1, 8)]
    assert rates("linear") == pytest.approx(rise + linear + end)
    cosine = [0.1 + 0.45 * (1 + np.cos(np.pi * n / 8)) for n in range(1, 8)]
    assert rates("cosine") == pytest.approx(rise + cosine + end)


def test_without_a_warmup_the_first_update_is_in_the_fall() -> None:
    assert learning_rate(1, 1.0, 0.0, 0, 4, "linear") == 0.75
    assert learning_rate(1, 1.0, 0.5, 0, 1, "cosine") == 0.5
    assert learning_rate(3, 1.0, 0.5, 3, 3, "cosine") == 1.0
