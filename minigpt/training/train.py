"""The training loop: resume the run in a folder, until its end or a limit.

Each step:

    sequences(step) ─▶ forward ─▶ loss ─▶ backward ─▶ gradients ─▶ AdamW(learning_rate(step))

The checkpoint (run_folder.py) holds all that the next step depends on: a run that was interrupted
and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..arguments import check_callable, checked_folder, checked_threads
from ..config import GPTConfig
from ..errors import CheckpointError, InputError, MinigptError
from ..model.optimizer import AdamW
from .batches import sequences, windows
from .limits import Clock, Limits, checked_limits
from .metrics import Metrics, append_metrics
from .run_folder import (
    METRICS,
    OpenRun,
    WeightsAndMoments,
    newest_step,
    open_run,
    run_lock,
    save,
)
from .schedule import learning_rate, next_position
from .state_json import TEXT, VALIDATION, TrainState

_MICRO_BATCH_TOKENS = 8192


class Learner(Protocol):
    """What training needs of minigpt.model.learner.Learner; tests have a twin in plain NumPy."""

    tensors: dict[str, np.ndarray]
    first_moments: dict[str, np.ndarray]
    second_moments: dict[str, np.ndarray]

    def zero_grad(self) -> None: ...
    def backward(self, ids: np.ndarray, targets: np.ndarray, loss_scale: float) -> float: ...
    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float: ...
    def step(self, settings: AdamW) -> float: ...


MakeLearner = Callable[[GPTConfig, dict[str, np.ndarray], "int | None", str, bool], Learner]


@dataclass(frozen=True)
class StepReport:
    """The progress of a run after a step.

    step, steps      steps made, and in all; of a run by the clock by the latest estimate
    planned_steps    steps planned when the run began
    loss             mean cross-entropy of the step's batch, in nats per token
    validation_loss  after this step, in nats per token; None if it was not evaluated
    best_loss        lowest validation loss so far; None if there is none
    milestone        whether an evaluation was due, with or without a validation text
    tokens_per_s     training speed over the later half of this call's steps, evaluations and
                     checkpoints included
    seconds_left     estimated time to the end
    """

    step: int
    steps: int
    planned_steps: int
    loss: float
    validation_loss: float | None
    best_loss: float | None
    milestone: bool
    tokens_per_s: float
    seconds_left: float


def resume_run(
    folder: str | os.PathLike[str],
    limits: Limits | None = None,
    *,
    threads: int | None = None,
    report: Callable[[StepReport], None] | None = None,
    stop: Callable[[], bool] | None = None,
    make_learner: MakeLearner | None = None,
) -> TrainState:
    """Train the run in a folder until its end or a limit; returns its progress.

    threads       number of threads that compute; the result has the same bits for any number.
                  Default: one per processor
    report        called after each step
    stop          polled before each micro-batch; True ends the call after a checkpoint
    make_learner  makes the learner. Default: compiled_learner, from the same arguments

    Raises MinigptError if a loss, gradient or weight is not finite, CheckpointError if the folder
    is damaged or cannot be written, InputError if another process trains in it. Whatever ends the
    call, the folder has a complete checkpoint.
    """
    folder = checked_folder(folder)
    limits = checked_limits(Limits() if limits is None else limits)
    for name, callback in (("report", report), ("stop", stop), ("make_learner", make_learner)):
        check_callable(name, callback)
    with run_lock(folder):
        opened = open_run(folder)
        config, tensors = opened.run.config, opened.tensors
        learner = (make_learner or compiled_learner)(
            opened.run.model, tensors.weights, threads, config.dtype, config.recompute
        )
        learner.first_moments.update(tensors.first_moments)
        learner.second_moments.update(tensors.second_moments)
        return _Trainer(opened, learner, limits, stop).train(report)


def compiled_learner(
    config: GPTConfig,
    tensors: dict[str, np.ndarray],
    threads: int | None,
    dtype: str,
    recompute: bool,
) -> Learner:
    """The compiled Learner; raises InputError for a number of threads that cannot be started."""
    from ..model.learner import Learner  # imported here: it loads Numba

    try:
        return Learner(config, tensors, checked_threads(threads), dtype, recompute)
    except RuntimeError as error:
        raise InputError(f"threads {threads}: {error}; take fewer") from error


def _validation_tokens(opened: OpenRun) -> np.ndarray:
    """The tokens to evaluate on, each but the first as a target; empty if there are none.

    They begin with the token that texts of the model begin after, if it has one. In a legacy run
    they do not.
    """
    run, tokens = opened.run, opened.validation_tokens
    if run.config.legacy or run.model.start_token_id is None or not len(tokens):
        return tokens if len(tokens) > 1 else tokens[:0]
    return np.concatenate([np.array([run.model.start_token_id], np.uint32), tokens])


class _Trainer:
    """The loop over steps of one call of `resume_run`."""

    def __init__(
        self, opened: OpenRun, learner: Learner, limits: Limits, stop: Callable[[], bool] | None
    ) -> None:
        self.run, self.state, self.config = opened.run, opened.state, opened.run.config
        self.tokens = opened.training_tokens
        self.validation = _validation_tokens(opened)
        self.learner = learner
        self.limits, self.is_stopped = limits, stop or (lambda: False)
        self.clock = Clock(self.state.seconds, limits.minutes)
        # A run by the clock plans its steps anew in calls that say when they end.
        self.replans = limits.minutes is not None and limits.steps is None
        self.has_replanned = False
        self.closing_s = 0.0  # of the slowest evaluation and checkpoint so far
        self.micro_batch = max(1, _MICRO_BATCH_TOKENS // self.config.context)  # sequences

    def train(self, report: Callable[[StepReport], None] | None) -> TrainState:
        """Step until the end, a limit, or a stop; the last step is saved."""
        saved_step = self.state.step
        if len(self.validation) and self.state.best_loss is None:
            self._append({"step": 0, "held_out": self._evaluate()})
            self.closing_s = self.clock.elapsed()
        while self.state.step < self._last_step() and not self._is_out_of_patience():
            metrics = self._step()
            if metrics is None:
                break
            self._replan()
            step_end = self.clock.elapsed()
            if len(self.validation) and self._is_milestone():
                metrics["held_out"] = self._evaluate()
            self.state = replace(self.state, seconds=self.clock.total_seconds())
            self._append({**metrics, "seconds": round(self.state.seconds, 3)})
            if self._is_best() or self.state.step % self.config.save_every == 0:
                self._save()
                saved_step = self.state.step
                self.closing_s = max(self.closing_s, self.clock.elapsed() - step_end)
            if report:
                report(self._report(metrics))
        if self.state.step > saved_step:
            self._save()
        return self.state

    def _last_step(self) -> int:
        """The step after which this call ends."""
        return self.limits.steps or self._planned_steps()

    def _planned_steps(self) -> int:
        return self.state.plan.steps if self.state.plan else self.config.steps

    def _step(self) -> Metrics | None:
        """Make a step: gradients of its batch, then AdamW. Returns its metrics.

        None if the call is to end before a micro-batch: then nothing has changed.
        """
        config, step = self.config, self.state.step + 1
        loss_scale = 1 / (config.batch_size * config.context)
        nats = 0.0
        self.learner.zero_grad()
        for first in range(0, config.batch_size, self.micro_batch):
            if self._is_over():
                return None
            ids, targets = sequences(
                self.tokens, min(self.micro_batch, config.batch_size - first), config.context,
                config.seed, self.state.step * config.batch_size + first,
            )  # fmt: skip
            self._check_ids(TEXT, ids, targets)
            nats += self.learner.backward(ids, targets, loss_scale)
        loss = self._finite("loss", nats * loss_scale, step)
        plan = self.state.plan
        position = next_position(config, plan, step) if plan else float(step)
        lr = learning_rate(config, position)
        adamw = AdamW(
            step, lr, config.beta_1, config.beta_2, config.eps, config.weight_decay,
            config.max_grad_norm,
        )  # fmt: skip
        norm = self.learner.step(adamw)
        self._finite("norm of the gradient", norm, step)
        plan = plan and plan._replace(position=position)
        self.state = replace(self.state, step=step, plan=plan)
        self.clock.end_step()
        return {"step": step, "loss": loss, "lr": lr, "norm": norm}

    def _is_over(self) -> bool:
        """Whether the call ends within a step: stopped, or at its limit of time.

        A run by the clock that has planned its steps completes the one it has begun, a little late
        if need be: so its last step is evaluated and saved.
        """
        return self.is_stopped() or (self.clock.left() <= 0 and not self.has_replanned)

    def _replan(self) -> None:
        """Of a run by the clock: estimate how many more steps fit into the call's time."""
        plan, seconds = self.state.plan, self.clock.seconds_per_step()
        if not (plan and self.replans and seconds):
            return
        at_most = max(0, (self.config.max_steps or self.config.steps) - self.state.step)
        fitting = (self.clock.left() - self.closing_s) / seconds
        steps = self.state.step + int(min(max(0.0, fitting), at_most))
        self.state = replace(self.state, plan=plan._replace(steps=steps))
        self.has_replanned = True

    def _evaluate(self) -> float:
        """Measure the validation loss, and compare it with the best so far.

        The mean of -ln p of each token, in windows of the context that do not overlap: the first of
        a window is predicted from the token before it alone, the last from a whole window.
        """
        nats = 0.0
        for ids, targets in windows(self.validation, self.micro_batch, self.config.context):
            self._check_ids(VALIDATION, ids, targets)
            nats += self.learner.loss(ids, targets)
        step = self.state.step
        loss = self._finite("validation loss", nats / (len(self.validation) - 1), step)
        best = self.state.best_loss
        if best is None or loss < best:
            self.state = replace(
                self.state, best_loss=loss, best_step=step, evaluations_since_best=0
            )
        else:
            count = self.state.evaluations_since_best + 1
            self.state = replace(self.state, evaluations_since_best=count)
        return loss

    def _check_ids(self, name: str, ids: np.ndarray, targets: np.ndarray) -> None:
        """Raises CheckpointError for an id beyond the vocabulary: compiled code does not check.

        A token file is checked when it is opened; this finds one that is changed while it is read.
        """
        if max(ids.max(), targets.max()) >= self.run.model.vocab_size:
            name = name if name in self.run.texts else TEXT
            raise CheckpointError(f"{self.run.folder / name}: has changed while it was read")

    def _is_milestone(self) -> bool:
        """Whether an evaluation is due: by config and plan alone, wherever calls end."""
        step = self.state.step
        return step % self.config.eval_every == 0 or step == self._planned_steps()

    def _is_best(self) -> bool:
        return self.state.best_loss is not None and self.state.best_step == self.state.step

    def _is_out_of_patience(self) -> bool:
        patience = self.limits.patience
        return patience is not None and self.state.evaluations_since_best >= patience

    def _append(self, metrics: Metrics) -> None:
        append_metrics(self.run.folder / METRICS, metrics)

    def _save(self) -> None:
        """Save a checkpoint, unless a weight is not finite: it would replace a good one."""
        learner = self.learner
        for name, tensor in learner.tensors.items():
            if not np.isfinite(tensor).all():
                raise self._diverged(f"step {self.state.step}: {name} is not finite")
        tensors = WeightsAndMoments(learner.tensors, learner.first_moments, learner.second_moments)
        self.state = save(self.run, self.state, tensors)

    def _finite(self, name: str, value: float, step: int) -> float:
        """The value; raises MinigptError unless it is finite."""
        if not math.isfinite(value):
            raise self._diverged(f"step {step}: the {name} is {value}")
        return value

    def _diverged(self, what: str) -> MinigptError:
        folder = self.run.folder
        return MinigptError(
            f"{what}; {folder} is as it was after step {newest_step(folder)}: start a new run, "
            f"from it or from random weights, with a learning rate below {self.config.lr:g}"
        )

    def _report(self, metrics: Metrics) -> StepReport:
        step, steps = self.state.step, self._last_step()
        seconds_per_step = self.clock.seconds_per_step() or max(self.clock.elapsed(), 1e-9)
        return StepReport(
            step=step,
            steps=steps,
            planned_steps=self.config.steps,
            loss=metrics["loss"],
            validation_loss=metrics.get("held_out"),
            best_loss=self.state.best_loss,
            milestone=self._is_milestone(),
            tokens_per_s=self.config.batch_size * self.config.context / seconds_per_step,
            seconds_left=max(0.0, min((steps - step) * seconds_per_step, self.clock.left())),
        )
