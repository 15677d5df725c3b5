"""A lock that one process holds at a time, and that the operating system takes from the dead."""

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
    """Holds the lock that is the file `path`, made if need be, until the block ends.

    Raises InputError where another process holds it, whose work `holder` names; CheckpointError
    where the file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as flaw:
        raise CheckpointError(f"{path}: cannot be written: {flaw.strerror or flaw}") from None
    try:
        if not _taken(descriptor):
            raise InputError(f"{path.parent}: another process {holder}; wait for it, or stop it")
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as flaw:  # of another kind: some network file systems have no locks
        return flaw.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True
