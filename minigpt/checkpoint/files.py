"""Safe opening of paths that may be a pipe, a device, a folder, or a file that is far too large."""

from __future__ import annotations

import mmap
import os
import platform
import stat
import sys
from pathlib import Path

from ..errors import CheckpointError, SourceError

# mmap.MAP_NORESERVE exists since Python 3.13; 0x4000 is its value on these machines.
_MAP_NORESERVE = getattr(
    mmap,
    "MAP_NORESERVE",
    0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64") else 0,
)


def open_regular(path: Path, error: type[SourceError]) -> int:
    """A file descriptor for reading the regular file `path`; symbolic links are followed.

    Raises `error` when there is no such file, or when it is a folder, pipe or device.
    """
    try:
        _require_regular(path.stat(), path, error)  # opening a device may already act on it
        # O_NONBLOCK: if a pipe has replaced the file by now, open must not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, ValueError) as cause:  # ValueError: a zero byte in the name
        raise error(f"{path}: cannot be opened: {_reason(cause)}") from None
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


def _reason(cause: Exception) -> str:
    return getattr(cause, "strerror", None) or str(cause)


def read_small_file(path: Path, max_bytes: int, error: type[SourceError]) -> bytes:
    """The bytes of a file of at most `max_bytes`; raises `error` when it is missing or larger."""
    try:
        with os.fdopen(open_regular(path, error), "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as cause:
        raise error(f"{path}: cannot be read: {_reason(cause)}") from None
    if len(data) > max_bytes:
        raise error(f"{path}: is larger than {max_bytes} bytes, the limit for such a file")
    return data


def read_beginning(path: Path, count: int, error: type[SourceError]) -> bytes:
    """The first `count` bytes of a file, fewer where it is shorter; raises `error` on failure."""
    try:
        with os.fdopen(open_regular(path, error), "rb") as file:
            return file.read(count)
    except OSError as cause:
        raise error(f"{path}: cannot be read: {_reason(cause)}") from None


def release_pages(data: mmap.mmap) -> None:
    """Drop the pages of a mapping from memory, where the system supports it."""
    if hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED)


def map_file(path: Path) -> mmap.mmap:
    """A file mapped into memory; each page is loaded when it is first touched.

    The mapping is private and copy-on-write: arrays over it are writable, and writing to one
    changes a page of this process, never the file.

    Raises CheckpointError when the file is missing, not regular, or empty.
    """
    descriptor = open_regular(path, CheckpointError)
    try:
        size = os.fstat(descriptor).st_size
        if size == 0:
            raise CheckpointError(f"{path}: is empty; download or save it again")
        if sys.platform == "win32":
            return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
        # Without NORESERVE, Linux counts a writable private mapping as memory in use: a file of
        # 51 GB would not map on a machine with 24 GB.
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        return mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError, OverflowError) as cause:
        reason = _reason(cause)
        raise CheckpointError(f"{path}: cannot be mapped into memory: {reason}") from None
    finally:
        os.close(descriptor)
