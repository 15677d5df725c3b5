"""The user's cache folder: entries that are read whole, unchanged, and from nobody else.

An entry is a file with a checksum of its name and its content. It is written
under a temporary name and then renamed, so that a reader, or another process that writes the same
entry, never meets half of one. A damaged entry counts as absent.

Machine code is loaded from the folder and run, so it must be safe: it belongs to this user, to root
or to the owner of this package, nobody else can write to it, and nobody else can put another in its
place. A safe folder is read even where it cannot be written, as in a container image.

The folder is MINIGPT_CACHE, else `minigpt` in the user's cache folder. MINIGPT_CACHE= turns the
cache off. It is never inside the installed package.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

_DIGEST_BYTES = 32
_STALE_SECONDS = 3600  # the age at which a file that was never renamed is removed


def cache_folder() -> Path | None:
    """minigpt's cache folder, whether or not it exists; None where the cache is turned off.

    Raises OSError for a user without a home, as containers have them.
    """
    chosen = os.environ.get("MINIGPT_CACHE")
    if chosen is not None:
        return Path(chosen).absolute() if chosen else None
    try:
        return _user_cache() / "minigpt"
    except RuntimeError:
        raise FileNotFoundError(0, "this user has no home folder", "~") from None


def load(folder: str, name: str) -> bytes | None:
    """The content of the entry `name` of a folder in the cache; None if it cannot be used."""
    try:
        root = cache_folder()
        if root is None:
            return None
        with (_checked(root / folder) / name).open("rb") as file:
            _check_writers(os.fstat(file.fileno()), file.name)
            data = file.read()
    except (OSError, RuntimeError):  # RuntimeError: links that lead in a circle
        return None
    content = data[_DIGEST_BYTES:]
    return content if data[:_DIGEST_BYTES] == _digest(folder, name, content) else None


def save(folder: str, name: str, content: bytes) -> None:
    """Write an entry, in place of one of the same name; nothing where the cache is turned off.

    Raises OSError where it cannot be written, or where the folder is not safe.
    """
    root = cache_folder()
    if root is None:
        return
    _make_folder(root / folder, 0o700)
    checked = _checked(root / folder)
    _remove_stale(checked)
    temporary = checked / f"{name}.{os.urandom(8).hex()}.tmp"
    try:
        _write_new(temporary, _digest(folder, name, content) + content)
        temporary.replace(checked / name)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        # Windows replaces no file that another process reads: one that wrote the same.
        if not isinstance(error, PermissionError) or load(folder, name) is None:
            raise OSError(error.errno, error.strerror, str(checked)) from error


def _make_folder(folder: Path, mode: int) -> None:
    """Create a folder where it is missing, and those above it, which only this user can write to.

    With `parents=True`, `Path.mkdir` would leave their modes to the umask.
    """
    if not folder.is_dir():
        _make_folder(folder.parent, 0o755)
        folder.mkdir(mode, exist_ok=True)


def _write_new(path: Path, data: bytes) -> None:
    """Write a new file that others may read, but never write, whatever the umask is."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
        file.write(data)


def _digest(folder: str, name: str, content: bytes) -> bytes:
    """The checksum of an entry. It covers the name: an entry in another's place is damaged, too."""
    return hashlib.sha256(f"{folder}/{name}/".encode() + content).digest()


def _remove_stale(folder: Path) -> None:
    """Remove what killed processes left behind."""
    for path in folder.glob("*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


def _user_cache() -> Path:
    """This system's cache folder of the user."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else Path.home() / ".cache"  # XDG ignores relative paths


# ---- who can write there ---------------------------------------------------------------------


def _checked(folder: Path) -> Path:
    """The real path of an existing folder; raises OSError where it is missing or not safe."""
    real = folder.resolve(strict=True)
    if sys.platform == "win32":  # access lists keep profile folders private
        return real
    _check_writers(real.stat(), real)
    # Above, too, nobody may put a link or another folder in the place of what is checked here. A
    # group may write there, because what its members could put there would belong to them.
    for path in {folder, *folder.parents, *real.parents}:
        status = path.lstat()
        if status.st_uid not in _trusted_users() | {Path("/").stat().st_uid}:
            raise PermissionError(0, "belongs to another user", str(path))
        is_sticky = status.st_mode & stat.S_ISVTX  # as /tmp is: each removes only what is his own
        if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_IWOTH and not is_sticky:
            raise PermissionError(0, "can be written by everybody", str(path))
    return real


def _check_writers(status: os.stat_result, path: object) -> None:
    """Raise PermissionError unless a file or folder is written by trusted users only."""
    if sys.platform == "win32":
        return
    if status.st_uid not in _trusted_users():
        raise PermissionError(0, "belongs to another user", str(path))
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(0, "can be written by other users", str(path))


@cache
def _trusted_users() -> frozenset[int]:
    """Users whose code runs here anyway: root, this user, and the owner of this package."""
    here = Path(__file__).absolute()
    # In a ZIP archive or a bundle, what exists is the archive or its folder.
    existing = next(path for path in (here, *here.parents) if path.exists())
    return frozenset({0, os.geteuid(), existing.stat().st_uid})
