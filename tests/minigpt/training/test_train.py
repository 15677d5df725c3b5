"""Training runs: they learn, stop at their limits, and resume to the bit."""

from __future__ import annotations

import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from tiny_run import (
    CONFIG,
    N,
    ReferenceLearner,
    contents,
    create,
    result,
    resume,
    stopping_after,
)

from minigpt import GPTTokenizer
from minigpt.errors import InputError, MinigptError
from minigpt.model.optimizer import AdamW
from minigpt.training import limits as clock
from minigpt.training import train as training
from minigpt.training.limits import Limits
from minigpt.training.metrics import read_metrics
from minigpt.training.run_folder import open_run
from minigpt.training.state_json import TrainState
from minigpt.training.train import StepReport, resume_run

pytestmark = pytest.mark.usefixtures("fast")


def test_the_loss_falls_and_every_step_is_logged(run: Path) -> None:
    state = resume(run)
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(N + 1))
    assert lines[N]["loss"] < 0.75 * lines[1]["loss"]
    assert [line["step"] for line in lines if "held_out" in line] == [0, 4, 8, 12]
    assert (state.step, state.best_loss, state.best_step) == (N, lines[N]["held_out"], N)
    assert (run / "loss.svg").stat().st_size > 1000


def test_first_losses_are_those_of_the_initial_model(run: Path) -> None:
    """The validation loss and the first training loss, computed without the training loop.

    The validation text begins after the token that texts begin after.
    """
    opened = open_run(run)
    tokens = tiny_run.tokenizer(run.parent / "tokenizer")
    end = tokens.eos_token_id
    ids = np.array([end, *tokens.encode(tiny_run.VALIDATION[0]), end])
    learner, nats = ReferenceLearner(opened.run.model, opened.tensors.weights), 0.0
    for first in range(0, len(ids) - 1, 8):
        seq = ids[first : first + 9]
        nats += learner.loss(seq[None, :-1], seq[None, 1:])
    resume(run)
    lines = read_metrics(run / "metrics.jsonl")
    assert lines[0]["held_out"] == pytest.approx(nats / (len(ids) - 1), 1e-6)
    assert lines[1]["loss"] == pytest.approx(np.log(opened.run.model.vocab_size), 0.02)


