"""Training: a run is begun in a folder, and goes on there for as long as it is wanted.

    create_run("tales", texts, held_out, tokenizer, config, tensors, settings)    # begin.py
    train("tales")                            # to the end, or until something ends it
    train("tales")                            # and from there on, as if nothing had happened

Each update of the weights:

    batch(step) ─▶ forward ─▶ loss ─▶ backward ─▶ gradients ─▶ AdamW(learning_rate(step))

All that the next update depends on is in the checkpoint (run_folder.py): so that a run that was
interrupted ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

import numpy as np

from ..config import GPTConfig
from ..conversion.saving import checked_folder
from ..errors import InputError, MinigptError, short_repr
from .batches import batch, windows
from .config import Plan
from .metrics import Line, append_line
from .run_folder import (
    METRICS,
    Learned,
    Run,
    State,
    newest_step,
    open_run,
    read_texts,
    run_lock,
    save,
)
from .schedule import learning_rate

_PART_TOKENS = 8192


class Learner(Protocol):
    """What a run needs of minigpt.model.learner.Learner; tests have one in plain NumPy."""

    tensors: dict[str, np.ndarray]
    first_moments: dict[str, np.ndarray]
    second_moments: dict[str, np.ndarray]

    def clear(self) -> None: ...
    def accumulate(self, ids: np.ndarray, targets: np.ndarray, share: float) -> float: ...
    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float: ...
    def update(
        self,
        step: int,
        lr: float,
        beta_1: float,
        beta_2: float,
        eps: float,
        weight_decay: float,
        clip: float,
    ) -> float: ...


@dataclass(frozen=True)
class Limits:
    """When to end, whatever was planned; the run may go on from there.

    steps     the updates to have been made in all; by default those of the settings. Beyond these
              the learning rate stays at its least
    minutes   the time this call may take
    patience  how many evaluations one after the other may be worse than the best
    """

    steps: int | None = None
    minutes: float | None = None
    patience: int | None = None


@dataclass(frozen=True)
class Report:
    """How a run goes, after an update.

    step, steps    the updates made, and those there will be
    loss           of the batch, nats per token
    held_out       on the held-out text after this update; None where it was not found
    best           the least of those so far; None where there was none
    milestone      an evaluation was due, or would be if there were a held-out text
    tokens_per_s   the speed of this call, evaluations and checkpoints included
    seconds_left   until the end, at this speed
    """

    step: int
    steps: int
    loss: float
    held_out: float | None
    best: float | None
    milestone: bool
    tokens_per_s: float
    seconds_left: float


def checked_limits(limits: Limits) -> Limits:
    """The same; raises InputError for a limit that is none."""
    for name in ("steps", "patience"):
        value = getattr(limits, name)
        if value is not None and not (type(value) is int and value >= 1):
            raise InputError(f"{name} {short_repr(value)}: must be a whole number from 1 on")
    minutes = limits.minutes
    if minutes is not None and not (type(minutes) in (int, float) and 0 < minutes < math.inf):
        raise InputError(f"minutes {short_repr(minutes)}: must be a number above 0")
    return limits


def train(
    folder: str | os.PathLike[str],
    limits: Limits | None = None,
    threads: int | None = None,
    report: Callable[[Report], None] | None = None,
    stop: Callable[[], bool] | None = None,
    make_learner: Callable[..., Learner] | None = None,
) -> State:
    """Goes on with the run in a folder until its end, or a limit; returns how far it is then.

    threads       how many compute; by default one for each processor. The result is the same
    report        is told how it goes after each update
    stop          is asked again and again; when it says so, what was done is saved, and we return
    make_learner  makes the model that learns: as make_engine, the default

    Raises MinigptError where the loss is no finite number any more, CheckpointError where the
    folder cannot be written, InputError where another process trains in it. The last checkpoint
    is then as it was; so it is whatever else ends the call.
    """
    folder = checked_folder(folder)
    limits = checked_limits(limits or Limits())
    with run_lock(folder):
        run, state, learned = open_run(folder)
        settings = run.settings
        learner = (make_learner or make_engine)(
            run.config, learned.tensors, threads, settings.dtype, settings.recompute
        )
        learner.first_moments.update(learned.first_moments)
        learner.second_moments.update(learned.second_moments)
        return _go_on(run, state, learner, limits, report, stop)


def make_engine(
    config: GPTConfig,
    tensors: dict[str, np.ndarray],
    threads: int | None,
    dtype: str,
    recompute: bool,
) -> Learner:
    """The Learner of this machine's processors; raises InputError for a number of threads."""
    from ..arguments import checked_threads
    from ..model.learner import Learner

    try:
        return Learner(config, tensors, checked_threads(threads), dtype, recompute)
    except RuntimeError as error:
        raise InputError(f"threads {threads}: {error}; take fewer") from error


def _go_on(
    run: Run,
    state: State,
    learner: Learner,
    limits: Limits,
    report: Callable[[Report], None] | None,
    stop: Callable[[], bool] | None,
) -> State:
    """The loop over the updates."""
    settings = run.settings
    tokens, held_out = read_texts(run)
    steps = limits.steps or settings.steps
    clock = _Clock(state, limits, stop)
    saved = state.step
    if len(held_out) and state.best is None:
        loss = _mean_loss(run, state, learner, held_out)
        state = _judged(state, loss)
        append_line(run.folder / METRICS, {"step": 0, "held_out": loss})
    while state.step < steps and not _has_stalled(state, limits):
        line = _update(run, state, learner, tokens, clock)
        if line is None:
            break
        state = replace(state, step=state.step + 1)
        if len(held_out) and _is_milestone(settings, state.step):
            line["held_out"] = _mean_loss(run, state, learner, held_out)
            state = _judged(state, line["held_out"])
        state = replace(state, seconds=clock.seconds())
        append_line(run.folder / METRICS, {**line, "seconds": round(state.seconds, 3)})
        if _is_best(state) or state.step % settings.save_every == 0:
            state = _save(run, state, learner)
            saved = state.step
        if report:
            report(_report(run, state, line, steps, clock))
    return _save(run, state, learner) if state.step > saved else state


