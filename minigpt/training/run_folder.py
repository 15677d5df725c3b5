"""A training run on the disk, whole at every moment.

    config.json, vocab.json, …    as in every model's folder: the run is a model source
    model.safetensors             the weights that did best on the held-out text; without one, the
                                  latest
    text.tokens, held-out.tokens  what it learns from, and is judged by
    step-00000100/                the latest checkpoint: what is needed to go on, to the bit
        model.safetensors  moments.safetensors  state.json
    metrics.jsonl  loss.svg       what happened, in numbers and as a picture
    lock                          held by the process that trains here

A checkpoint is written under another name, brought to the disk, and renamed in one step; only
then does the one before it go. So the newest folder step-… is whole, whatever happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import creating_folder, write_file, write_safetensors
from ..checkpoint.atomic import replacing
from ..checkpoint.files import map_file
from ..checkpoint.lock import locked
from ..checkpoint.safetensors import read_safetensors
from ..checkpoint.strict_json import read_json_object
from ..checkpoint.tensors import MappedFile
from ..config import GPTConfig
from ..conversion.saving import stored_name
from ..errors import CheckpointError, InputError, SourceError, short_repr
from ..source import open_source
from ..weights.table import all_shapes
from .config import Plan, check_settings
from .loss_curve import loss_curve
from .metrics import cut, read_lines, synced_size
from .token_file import read_header, read_tokens

CONFIG = "config.json"
MODEL = "model.safetensors"
TEXT = "text.tokens"
HELD_OUT = "held-out.tokens"
METRICS = "metrics.jsonl"
_CURVE = "loss.svg"
_MOMENTS = "moments.safetensors"
_STATE = "state.json"

_VERSION = 1
_CHECKPOINT = re.compile(r"step-([0-9]{8,})")
_MAX_STATE_BYTES = 1_000_000
_FIRST, _SECOND = "first.", "second."  # before the name of the tensor, that of its moment

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class State:
    """How far a run is.

    step           the updates made; as many batches were taken from the text, which says what
                   the next one is
    best           the least mean loss on the held-out text; None before the first evaluation
    best_step      the update after which it was found
    worse          evaluations since then
    seconds        spent in all
    metrics_bytes  the length of metrics.jsonl; what is beyond it came later
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    seconds: float = 0.0
    metrics_bytes: int = 0


@dataclass(frozen=True)
class Run:
    """What stays the same in a run.

    texts  the files of ids: {name: SHA-256 of its bytes}
    """

    folder: Path
    config: GPTConfig
    settings: Plan
    texts: dict[str, str]


@dataclass(frozen=True)
class Learned:
    """What changes in a run and is not a number: float32 arrays by the table's names.

    Before the first update there are no moments.
    """

    tensors: Tensors
    first_moments: Tensors
    second_moments: Tensors


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keeps every other process from training in the folder until the block ends.

    Raises InputError where one does, SourceError where the folder holds no run.
    """
    newest_checkpoint(folder)  # no lock is left where there is no run
    with locked(folder / "lock", "trains here"):
        yield


# ---- writing ----


def write_checkpoint(run: Run, state: State, learned: Learned) -> Path:
    """Writes a checkpoint into the run's folder; returns its folder.

    Raises CheckpointError where it cannot be written; the one before it is as it was.
    """
    record = {
        "version": _VERSION,
        "config": run.config.to_dict(),
        "settings": asdict(run.settings),
        "texts": run.texts,
        "state": asdict(state),
    }
    moments = {_FIRST + name: moment for name, moment in learned.first_moments.items()}
    moments |= {_SECOND + name: moment for name, moment in learned.second_moments.items()}
    path = run.folder / f"step-{state.step:08}"
    with creating_folder(path) as temporary:
        weights = {stored_name(name): tensor for name, tensor in learned.tensors.items()}
        write_safetensors(temporary / MODEL, weights)
        write_safetensors(temporary / _MOMENTS, moments)
        write_file(temporary / _STATE, (json.dumps(record, indent=2) + "\n").encode())
    return path


def save(run: Run, state: State, learned: Learned) -> State:
    """Writes a checkpoint in place of the last, and what follows from it; the state it holds.

    Raises CheckpointError where something cannot be written; the last checkpoint is then there.
    """
    state = replace(state, metrics_bytes=synced_size(run.folder / METRICS))
    tidy(run.folder, write_checkpoint(run, state, learned), state)
    return state


def tidy(folder: Path, checkpoint: Path, state: State) -> None:
    """Brings the folder to what its newest checkpoint says, wherever the process before ended."""
    try:
        cut(folder / METRICS, state.metrics_bytes)
        if state.best is None or state.best_step == state.step:
            _publish(checkpoint, folder)
        for path in folder.iterdir():
            if _CHECKPOINT.fullmatch(path.name) and path != checkpoint:
                path.rename(folder / f".{path.name}.old.tmp")  # no half of it is a checkpoint
        for path in folder.iterdir():
            if path.name.startswith(".") and path.suffix == ".tmp":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as flaw:
        raise CheckpointError(f"{folder}: cannot be written: {flaw.strerror or flaw}") from None
    write_file(folder / _CURVE, loss_curve(read_lines(folder / METRICS)).encode())


def _publish(checkpoint: Path, folder: Path) -> None:
    """The checkpoint's weights become the folder's model, in one step."""
    link = folder / f".{MODEL}.link.tmp"
    link.unlink(missing_ok=True)
    try:
        os.link(checkpoint / MODEL, link)  # another name of the same bytes: no time, no room
    except OSError:  # not every file system has them
        with (checkpoint / MODEL).open("rb") as file, replacing(folder / MODEL) as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
        return
    link.replace(folder / MODEL)
    link.unlink(missing_ok=True)  # where it was that already, replacing did nothing


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes; raises CheckpointError where it cannot be read."""
    return hashlib.sha256(map_file(path)).hexdigest()


