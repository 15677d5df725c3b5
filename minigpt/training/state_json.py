"""state.json of a checkpoint: model config, hyperparameters, texts and progress of a run.

    {"version": 1, "config": {…}, "settings": {…}, "texts": {…}, "state": {…}}

Everything in it is checked when it is read: a size or an index from here reaches compiled code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..arguments import MAX_INTEGER, checked_integer
from ..checkpoint.strict_json import read_json_object
from ..config import GPTConfig
from ..errors import CheckpointError, InputError, short_repr
from .config import RunConfig, checked_config

TEXT = "text.tokens"
VALIDATION = "held-out.tokens"

_VERSION = 1
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
    """

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    seconds: float = 0.0
    metrics_bytes: int = 0


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
        "version": _VERSION,
        "config": run.model.to_dict(),
        "settings": _by_key(asdict(run.config)),
        "texts": run.texts,
        "state": _by_key(asdict(state)),
    }
    return json.dumps(record, indent=2) + "\n"


def _by_key(values: dict[str, Any]) -> dict[str, Any]:
    return {_KEYS.get(name, name): value for name, value in values.items()}


def read_state_json(path: Path, folder: Path) -> tuple[Run, TrainState]:
    """The run in `folder` by the state.json at `path`; raises CheckpointError or ConfigError."""
    record = read_json_object(path, _MAX_BYTES, CheckpointError)
    if record.get("version") != _VERSION:
        version = short_repr(record.get("version"))
        raise CheckpointError(f"{path}: is of version {version}; this minigpt reads {_VERSION}")
    model = GPTConfig.from_dict(_object(record, "config", path), str(path))
    config = _config(_object(record, "settings", path), model, f"{path}: settings")
    texts = _texts(_object(record, "texts", path), f"{path}: texts")
    state = _state(_object(record, "state", path), f"{path}: state")
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
        key = _KEYS.get(name, name)
        if name in ("best_loss", "seconds"):
            is_number = type(value) in (int, float) and value >= 0
            if not is_number and not (name == "best_loss" and value is None):
                raise CheckpointError(f"{where}: {key} cannot be {short_repr(value)}")
        elif type(value) is not int or not 0 <= value <= MAX_INTEGER:
            raise CheckpointError(f"{where}: {key} cannot be {short_repr(value)}")
    return TrainState(**named)


def _by_name(values: dict[str, Any], kind: type, where: str) -> dict[str, Any]:
    """{name of a field of the dataclass `kind`: value} of an object that has just their keys."""
    names = {_KEYS.get(field.name, field.name): field.name for field in fields(kind)}
    if set(values) != set(names):
        raise CheckpointError(f"{where}: must have {', '.join(names)}, and nothing else")
    return {names[key]: value for key, value in values.items()}
