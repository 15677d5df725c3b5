"""state.json of a checkpoint: model config, hyperparameters, texts and progress of a run.

    {"version": 2, "config": {…}, "settings": {…}, "texts": {…}, "state": {…}}

Everything in it is checked when it is read: a size or an index from here reaches compiled code.
Files of version 1 have neither `legacy` in their settings nor `plan` in their state: their run is a
legacy one, and no run by the clock.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..arguments import MAX_INTEGER, as_float, checked_integer
from ..checkpoint.strict_json import read_json_object
from ..config import GPTConfig
from ..errors import CheckpointError, InputError, short_repr
from .config import RunConfig, checked_config
from .schedule import Plan

TEXT = "text.tokens"
VALIDATION = "held-out.tokens"

_VERSIONS = (1, 2)  # that are read; the last is written
_MAX_BYTES = 1_000_000

# Keys of the file that differ from the names of their fields.
_KEYS = {
    "warmup_steps": "warmup",
    "max_steps": "most_steps",
    "max_grad_norm": "clip",
    "validation_tokens": "held_back",
    "best_loss": "best",
    "evaluations_since_best": "worse",
}
_OPTIONAL = ("epochs", "max_steps")  # the hyperparameters of a run that may be null


@dataclass(frozen=True)
class TrainState:
    """The progress of a run.

    step           steps made; as many batches were read, so it determines the next one
    best_loss      lowest validation loss, in nats per token; None before the first evaluation
    best_step      the step after which it was measured
    evaluations_since_best  evaluations that were no better
    seconds        training time
    metrics_bytes  length of metrics.jsonl; what follows was written after the checkpoint
    plan           of a run by the clock: its steps and its place on the curve of learning rates
    """

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    seconds: float = 0.0
    metrics_bytes: int = 0
    plan: Plan | None = None


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step of a run to the last.

    folder  of the run
    model   the model's config
    config  the hyperparameters
    texts   {name of a token file: SHA-256 of its bytes}
    """

    folder: Path
    model: GPTConfig
    config: RunConfig
    texts: dict[str, str]


def to_json(run: Run, state: TrainState) -> str:
    """The text of state.json."""
    record = {
        "version": _VERSIONS[-1],
        "config": run.model.to_dict(),
        "settings": _by_key(asdict(run.config)),
        "texts": run.texts,
        "state": _by_key({**asdict(state), "plan": state.plan and state.plan._asdict()}),
    }
    return json.dumps(record, indent=2) + "\n"


def _by_key(values: dict[str, Any]) -> dict[str, Any]:
    return {_KEYS.get(name, name): value for name, value in values.items()}


def read_state_json(path: Path, folder: Path) -> tuple[Run, TrainState]:
    """The run in `folder` by the state.json at `path`; raises CheckpointError or ConfigError."""
    record = read_json_object(path, _MAX_BYTES, CheckpointError)
    version = record.get("version")
    if type(version) is not int or version not in _VERSIONS:
        raise CheckpointError(
            f"{path}: is of version {short_repr(version)}; this minigpt reads "
            + " and ".join(map(str, _VERSIONS))
        )
    settings, progress = _object(record, "settings", path), _object(record, "state", path)
    if version == 1:
        settings, progress = {**settings, "legacy": True}, {**progress, "plan": None}
    model = GPTConfig.from_dict(_object(record, "config", path), str(path))
    config = _config(settings, model, f"{path}: settings")
    texts = _texts(_object(record, "texts", path), f"{path}: texts")
    state = _state(progress, f"{path}: state")
    return Run(folder, model, config, texts), state


def _object(record: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = record.get(key)
    if type(value) is not dict:
        raise CheckpointError(f"{path}: {key} must be an object")
    return value


def _config(values: dict[str, Any], model: GPTConfig, where: str) -> RunConfig:
    config = RunConfig(**_by_name(values, RunConfig, where))
    try:
        config = checked_config(config)
        checked_integer("context", config.context, 1, model.n_positions, "the model's context")
    except InputError as error:  # which names the field
        name = error.argument or ""
        message = str(error).removeprefix(name)
        raise CheckpointError(f"{where}: {_KEYS.get(name, name)}{message}") from None
    if any(v is None for name, v in asdict(config).items() if name not in _OPTIONAL):
        raise CheckpointError(f"{where}: must have no null but epochs and most_steps")
    return config


def _texts(values: dict[str, Any], where: str) -> dict[str, str]:
    if set(values) not in ({TEXT}, {TEXT, VALIDATION}):
        raise CheckpointError(f"{where}: must have {TEXT}, may have {VALIDATION}, and nothing else")
    for name, digest in values.items():
        if type(digest) is not str:
            raise CheckpointError(f"{where}: {name} must be a SHA-256, not {short_repr(digest)}")
    return values


def _state(values: dict[str, Any], where: str) -> TrainState:
    named = _by_name(values, TrainState, where)
    for name, value in named.items():
        key = f"{where}: {_KEYS.get(name, name)}"
        if name == "plan":
            named[name] = None if value is None else _plan(value, key)
        elif name == "seconds" or (name == "best_loss" and value is not None):
            named[name] = _number(value, key)
        elif name != "best_loss":
            _check_count(value, key)
    state = TrainState(**named)
    if state.best_step > state.step:
        raise CheckpointError(f"{where}: best_step {state.best_step} is beyond step {state.step}")
    return state


def _plan(value: object, where: str) -> Plan:
    if type(value) is not dict or set(value) != set(Plan._fields):
        raise CheckpointError(f"{where}: must be null or have steps and position, and nothing else")
    _check_count(value["steps"], f"{where}: steps")
    return Plan(value["steps"], _number(value["position"], f"{where}: position"))


def _number(value: object, where: str) -> float:
    """A finite number from 0, as a float; a bool is none."""
    number = as_float(value)
    if not 0 <= number < math.inf:  # false for NaN
        raise CheckpointError(f"{where} cannot be {short_repr(value)}")
    return number


def _check_count(value: object, where: str) -> None:
    """Raises CheckpointError for anything but an integer from 0 to MAX_INTEGER."""
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise CheckpointError(f"{where} cannot be {short_repr(value)}")


def _by_name(values: dict[str, Any], kind: type, where: str) -> dict[str, Any]:
    """{name of a field of the dataclass `kind`: value} of an object that has just their keys."""
    names = {_KEYS.get(field.name, field.name): field.name for field in fields(kind)}
    if set(values) != set(names):
        raise CheckpointError(f"{where}: must have {', '.join(names)}, and nothing else")
    return {names[key]: value for key, value in values.items()}
