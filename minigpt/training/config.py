"""Hyperparameters of a training run: those a user chooses, and those that follow from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from ..arguments import (
    MAX_INTEGER,
    checked_bool,
    checked_choice,
    checked_count,
    checked_integer,
    checked_number,
)
from ..errors import InputError

DECAYS = ("cosine", "linear")
DTYPES = ("f32", "bf16")

_TOKENS_PER_PARAMETER = 20  # compute-optimal: Hoffmann et al. 2022, arXiv 2203.15556
_MAX_EPOCHS = 16  # further repetitions of a text gain little: Muennighoff et al. 2023, 2305.16264
_EVALUATIONS = 50  # of a run, by default
_MAX_VALIDATION_TOKENS = 2**17  # by default
_MAX_NUMBER = 1e30  # well inside the range of float32
_MAX_CONTEXT = 2**24  # of any model
_MAX_BATCH_SIZE = 1_000_000  # hundreds of times the largest in use
_ABOVE_0, _BELOW_1 = math.nextafter(0, 1), math.nextafter(1, 0)


@dataclass(frozen=True)
class TrainingConfig:
    """The hyperparameters that a user chooses.

    A field that is None takes the value of the preset, or else the default given below.

    context            T, the tokens of a sequence, from 1 to the model's. Default: 256
    batch_size         the sequences of a step, from 1 to 1,000,000; their gradients are accumulated
                       over micro-batches, so that memory does not grow with it. Default: 32
    lr                 peak learning rate, above 0; one step has it in any run. Default: 1e-3
    min_lr             the learning rate towards which it decays, from 0 to lr; it would be reached
                       one step after the last. Default: lr ÷ 10
    warmup_steps       steps of linear warmup from 0 to lr, from 0. Default: warmup_tokens, but at
                       most a fifth of all steps
    warmup_tokens      the same in tokens, from 0. Default: 1,000,000
    decay              shape of the learning rate's decay: "cosine" or "linear". Default: "cosine"
    steps              optimizer steps of the whole run, from 1. Default: 20 tokens for each
                       parameter, but at most 16 epochs
    epochs             the same in passes over the training text, above 0; excludes steps
    max_steps          upper bound of the default number of steps, from 1
    beta_1, beta_2     AdamW's decay rates of the moments, from 0 to below 1
    eps                added to AdamW's denominator, above 0. Default: 1e-8
    weight_decay       of matrices; biases and layernorms do not decay; from 0
    max_grad_norm      gradients with a larger norm are scaled down to it; 0 turns clipping off
    eval_every         steps between evaluations on the validation text, from 1. Default: a 50th of
                       all steps
    save_every         steps between checkpoints, from 1. Default: eval_every
    validation_tokens  tokens split off the end of the training text for validation, from 0; 0 if
                       there is a validation text. Default: a hundredth of the text, at least one
                       sequence and at most 131,072; none of a text shorter than 20 sequences
    seed               of the initial weights and of the order of the batches, from 0
    dtype              operands of matrix products: "f32" or "bf16"; weights, gradients and sums
                       are float32 in both. Default: "bf16" if the processor multiplies bfloat16
    recompute          recompute activations in the backward pass instead of storing them
                       (gradient checkpointing): less memory, a third more time
    """

    context: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    min_lr: float | None = None
    warmup_steps: int | None = None
    warmup_tokens: int | None = None
    decay: str | None = None
    steps: int | None = None
    epochs: float | None = None
    max_steps: int | None = None
    beta_1: float = 0.9
    beta_2: float = 0.95
    eps: float | None = None
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    eval_every: int | None = None
    save_every: int | None = None
    validation_tokens: int | None = None
    seed: int = 0
    dtype: str | None = None
    recompute: bool = False


@dataclass(frozen=True)
class RunConfig(TrainingConfig):
    """The complete hyperparameters of a run, fixed from its first step to its last.

    epochs is None: it has become steps. Of a run by the clock, steps are those planned when it
    began, and max_steps is their upper bound, whatever the time; else max_steps is None, too.

    legacy  whether an earlier version began the run, with which it continues to the bit: its
            learning rate is min_lr at the last step, and its validation loss leaves out the first
            token
    """

    context: int = 256
    batch_size: int = 32
    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup_steps: int = 0
    warmup_tokens: int = 1_000_000
    decay: str = "cosine"
    steps: int = 1
    eps: float = 1e-8
    eval_every: int = 1
    save_every: int = 1
    validation_tokens: int = 0
    dtype: str = "f32"
    legacy: bool = False


Config = TypeVar("Config", bound=TrainingConfig)


# ---- checks ----


def checked_config(config: Config) -> Config:
    """The config as plain Python numbers; raises InputError for a value out of its range."""
    if not isinstance(config, TrainingConfig):
        raise InputError(f"config: {type(config).__name__}; must be a TrainingConfig")
    checked: dict[str, Any] = {}
    for name in ("steps", "max_steps", "eval_every", "save_every"):
        checked[name] = _checked_integer(config, name, 1)
    for name, maximum in (("context", _MAX_CONTEXT), ("batch_size", _MAX_BATCH_SIZE)):
        checked[name] = _checked_integer(config, name, 1, maximum)
    for name in ("warmup_steps", "warmup_tokens", "validation_tokens", "seed"):
        checked[name] = _checked_integer(config, name, 0)
    for name in ("lr", "eps", "epochs"):
        checked[name] = _checked_number(config, name, "a number above 0", _ABOVE_0, _MAX_NUMBER)
    for name in ("min_lr", "weight_decay", "max_grad_norm"):
        checked[name] = _checked_number(config, name, "a number of at least 0", 0, _MAX_NUMBER)
    for name in ("beta_1", "beta_2"):
        checked[name] = _checked_number(config, name, "a number from 0 to below 1", 0, _BELOW_1)
    if config.decay is not None:
        checked_choice("decay", config.decay, DECAYS)
    if config.dtype is not None:
        checked_choice("dtype", config.dtype, DTYPES)
    checked["recompute"] = checked_bool("recompute", config.recompute)
    if isinstance(config, RunConfig):
        checked["legacy"] = checked_bool("legacy", config.legacy)
    if config.steps is not None and config.epochs is not None:
        raise InputError(f"epochs {config.epochs}: give either epochs or steps, not both", "epochs")
    return replace(config, **checked)


def _checked_integer(
    config: TrainingConfig, name: str, minimum: int, maximum: int | None = None
) -> int | None:
    value = getattr(config, name)
    if value is None:
        return None
    if maximum is None:
        return checked_count(name, value, minimum)
    return checked_integer(name, value, minimum, maximum)


def _checked_number(
    config: TrainingConfig, name: str, allowed: str, minimum: float, maximum: float
) -> float | None:
    value = getattr(config, name)
    return None if value is None else checked_number(name, value, allowed, minimum, maximum)


def check_min_lr(config: TrainingConfig) -> None:
    """Raises InputError for a min_lr above lr: the learning rate would rise where it should fall.

    Called once the preset's values are in; runs of earlier versions may have such a min_lr.
    """
    lr = RunConfig.lr if config.lr is None else config.lr
    if config.min_lr is not None and config.min_lr > lr:
        raise InputError(f"min_lr {config.min_lr:g}: must be at most lr, {lr:g}", "min_lr")


# ---- completion ----


def with_defaults(config: TrainingConfig, defaults: TrainingConfig) -> TrainingConfig:
    """The config with `defaults` in place of None; steps of the config exclude default epochs."""
    values = _given(config)
    if config.steps is not None:
        values["epochs"] = None
    return replace(defaults, **values)


def complete_config(
    config: TrainingConfig, tokens: int, parameters: int, steps_in_time: int | None = None
) -> RunConfig:
    """The config completed for a training text of `tokens` and a model of `parameters`.

    steps_in_time  of a run by the clock: the steps that fit into its time by an estimate

    By default a model is trained on 20 tokens for each parameter, but at most 16 epochs, and the
    learning rate rises over `warmup_tokens`, but at most a fifth of the steps. Raises InputError
    for a value out of its range and for a text that is shorter than a sequence.
    """
    config = checked_config(config)
    check_min_lr(config)
    run = with_fixed_defaults(config)
    if config.validation_tokens is None:
        run = replace(run, validation_tokens=_validation_tokens(tokens, run.context))
    tokens -= run.validation_tokens
    if tokens <= run.context:
        raise InputError(
            f"context {run.context}: the text has {tokens} tokens, and a sequence takes "
            f"{run.context + 1}; give more text, or choose a shorter context"
        )
    steps = config.steps or _default_steps(run, tokens, parameters)
    max_steps = None
    if steps_in_time is not None:
        max_steps, steps = steps, min(steps, steps_in_time)
    warmup_steps = math.ceil(run.warmup_tokens / (run.batch_size * run.context))
    eval_every = config.eval_every or math.ceil(steps / _EVALUATIONS)
    return replace(
        run,
        min_lr=run.lr / 10 if config.min_lr is None else config.min_lr,
        warmup_steps=(
            min(warmup_steps, steps // 5) if config.warmup_steps is None else config.warmup_steps
        ),
        steps=steps,
        epochs=None,
        max_steps=max_steps,
        eval_every=eval_every,
        save_every=config.save_every or eval_every,
    )


def with_fixed_defaults(config: TrainingConfig) -> RunConfig:
    """The config with those defaults that depend on neither text nor model."""
    return RunConfig(**{"dtype": config.dtype or fastest_dtype(), **_given(config)})


def _given(config: TrainingConfig) -> dict[str, Any]:
    """{name: value} of the fields that are not None."""
    return {name: value for name, value in asdict(config).items() if value is not None}


def _default_steps(run: RunConfig, tokens: int, parameters: int) -> int:
    """The steps of a run that gives none, on a training text of `tokens`."""
    if run.epochs is None:
        trained = min(_TOKENS_PER_PARAMETER * parameters, _MAX_EPOCHS * tokens)
    else:
        trained = math.ceil(run.epochs * tokens)
    steps = -(-trained // (run.batch_size * run.context))
    steps = min(steps, run.max_steps) if run.max_steps else steps
    if steps > MAX_INTEGER:  # of epochs: the other two bounds grow with texts and memory
        raise InputError(
            f"epochs {run.epochs:g}: are {steps:.3g} steps; must be at most {MAX_INTEGER}", "epochs"
        )
    return steps


def _validation_tokens(tokens: int, context: int) -> int:
    """The default number of tokens to split off the end of a text: a hundredth of it."""
    sequence = context + 1
    if tokens < 20 * sequence:
        return 0
    return max(sequence, min(tokens // 100, _MAX_VALIDATION_TOKENS))


def fastest_dtype() -> str:
    """ "bf16" on processors that multiply bfloat16 (AMX, AVX-512 BF16), else "f32"."""
    from ..kernels.simd import BF16_PRODUCTS  # imported here: it loads Numba

    return "bf16" if BF16_PRODUCTS else "f32"
