"""Atomic writes: a file, or a folder of files, appears complete or not at all.

The bytes go to a temporary file in the same folder, are flushed to the disk, and get the final
name in one step; an interruption leaves the old file as it was. The temporary file of a killed
process is removed by the next write to the same name. Folders are written in the same way.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import CheckpointError

if os.name == "posix":
    import fcntl


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` when the block ends without an error.

    Raises CheckpointError on an error of the system (disk full, no such folder, no permission).
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        _sweep(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        # 0o666 minus the umask, as for any file; tempfile would create it with 0o600
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            _lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):  # after a success it has its new name
            temporary.unlink()


@contextlib.contextmanager
def creating_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which is renamed to `path` when the block ends without an error.

    Raises CheckpointError where `path` is a file or a folder that is not empty, and on an error of
    the system.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        if path.is_symlink() or (path.exists() and not _is_empty_folder(path)):
            raise CheckpointError(f"{path}: already exists; name a new folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary.mkdir()
        with _locked_folder(temporary):
            yield temporary
            _sync_folder(temporary)
            if os.name != "posix" and path.exists():
                path.rmdir()  # Windows does not replace even an empty folder
            temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after a success it has its new name


def _temporary(path: Path) -> Path:
    """A name beside `path`; raises CheckpointError for a path that cannot be replaced, as "."."""
    if path.name in ("", "..") or "\0" in str(path):
        raise CheckpointError(f"{path}: does not name a new folder or file")
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@contextlib.contextmanager
def _locked_folder(path: Path) -> Iterator[None]:
    """`_lock` for a folder; only POSIX systems can open one."""
    if os.name != "posix":
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write `data` as the file `path`, atomically; raises CheckpointError."""
    with replacing(path) as file:
        file.write(data)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove the temporary files of `path` that no process is writing."""
    for stale in path.parent.iterdir():
        if stale.name.startswith(f".{path.name}.") and stale.suffix == ".tmp":
            with contextlib.suppress(OSError):
                if _abandoned(stale):
                    shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def _lock(descriptor: int) -> None:
    """Mark an open file as in use, until it is closed or its process dies."""
    if os.name == "posix":
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _abandoned(path: Path) -> bool:
    if os.name != "posix":
        # Windows refuses to remove an open file, so trying is safe; not so for a folder
        return path.is_file()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