def _update(
    run: Run, state: State, learner: Learner, tokens: np.ndarray, clock: _Clock
) -> Line | None:
    """One update of the weights; what is to be noted of it.

    None where it was given up between two parts of the batch: then nothing has happened.
    """
    settings = run.settings
    ids, targets = batch(tokens, settings.batch_size, settings.context, settings.seed, state.step)
    share = 1 / ids.size
    nats = 0.0
    learner.clear()
    for first in range(0, len(ids), _rows(settings)):
        if clock.is_over():
            return None
        part = slice(first, first + _rows(settings))
        nats += learner.accumulate(ids[part], targets[part], share)
    loss, step = nats * share, state.step + 1
    _check_finite(run, step, "loss", loss)
    lr = learning_rate(
        step, settings.lr, settings.min_lr, settings.warmup, settings.steps, settings.decay
    )
    norm = learner.update(
        step, lr, settings.beta_1, settings.beta_2, settings.eps, settings.weight_decay,
        settings.clip,
    )  # fmt: skip
    _check_finite(run, step, "norm of its gradient", norm)
    return {"step": step, "loss": loss, "lr": lr, "norm": norm}


def _rows(settings: Plan) -> int:
    """The sequences that go through the model between two looks at the clock."""
    return max(1, _PART_TOKENS // settings.context)


def _mean_loss(run: Run, state: State, learner: Learner, tokens: np.ndarray) -> float:
    """The mean of -ln p over a text: each token but the first once, in windows of the context."""
    settings = run.settings
    parts = windows(tokens, _rows(settings), settings.context)
    nats = sum(learner.loss(*part) for part in parts)
    loss = nats / (len(tokens) - 1)
    _check_finite(run, state.step, "loss on the held-out text", loss)
    return loss


def _is_milestone(settings: Plan, step: int) -> bool:
    """Whether an evaluation is due. It depends on the plan alone, not on where a call ends."""
    return step % settings.eval_every == 0 or step == settings.steps


def _judged(state: State, loss: float) -> State:
    """The state after an evaluation."""
    if state.best is None or loss < state.best:
        return replace(state, best=loss, best_step=state.step, worse=0)
    return replace(state, worse=state.worse + 1)


def _is_best(state: State) -> bool:
    return state.best is not None and state.best_step == state.step


def _has_stalled(state: State, limits: Limits) -> bool:
    return limits.patience is not None and state.worse >= limits.patience


def _save(run: Run, state: State, learner: Learner) -> State:
    """Makes a checkpoint, unless the weights are no good: it would replace one that is."""
    for name, tensor in learner.tensors.items():
        if not np.isfinite(tensor).all():
            raise _diverged(run, f"update {state.step}: {name} is not finite")
    learned = Learned(learner.tensors, learner.first_moments, learner.second_moments)
    return save(run, state, learned)


def _check_finite(run: Run, step: int, name: str, value: float) -> None:
    if not math.isfinite(value):
        raise _diverged(run, f"update {step}: the {name} is {value}")


def _diverged(run: Run, what: str) -> MinigptError:
    return MinigptError(
        f"{what}; {run.folder} is as it was after update {newest_step(run.folder)}: begin a new "
        f"run, with it or with nothing, at a learning rate below {run.settings.lr:g}"
    )


class _Clock:
    """The time of this call, and whether it is over."""

    def __init__(self, state: State, limits: Limits, stop: Callable[[], bool] | None) -> None:
        self._start = perf_counter()
        self._before = state.seconds
        self._limit = math.inf if limits.minutes is None else 60 * limits.minutes
        self._stop = stop
        self._first: tuple[int, float] | None = None

    def elapsed(self) -> float:
        return perf_counter() - self._start

    def seconds(self) -> float:
        """That the run has taken in all."""
        return self._before + self.elapsed()

    def left(self) -> float:
        """Seconds that this call may still take."""
        return self._limit - self.elapsed()

    def is_over(self) -> bool:
        return self.left() <= 0 or (self._stop is not None and self._stop())

    def updates_per_s(self, step: int) -> float:
        """After this update; the first, in which functions are compiled, is not counted."""
        if self._first is None:
            self._first = step, self.elapsed()
            return 1 / max(self.elapsed(), 1e-9)
        first, then = self._first
        return (step - first) / max(self.elapsed() - then, 1e-9)


def _report(run: Run, state: State, line: Line, steps: int, clock: _Clock) -> Report:
    speed = clock.updates_per_s(state.step)
    return Report(
        step=state.step,
        steps=steps,
        loss=line["loss"],
        held_out=line.get("held_out"),
        best=state.best,
        milestone=_is_milestone(run.settings, state.step),
        tokens_per_s=speed * run.settings.batch_size * run.settings.context,
        seconds_left=max(0.0, min((steps - state.step) / speed, clock.left())),
    )
