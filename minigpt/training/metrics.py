"""What happened in a training run: a line of JSON for each update, in metrics.jsonl.

    {"step": 100, "loss": 2.31, "lr": 0.00094, "norm": 0.71, "held_out": 2.4, "seconds": 61.2}

step      the update, counted from 1; 0: before the first
loss      the mean of -ln p over the tokens of its batch, before the update
lr        the learning rate of it
norm      of its gradient, before it was clipped
held_out  the mean of -ln p over the held-out text after it, where that was found
seconds   that the run has taken so far
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

Line = dict[str, Any]


def append_line(path: Path, line: Line) -> None:
    """Adds a line to the file; raises CheckpointError where that cannot be, as on a full disk."""
    _write(path, (json.dumps(line) + "\n").encode())


def synced_size(path: Path) -> int:
    """The size of the file in bytes, all of which are on the disk then."""
    _write(path, b"", sync=True)
    return path.stat().st_size


def cut(path: Path, size: int) -> None:
    """Takes away what lies beyond the first `size` bytes: lines of updates to be made again."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def read_lines(path: Path) -> list[Line]:
    """The lines of the file; what is no line of ours is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            lines.append(line)
    return lines


def _write(path: Path, data: bytes, sync: bool = False) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "ab") as file:
            file.write(data)
            if sync:
                os.fsync(file.fileno())
    except OSError as flaw:
        raise CheckpointError(f"{path}: cannot be written: {flaw.strerror or flaw}") from None