# ---- reading ----


def has_run(folder: Path) -> bool:
    """Whether a training run is in the folder."""
    return bool(_checkpoints(folder))


def newest_step(folder: Path) -> int:
    """The updates made before the newest checkpoint; raises SourceError where there is none."""
    return int(newest_checkpoint(folder).name.removeprefix("step-"))


def newest_checkpoint(folder: Path) -> Path:
    """The checkpoint that the run goes on from; raises SourceError where there is none."""
    found = _checkpoints(folder)
    if not found:
        raise SourceError(
            f"{folder}: holds no training run; `minigpt train TEXT… --out {folder}` begins one"
        )
    return found[max(found)]


def _checkpoints(folder: Path) -> dict[int, Path]:
    """{step: folder} of the whole checkpoints."""
    if not folder.is_dir():
        return {}
    names = {path: _CHECKPOINT.fullmatch(path.name) for path in folder.iterdir()}
    return {int(match[1]): path for path, match in names.items() if match}


def open_run(folder: Path) -> tuple[Run, State, Learned]:
    """The run in a folder, and how far it is.

    Raises SourceError, CheckpointError or ConfigError, naming the file, for what is damaged, and
    for what is not as it was when the run began.
    """
    checkpoint = newest_checkpoint(folder)
    path = checkpoint / _STATE
    record = read_json_object(path, _MAX_STATE_BYTES, CheckpointError)
    if record.get("version") != _VERSION:
        version = short_repr(record.get("version"))
        raise CheckpointError(f"{path}: is of version {version}; this minigpt reads {_VERSION}")
    config = GPTConfig.from_dict(_part(record, "config", path), str(path))
    if GPTConfig.from_file(folder / CONFIG) != config:
        raise CheckpointError(f"{folder / CONFIG}: has changed; put back what {path} tells")
    texts = _part(record, "texts", path)
    for name in texts:
        _check_text(folder / name, texts[name], config)
    settings = _plan(_part(record, "settings", path), path)
    state = _state(_part(record, "state", path), path)
    run = Run(folder, config, settings, texts)
    learned = _learned(checkpoint, config, state)
    tidy(folder, checkpoint, state)
    return run, state, learned


def read_texts(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The ids (what is learned from, what is held out): integers [N] each, the latter maybe none.

    Raises CheckpointError for a damaged file.
    """
    tokens = read_tokens(run.folder / TEXT)
    if HELD_OUT in run.texts:
        return tokens, read_tokens(run.folder / HELD_OUT)
    border = len(tokens) - run.settings.held_back
    return tokens[:border], tokens[border:]


def _check_text(path: Path, expected: str, config: GPTConfig) -> None:
    if digest(path) != expected:
        raise CheckpointError(f"{path}: has changed since the run began; put it back")
    if read_header(path).vocab_size > config.vocab_size:
        raise CheckpointError(f"{path}: holds ids beyond the model's {config.vocab_size}")


def _part(record: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    part = record.get(name)
    if type(part) is not dict:
        raise CheckpointError(f"{path}: {name} must be an object")
    return part


def _plan(values: dict[str, Any], path: Path) -> Plan:
    _check_names(values, Plan, f"{path}: settings")
    plan = Plan(**values)
    try:
        check_settings(plan)
    except InputError as flaw:
        raise CheckpointError(f"{path}: settings: {flaw}") from None
    if any(v is None for name, v in values.items() if name not in ("epochs", "most_steps")):
        raise CheckpointError(f"{path}: settings: must have no null but epochs and most_steps")
    return plan


def _state(values: dict[str, Any], path: Path) -> State:
    _check_names(values, State, f"{path}: state")
    for name, value in values.items():
        kinds = {"best": (int, float, type(None)), "seconds": (int, float)}.get(name, (int,))
        if type(value) not in kinds or (value is not None and value < 0):
            raise CheckpointError(f"{path}: state: {name} cannot be {short_repr(value)}")
    return State(**values)


def _check_names(values: dict[str, Any], kind: type, where: str) -> None:
    names = [field.name for field in fields(kind)]
    if sorted(values) != sorted(names):
        raise CheckpointError(f"{where}: must have {', '.join(names)}, and nothing else")


def _learned(checkpoint: Path, config: GPTConfig, state: State) -> Learned:
    source = open_source(checkpoint, config)
    shapes = all_shapes(config, own_head=not config.tie_word_embeddings)
    tensors = {name: source.read_float32(name) for name in shapes}
    moments = _moments(checkpoint / _MOMENTS, shapes if state.step else {})
    return Learned(tensors, *moments)


def _moments(path: Path, shapes: dict[str, tuple[int, ...]]) -> list[Tensors]:
    """[first, second] moments of the tensors, copied out of the file."""
    stored = read_safetensors(MappedFile(path, map_file(path)))
    found: list[Tensors] = []
    for prefix in (_FIRST, _SECOND):
        moments = {}
        for name, shape in shapes.items():
            tensor = stored.get(prefix + name)
            if tensor is None or (tensor.info.dtype, tensor.info.shape) != ("F32", shape):
                raise CheckpointError(f"{path}: must hold {prefix}{name}, F32 {list(shape)}")
            moments[name] = tensor.read().copy()
        found.append(moments)
    return found
