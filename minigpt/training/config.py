"""How a model is trained, in numbers: what is chosen, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError, short_repr
from .schedule import DECAYS

_TOKENS_PER_PARAMETER = 20  # what a model of a size is best trained on: arXiv 2203.15556
_EPOCHS = 16  # what is worth reading a text that is too short for this: arXiv 2305.16264
_EVALUATIONS = 50
_MOST_HELD_BACK = 2**17  # tokens


@dataclass(frozen=True)
class Settings:
    """What is chosen for a run. What is None follows from the rest and the text: see `planned`.

    context        T: the tokens of a sequence
    batch_size     the sequences of an update of the weights; they go through the model a few at
                   a time, and their gradients add up: more take no more memory
    lr, min_lr     the highest learning rate, and that at the end
    warmup         the updates in which it grows to lr
    warmup_tokens  the same, in tokens
    decay          how it falls afterwards: "cosine" or "linear"
    steps, epochs  the updates of the whole run; the same, in times that the text is read
    most_steps     where no steps are given, the updates that there is time for
    beta_1, beta_2, eps, weight_decay  of AdamW; matrices decay, vectors do not
    clip           the largest norm that the gradient may have; 0: any
    eval_every     updates from one evaluation on the held-out text to the next
    save_every     updates from one checkpoint to the next
    held_back      the tokens at the text's end that are held out; 0 where a held-out text is given
    seed           of the initial weights and of the order of the text
    dtype          what matrices are multiplied in: "f32" or "bf16"
    recompute      keep fewer activations, and compute them again when they are needed
    """

    context: int = 256
    batch_size: int = 32
    lr: float = 1e-3
    min_lr: float | None = None
    warmup: int | None = None
    warmup_tokens: int = 1_000_000
    decay: str = "cosine"
    steps: int | None = None
    epochs: float | None = None
    most_steps: int | None = None
    beta_1: float = 0.9
    beta_2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    eval_every: int | None = None
    save_every: int | None = None
    held_back: int | None = None
    seed: int = 0
    dtype: str = "f32"
    recompute: bool = False


@dataclass(frozen=True)
class Plan(Settings):
    """Settings with nothing left open: what a run is made with, for as long as it goes on."""

    min_lr: float = 0.0
    warmup: int = 0
    steps: int = 1
    eval_every: int = 1
    save_every: int = 1
    held_back: int = 0


def check_settings(settings: Settings) -> None:
    """Raises InputError for a value that is of no use."""
    for name in ("context", "batch_size", "steps", "most_steps", "eval_every", "save_every"):
        _check_integer(settings, name, 1)
    for name in ("warmup", "warmup_tokens", "held_back", "seed"):
        _check_integer(settings, name, 0)
    for name in ("lr", "eps", "epochs"):
        _check_number(settings, name, "above 0", lambda value: value > 0)
    for name in ("min_lr", "weight_decay", "clip"):
        _check_number(settings, name, "0 or more", lambda value: value >= 0)
    for name in ("beta_1", "beta_2"):
        _check_number(settings, name, "from 0 to below 1", lambda value: 0 <= value < 1)
    _check_choice(settings, "decay", DECAYS)
    _check_choice(settings, "dtype", ("f32", "bf16"))
    _check_choice(settings, "recompute", (False, True))
    if settings.steps is not None and settings.epochs is not None:
        raise InputError(f"epochs {settings.epochs}: give these or steps, not both")


def _check_integer(settings: Settings, name: str, least: int) -> None:
    value = getattr(settings, name)
    if value is not None and not (type(value) is int and least <= value < 2**53):
        raise InputError(f"{name} {short_repr(value)}: must be a whole number from {least} on")


def _check_number(settings: Settings, name: str, right: str, holds: Any) -> None:
    value = getattr(settings, name)
    if value is not None and not (type(value) in (int, float) and holds(value) and value < 1e30):
        raise InputError(f"{name} {short_repr(value)}: must be a number, {right}")


def _check_choice(settings: Settings, name: str, choices: tuple[object, ...]) -> None:
    value = getattr(settings, name)
    if not any(value is choice or (value == choice and type(value) is str) for choice in choices):
        raise InputError(
            f"{name} {short_repr(value)}: must be one of {', '.join(map(str, choices))}"
        )


def planned(settings: Settings, tokens: int, parameters: int) -> Plan:
    """The settings completed for a text of so many tokens and a model of a size.

    By default a model is trained on 20 tokens for each parameter, but on no text more than 16
    times; the learning rate grows over `warmup_tokens`, but for no more than a fifth of the run.
    Raises InputError for a text that is too short for its sequences.
    """
    check_settings(settings)
    held_back = settings.held_back
    if held_back is None:
        held_back = _end(tokens, settings.context)
    tokens -= held_back
    if tokens <= settings.context:
        raise InputError(
            f"context {settings.context}: the text has {tokens} tokens, and a sequence takes "
            f"{settings.context + 1}; give more text, or choose a shorter context"
        )
    step_tokens = settings.batch_size * settings.context
    enough = min(_TOKENS_PER_PARAMETER * parameters, _EPOCHS * tokens)
    if settings.epochs is not None:
        enough = math.ceil(settings.epochs * tokens)
    steps = settings.steps or math.ceil(enough / step_tokens)
    if settings.steps is None and settings.most_steps:
        steps = min(steps, settings.most_steps)
    warmup = settings.warmup
    if warmup is None:
        warmup = min(math.ceil(settings.warmup_tokens / step_tokens), steps // 5)
    eval_every = settings.eval_every or math.ceil(steps / _EVALUATIONS)
    found = {
        "min_lr": settings.lr / 10 if settings.min_lr is None else settings.min_lr,
        "warmup": warmup,
        "steps": steps,
        "epochs": None,
        "most_steps": None,
        "eval_every": eval_every,
        "save_every": settings.save_every or eval_every,
        "held_back": held_back,
    }
    return Plan(**{**asdict(settings), **found})


def _end(tokens: int, context: int) -> int:
    """How many of the tokens are held back: a hundredth, but a sequence at least; or none."""
    sequence = context + 1
    if tokens < 20 * sequence:
        return 0
    return max(sequence, min(tokens // 100, _MOST_HELD_BACK))
