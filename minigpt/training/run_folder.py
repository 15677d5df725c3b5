"""The folder of a training run, consistent at every moment.

    config.json, vocab.json, …    as in every model's folder: the run is a model source
    model.safetensors             the weights with the lowest validation loss; the latest weights
                                  if there is no validation text
    text.tokens, held-out.tokens  training text and validation text
    step-00000100/                the latest checkpoint: all that the next step depends on
        model.safetensors  moments.safetensors  state.json
    metrics.jsonl  loss.svg       losses, in numbers and as a plot
    lock                          locked by the process that trains here

A checkpoint is written under a temporary name, flushed to disk, and renamed in one step; only then
is the previous one removed. The newest folder step-… is therefore complete at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..checkpoint import creating_folder, write_file, write_safetensors
from ..checkpoint.atomic import replacing
from ..checkpoint.files import map_file
from ..checkpoint.lock import locked
from ..checkpoint.safetensors import read_safetensors
from ..checkpoint.tensors import MappedFile
from ..config import GPTConfig
from ..conversion.saving import stored_name
from ..errors import CheckpointError, SourceError
from ..source import open_source
from ..weights.table import all_shapes
from .loss_curve import loss_curve
from .metrics import read_metrics, synced_size, truncate
from .state_json import TEXT, VALIDATION, Run, TrainState, read_state_json, to_json
from .token_file import read_tokens

CONFIG = "config.json"
MODEL = "model.safetensors"
METRICS = "metrics.jsonl"
_CURVE = "loss.svg"
_MOMENTS = "moments.safetensors"
_STATE = "state.json"

_CHECKPOINT = re.compile(r"step-([0-9]{8,})")
_FIRST, _SECOND = "first.", "second."  # prefixes of a tensor's name, for its moments

Tensors = dict[str, np.ndarray]


class WeightsAndMoments(NamedTuple):
    """Weights and AdamW's moments, {name: float32 array}; before the first step no moments."""

    weights: Tensors
    first_moments: Tensors
    second_moments: Tensors


class OpenRun(NamedTuple):
    """A run as `open_run` reads it.

    training_tokens    the ids to train on, uint16 or uint32 [N]
    validation_tokens  the ids to evaluate on, of the same type; empty if there are none
    """

    run: Run
    state: TrainState
    tensors: WeightsAndMoments
    training_tokens: np.ndarray
    validation_tokens: np.ndarray


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock the run against other processes until the block ends.

    Raises InputError if another process trains in the folder, SourceError if it holds no run.
    """
    newest_checkpoint(folder)  # raises before a folder without a run gets a lock
    with locked(folder / "lock", "trains here"):
        yield


# ---- writing ----


def write_checkpoint(run: Run, state: TrainState, tensors: WeightsAndMoments) -> Path:
    """Write a checkpoint into the run's folder; returns the checkpoint's folder.

    Raises CheckpointError on failure; the previous checkpoint is then unchanged.
    """
    moments = {_FIRST + name: moment for name, moment in tensors.first_moments.items()}
    moments |= {_SECOND + name: moment for name, moment in tensors.second_moments.items()}
    path = run.folder / f"step-{state.step:08}"
    with creating_folder(path) as temporary:
        weights = {stored_name(name): tensor for name, tensor in tensors.weights.items()}
        write_safetensors(temporary / MODEL, weights)
        write_safetensors(temporary / _MOMENTS, moments)
        write_file(temporary / _STATE, to_json(run, state).encode())
    return path


def save(run: Run, state: TrainState, tensors: WeightsAndMoments) -> TrainState:
    """Replace the run's checkpoint, and update model and loss curve; returns the saved state.

    Raises CheckpointError on failure; the folder then still has a complete checkpoint.
    """
    state = replace(state, metrics_bytes=synced_size(run.folder / METRICS))
    tidy(run.folder, write_checkpoint(run, state, tensors), state)
    return state


def tidy(folder: Path, checkpoint: Path, state: TrainState) -> None:
    """Bring the folder in line with its newest checkpoint, wherever a process before was killed."""
    try:
        truncate(folder / METRICS, state.metrics_bytes)
        if state.best_loss is None or state.best_step == state.step:
            _publish(checkpoint, folder)
        for path in folder.iterdir():
            if _CHECKPOINT.fullmatch(path.name) and path != checkpoint:
                # A half-removed folder must not look like a checkpoint.
                path.rename(folder / f".{path.name}.old.tmp")
        for path in folder.iterdir():
            if path.name.startswith(".") and path.suffix == ".tmp":
                is_folder = path.is_dir() and not path.is_symlink()
                shutil.rmtree(path) if is_folder else path.unlink()
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror or error}") from None
    write_file(folder / _CURVE, loss_curve(read_metrics(folder / METRICS)).encode())


def _publish(checkpoint: Path, folder: Path) -> None:
    """Make the checkpoint's weights the folder's model, in one step."""
    link = folder / f".{MODEL}.link.tmp"
    link.unlink(missing_ok=True)
    try:
        os.link(checkpoint / MODEL, link)  # a hard link takes neither time nor space
    except OSError:  # some file systems have none
        with (checkpoint / MODEL).open("rb") as file, replacing(folder / MODEL) as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
        return
    link.replace(folder / MODEL)
    link.unlink(missing_ok=True)  # POSIX: renaming onto a link of the same file does nothing


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes; raises CheckpointError if the file cannot be read."""
    return hashlib.sha256(map_file(path)).hexdigest()


