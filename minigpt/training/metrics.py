"""metrics.jsonl: a JSON line for each step of a run.

    {"step": 100, "loss": 2.31, "lr": 0.00094, "norm": 0.71, "held_out": 2.4, "seconds": 61.2}

step      counted from 1; 0 is the evaluation before the first step
loss      mean cross-entropy of the step's batch before the update, in nats per token
lr        the step's learning rate
norm      norm of the gradient before clipping
held_out  validation loss after the step, in nats per token, if it was evaluated
seconds   training time of the run so far
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import CheckpointError

Metrics = dict[str, float]  # a line


def append_metrics(path: Path, metrics: Metrics) -> None:
    """Append a line to the file; raises CheckpointError on failure, such as a full disk."""
    _append(path, (json.dumps(metrics) + "\n").encode())


def synced_size(path: Path) -> int:
    """Flush the file to disk, and return its size in bytes; a missing file is created."""
    _append(path, b"", sync=True)
    return path.stat().st_size


def truncate(path: Path, size: int) -> None:
    """Cut the file to at most `size` bytes: what follows are steps that will be made again."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def read_metrics(path: Path) -> list[Metrics]:
    """The lines of the file; lines that are damaged or lack a step are left out."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            found.append(line)
    return found


def _append(path: Path, data: bytes, sync: bool = False) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "ab") as file:
            file.write(data)
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from None