def test_gradients_accumulate_over_micro_batches(
    run: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_MICRO_BATCH_TOKENS", 32)  # all four sequences at once
    resume(run)
    losses = [line.get("loss", 0) for line in result(run)["lines"]]
    accumulated = [line.get("loss", 0) for line in expected["lines"]]
    assert losses != accumulated  # sums in another order: they differ in their last bits
    np.testing.assert_allclose(losses, accumulated, 1e-4)


def test_memory_does_not_grow_with_the_batch(tmp_path: Path) -> None:
    """A batch of a million sequences, which would take 140 MB, is read part by part."""
    create(tmp_path / "run", replace(CONFIG, batch_size=1_000_000), validation=None)
    tracemalloc.start()
    assert resume(tmp_path / "run", stop=stopping_after(3)).step == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000


def test_without_a_validation_text_the_end_of_the_text_is_one(tmp_path: Path) -> None:
    texts = ["the cat sat on the mat. " * 30]
    config = create(tmp_path / "run", texts=texts, validation=None)
    ids = GPTTokenizer.from_pretrained(tmp_path / "run").encode(texts[0])
    assert len(ids) // 100 < 9 == config.validation_tokens  # a sequence and its last target
    assert resume(tmp_path / "run").best_loss is not None


def test_a_short_text_has_no_validation_and_its_model_is_the_latest(tmp_path: Path) -> None:
    config = create(tmp_path / "run", texts=["a cat sat on it"], validation=None)
    assert config.validation_tokens == 0
    state = resume(tmp_path / "run")
    (checkpoint,) = (tmp_path / "run").glob("step-*")
    assert state.best_loss is None
    latest = (checkpoint / "model.safetensors").read_bytes()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == latest


def test_the_model_is_the_one_with_the_lowest_validation_loss(tmp_path: Path) -> None:
    """The run overfits: its training text has nothing in common with its validation text."""
    config = replace(CONFIG, steps=40, lr=0.1, eval_every=2)
    create(tmp_path / "run", config, ["at" * 200], ["zebras quiz vexed. " * 4])
    best: dict[int, bytes] = {}

    def report(step: StepReport) -> None:
        best[step.step] = (tmp_path / "run" / "model.safetensors").read_bytes()

    state = resume(tmp_path / "run", report=report)
    assert state.best_step < state.step == 40
    assert best[40] == best[state.best_step or 1]
    (checkpoint,) = (tmp_path / "run").glob("step-*")
    assert best[40] != (checkpoint / "model.safetensors").read_bytes()


# ---- resuming ----


@pytest.mark.parametrize("calls", range(0, 24, 3))
def test_a_run_stopped_and_resumed_ends_with_the_same_bits(
    run: Path, expected: Any, calls: int
) -> None:
    """An odd number of calls stops between the two micro-batches of a step."""
    assert resume(run, stop=stopping_after(calls)).step == calls // 2
    assert resume(run).step == N
    assert result(run) == expected


def test_limits_end_a_call_and_change_no_bit(run: Path, expected: Any) -> None:
    for steps in (5, 5, 8):
        assert resume(run, limits=Limits(steps=steps)).step == steps
    assert resume(run, limits=Limits(minutes=1e-9)).step == 8
    assert resume(run).step == N
    assert result(run) == expected
    before = contents(run)
    assert resume(run).step == N
    assert contents(run) == before


def test_beyond_its_steps_a_run_has_the_learning_rate_of_the_last(tmp_path: Path) -> None:
    """Which is above 0 if the minimum is not: no step is for nothing."""
    create(tmp_path / "run", replace(CONFIG, min_lr=0.0))
    assert resume(tmp_path / "run", limits=Limits(steps=N + 3)).step == N + 3
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert 0 < lines[N]["lr"] < lines[N - 1]["lr"]
    assert {line["lr"] for line in lines[N:]} == {lines[N]["lr"]}


def test_a_run_of_one_step_learns_at_the_peak(tmp_path: Path) -> None:
    create(tmp_path / "run", replace(CONFIG, steps=1, min_lr=0.0))
    resume(tmp_path / "run")
    before, after = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert after["lr"] == CONFIG.lr
    assert after["held_out"] < before["held_out"]


def test_patience_counts_across_calls(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=60, lr=0.1, eval_every=2)
    patient = Limits(patience=3)
    for name in ("whole", "run"):
        create(tmp_path / name, config, ["at" * 200], ["zebras quiz vexed. " * 4])
    state = resume(tmp_path / "whole", limits=patient)
    assert (state.evaluations_since_best, state.step) == (3, state.best_step + 6)
    resume(tmp_path / "run", limits=replace(patient, steps=state.step - 1))
    assert resume(tmp_path / "run", limits=patient).step == state.step
    assert resume(tmp_path / "run", limits=patient).step == state.step
    assert result(tmp_path / "run") == result(tmp_path / "whole")


# ---- by the clock ----


class Machine:
    """A clock, and a learner that takes so many seconds for a step and for an evaluation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step_s: float, loss_s: float = 0.0) -> None:
        self.now, self.step_s = 0.0, step_s
        monkeypatch.setattr(clock, "perf_counter", lambda: self.now)
        machine = self

        class Learner(ReferenceLearner):
            def step(self, settings: AdamW) -> float:
                machine.now += machine.step_s
                return super().step(settings)

            def loss(self, ids: np.ndarray, targets: np.ndarray) -> float:
                machine.now += loss_s
                return super().loss(ids, targets)

        self.learner = Learner

    def resume(self, folder: Path, minutes: float | None = None, **options: Any) -> TrainState:
        self.now = 0.0
        return resume_run(folder, Limits(minutes=minutes), make_learner=self.learner, **options)


def by_the_clock(folder: Path, steps: int, **changes: Any) -> list[str]:
    """Create a run that is estimated to make so many steps in its time."""
    config = replace(CONFIG, steps=None, **{"epochs": 40.0, "eval_every": 100, **changes})
    assert create(folder, config, steps_in_time=steps).steps == steps
    return tiny_run.VALIDATION


def rates(folder: Path) -> list[float]:
    return [line["lr"] for line in read_metrics(folder / "metrics.jsonl") if "lr" in line]


@pytest.mark.parametrize(("step_s", "steps"), [(1.0, 60), (2.5, 24), (0.5, 120)])
def test_a_run_by_the_clock_comes_down_by_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, steps: int
) -> None:
    """60 steps are planned for a minute; the machine turns out as fast, slower, faster."""
    by_the_clock(tmp_path / "run", 60)
    machine = Machine(monkeypatch, step_s)
    state = machine.resume(tmp_path / "run", minutes=1)
    assert state.step == steps
    assert state.plan and state.plan.steps == steps
    assert 59 <= machine.now <= 60
    found = rates(tmp_path / "run")
    assert max(found) == 0.02
    assert found[found.index(0.02) :] == sorted(found[found.index(0.02) :], reverse=True)
    assert 0.002 < found[-1] < 0.0022
    assert state.best_step == steps  # the last step is evaluated
    assert machine.resume(tmp_path / "run").step == steps  # nothing is left to do


def test_a_machine_that_slows_down_makes_fewer_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_the_clock(tmp_path / "run", 60)
    machine = Machine(monkeypatch, 1.0)

    def slow_down(report: StepReport) -> None:
        assert report.planned_steps == 60
        machine.step_s = 1.0 if report.step < 30 else 3.0

    state = machine.resume(tmp_path / "run", minutes=1, report=slow_down)
    assert 38 <= state.step <= 40
    assert 57 <= machine.now <= 60
    assert 0.002 < rates(tmp_path / "run")[-1] < 0.003


def test_the_last_evaluation_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = by_the_clock(tmp_path / "run", 60)
    assert validation
    machine = Machine(monkeypatch, 1.0, loss_s=1.0)  # of a micro-batch
    state = machine.resume(tmp_path / "run", minutes=1)
    assert state.best_step == state.step
    assert 58 <= machine.now <= 60


def test_no_more_steps_than_the_text_is_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_the_clock(tmp_path / "run", 10, epochs=1.0)
    state = Machine(monkeypatch, 0.1).resume(tmp_path / "run", minutes=1)
    assert state.step == 16  # an epoch: 486 tokens in steps of 32


def test_a_run_by_the_clock_resumes_as_it_was_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a time limit a resumed run makes the steps of its checkpoint's plan."""
    by_the_clock(tmp_path / "run", 60)
    machine = Machine(monkeypatch, 2.0)
    stopped = machine.resume(tmp_path / "run", minutes=1, stop=stopping_after(40))
    assert stopped.step == 20
    assert stopped.plan and stopped.plan.steps == 30
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    machine.step_s = 9.0
    assert machine.resume(tmp_path / "run").step == 30
    assert machine.resume(tmp_path / "again", stop=stopping_after(7)).step == 23
    assert machine.resume(tmp_path / "again").step == 30
    assert result(tmp_path / "again") == result(tmp_path / "run")
    assert 0.002 < rates(tmp_path / "run")[-1] < 0.0022


def test_a_time_limit_for_resuming_is_what_a_run_by_the_clock_plans_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_the_clock(tmp_path / "run", 60)
    machine = Machine(monkeypatch, 1.0)
    assert machine.resume(tmp_path / "run", minutes=1, stop=stopping_after(40)).step == 20
    assert machine.resume(tmp_path / "run", minutes=0.5).step == 50
    assert 0.002 < rates(tmp_path / "run")[-1] < 0.0022


def test_a_time_too_short_for_two_steps_leaves_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_the_clock(tmp_path / "run", 5)
    state = Machine(monkeypatch, 90.0).resume(tmp_path / "run", minutes=1)
    assert state.step == 1
    assert state.plan and state.plan.steps == 5


def test_a_run_by_steps_is_not_replanned(
    run: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, 10.0)
    assert machine.resume(run, minutes=1).step == 6
    assert machine.resume(run, minutes=10).step == N
    assert result(run) == expected


# ---- errors ----


class Diverging(ReferenceLearner):
    """A learner whose loss, gradient norm or weights are not finite at step 7."""

    what = "loss"
    steps = 4  # already made

    def backward(self, ids: np.ndarray, targets: np.ndarray, loss_scale: float) -> float:
        nats = super().backward(ids, targets, loss_scale)
        return float("nan") if self.steps == 6 and self.what == "loss" else nats

    def step(self, settings: AdamW) -> float:
        step = self.steps = settings.step
        norm = super().step(settings)
        if step == 7 and self.what == "weights":
            self.tensors["wte.weight"][3, 3] = np.inf
        return float("inf") if step == 7 and self.what == "norm" else norm


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("loss", "step 7: the loss is nan"),
        ("norm", "step 7: the norm of the gradient is inf"),
        ("weights", "step 7: wte.weight is not finite"),
    ],
)
def test_a_run_that_diverges_keeps_its_checkpoint(
    run: Path, expected: Any, what: str, message: str
) -> None:
    resume(run, limits=Limits(steps=4))
    before = contents(run)

    def learner(*arguments: Any) -> Diverging:
        made = Diverging(*arguments)
        made.what = what
        return made

    limits = Limits(steps=7)
    with pytest.raises(MinigptError, match=message) as caught:
        resume_run(run, limits, make_learner=learner)
    assert "run is as it was after step 4: start a new run" in str(caught.value)
    assert contents(run) == before
    resume(run)
    assert result(run) == expected


@pytest.mark.parametrize(
    ("message", "limits"),
    [
        ("steps 0: must be an integer from 1", Limits(steps=0)),
        ("patience 1.5: must be an integer from 1", Limits(patience=1.5)),  # type: ignore[arg-type]
        ("minutes 0: must be a number above 0", Limits(minutes=0)),
        ("limits: dict; must be Limits", {"steps": 1}),
        ("minutes nan:", Limits(minutes=float("nan"))),
    ],
)
def test_a_limit_out_of_its_range(run: Path, message: str, limits: Limits) -> None:
    with pytest.raises(InputError, match=message):
        resume(run, limits=limits)
