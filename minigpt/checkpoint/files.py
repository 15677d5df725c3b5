"""Opening files that may be anything: a pipe, a device, a folder, or far too large."""

from __future__ import annotations

import mmap
import os
import platform
import stat
import sys
from pathlib import Path

from ..errors import CheckpointError, SourceError

# Python names MAP_NORESERVE only since 3.13; the number is that of the machines named here.
_MAP_NORESERVE = getattr(
    mmap,
    "MAP_NORESERVE",
    0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") else 0,
)


def open_regular(path: Path, error: type[SourceError]) -> int:
    """A file descriptor for reading the regular file `path`, symbolic links followed.

    Raises `error` when there is none, or when it is a folder, pipe or device.
    """
    try:
        _require_regular(path.stat(), path, error)  # opening a device may already act on it
        # O_NONBLOCK: should a pipe take the file's place meanwhile, open must not wait for it.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, ValueError) as flaw:  # ValueError: a zero byte in the name
        raise error(f"{path}: cannot be opened: {_reason(flaw)}") from None
    try:
        _require_regular(os.fstat(descriptor), path, error)
    except SourceError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(status: os.stat_result, path: Path, error: type[SourceError]) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
        raise error(f"{path}: is {kind}; a regular file is needed")


def _reason(flaw: Exception) -> str:
    return getattr(flaw, "strerror", None) or str(flaw)


def read_small_file(path: Path, max_bytes: int, error: type[SourceError]) -> bytes:
    """All bytes of a file of at most `max_bytes`; raises `error` when absent or larger."""
    try:
        with os.fdopen(open_regular(path, error), "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as flaw:
        raise error(f"{path}: cannot be read: {_reason(flaw)}") from None
    if len(data) > max_bytes:
        raise error(f"{path}: is larger than {max_bytes} bytes, the most such a file may have")
    return data


def release_pages(data: mmap.mmap) -> None:
    """Take a mapping's pages out of this process's memory, where the system can do that."""
    if hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED)


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file of weights as memory, loaded page by page when first touched.

    The mapping is private and copy-on-write: arrays over it have the ordinary, writable NumPy
    type, and writing to one changes a page of this process, never the file.

    Raises CheckpointError when the file is absent, not regular, or empty.
    """
    descriptor = open_regular(path, CheckpointError)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise CheckpointError(f"{path}: is empty; download or save it again")
        if sys.platform == "win32":
            return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
        # A writable private mapping counts as memory that may be needed, unless NORESERVE: a
        # file of 51 GB would not map on a machine of 24 GB.
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        return mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError, OverflowError) as flaw:
        reason = _reason(flaw)
        raise CheckpointError(f"{path}: cannot be mapped into memory: {reason}") from None
    finally:
        os.close(descriptor)
