"""A lock file that one process holds at a time; the system releases it when the process dies."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError, InputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextlib.contextmanager
def locked(path: Path, holder: str) -> Iterator[None]:
    """Hold the lock `path` until the block ends; the file is created if it does not exist.

    holder  what a process that holds it does, for the message: "trains here"

    Raises InputError where another process holds it, CheckpointError where the file cannot be
    created.
    """
    # a link is not followed, which could create a file elsewhere; a pipe is not waited for
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from None
    try:
        if not _acquire(descriptor):
            raise InputError(f"{path.parent}: another process {holder}; wait for it, or stop it")
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int) -> bool:
    """Lock an open file; False where another process has locked it."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # other errors: some network file systems have no locks
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True