# ---- reading ----


def has_run(folder: Path) -> bool:
    """Whether the folder holds a training run."""
    return bool(_checkpoints(folder))


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint; raises SourceError if there is none."""
    return _step(newest_checkpoint(folder))


def newest_checkpoint(folder: Path) -> Path:
    """The folder of the newest checkpoint; raises SourceError if there is none."""
    found = _checkpoints(folder)
    if not found:
        raise SourceError(
            f"{folder}: holds no training run; `minigpt train TEXT… --out {folder}` starts one"
        )
    return max(found, key=_step)


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def open_run(folder: Path) -> OpenRun:
    """Read and check the run in a folder, and tidy the folder.

    Raises SourceError, CheckpointError or ConfigError, naming the file, for what is damaged or has
    changed since the run began; the folder is then unchanged.
    """
    checkpoint = newest_checkpoint(folder)
    path = checkpoint / _STATE
    run, state = read_state_json(path, folder)
    if state.step != _step(checkpoint):
        raise CheckpointError(f"{path}: is of step {state.step}, not of {checkpoint.name}")
    if GPTConfig.from_file(folder / CONFIG) != run.model:
        raise CheckpointError(f"{folder / CONFIG}: has changed; restore what {path} says")
    texts = {name: _checked_text(run, name) for name in run.texts}
    training, validation = _split(run, texts)
    tensors = _read_tensors(checkpoint, run.model, state)
    tidy(folder, checkpoint, state)
    return OpenRun(run, state, tensors, training, validation)


def _checked_text(run: Run, name: str) -> np.ndarray:
    """The ids in a token file of the run, unchanged since the run began."""
    path = run.folder / name
    if digest(path) != run.texts[name]:
        raise CheckpointError(f"{path}: has changed since the run began; restore it")
    return read_tokens(path, run.model.vocab_size)


def _split(run: Run, texts: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(training tokens, validation tokens); by default the latter are the end of the text."""
    tokens = texts[TEXT]
    held_back = 0 if VALIDATION in texts else run.config.validation_tokens
    border = len(tokens) - held_back
    if border <= run.config.context:
        raise CheckpointError(
            f"{run.folder / TEXT}: has {len(tokens)} tokens, too few for sequences of "
            f"{run.config.context + 1} and {held_back} for validation"
        )
    return tokens[:border], texts.get(VALIDATION, tokens[border:])


def _read_tensors(checkpoint: Path, model: GPTConfig, state: TrainState) -> WeightsAndMoments:
    source = open_source(checkpoint, model)
    shapes = all_shapes(model, tied=model.tie_word_embeddings)
    weights = {name: source.read_float32(name) for name in shapes}
    first, second = _read_moments(checkpoint / _MOMENTS, shapes if state.step else {})
    return WeightsAndMoments(weights, first, second)


def _read_moments(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[Tensors, Tensors]:
    """(first, second) moments of the tensors, copied out of the file."""
    stored = read_safetensors(MappedFile(path, map_file(path)))

    def read(prefix: str) -> Tensors:
        moments = {}
        for name, shape in shapes.items():
            tensor = stored.get(prefix + name)
            if tensor is None or (tensor.info.dtype, tensor.info.shape) != ("F32", shape):
                raise CheckpointError(f"{path}: must hold {prefix}{name}, F32 {list(shape)}")
            moments[name] = tensor.read().copy()
        return moments

    return read(_FIRST), read(_SECOND)
