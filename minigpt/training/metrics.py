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

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from ..arguments import MAX_INTEGER
from ..errors import CheckpointError

Metrics = dict[str, float]  # a line

_MAX_LINE_BYTES = 10_000  # of a line that is read: ours have some 150


def append_metrics(path: Path, metrics: Metrics) -> None:
    """Append a line to the file; raises CheckpointError on failure, such as a full disk."""
    with _opened(path, "ab") as file:
        file.write((json.dumps(metrics) + "\n").encode())


def synced_size(path: Path) -> int:
    """Flush the file to disk, and return its size in bytes; a missing file is created."""
    with _opened(path, "ab") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def truncate(path: Path, size: int) -> None:
    """Cut the file to at most `size` bytes: what follows are steps that will be made again.

    A last line without its end, as an editor may leave it, gets one. Raises CheckpointError for a
    file that cannot be written.
    """
    if not (path.exists() or path.is_symlink()):
        return
    with _opened(path, "r+b") as file:
        if file.seek(0, os.SEEK_END) > size:
            file.truncate(size)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def read_metrics(path: Path) -> list[Metrics]:
    """The lines of the file; lines that are damaged or lack a step are left out."""
    if not path.exists():
        return []
    with _opened(path, "rb") as file:
        return [line for data in file if (line := _parsed(data))]


def _parsed(data: bytes) -> Metrics | None:
    """The numbers of a line; None unless it is an object with a step."""
    if len(data) > _MAX_LINE_BYTES:
        return None
    try:
        line = json.loads(data)
    except (ValueError, RecursionError):  # bytes that are not UTF-8 are a ValueError, too
        return None
    step = line.get("step") if isinstance(line, dict) else None
    if type(step) is not int or not 0 <= step <= MAX_INTEGER:
        return None
    return {name: value for name, value in line.items() if type(value) in (int, float)}


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[BinaryIO]:
    """The open file, a regular one; an OSError in the block becomes a CheckpointError.

    A link is not followed: it would lead out of the run's folder. A pipe is not waited for.
    """
    flags = {"rb": os.O_RDONLY, "r+b": os.O_RDWR, "ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT}
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # where the system has them
        flags[mode] |= getattr(os, name, 0)
    try:
        if path.is_symlink():
            raise CheckpointError(f"{path}: is a link; put the file itself there, or remove it")
        with cast(BinaryIO, os.fdopen(os.open(path, flags[mode], 0o666), mode)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CheckpointError(f"{path}: is a pipe or device; remove it")
            yield file
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from None
