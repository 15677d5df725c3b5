"""The user's private cache folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def private_folder(name: str) -> Path | None:
    """The folder `name` in minigpt's cache, created if necessary; None if there is no cache.

    It is private to the user because machine code is loaded from it and run. It is never inside the
    installed package, which may be read-only. If nothing can be written there is no cache, which is
    no error. The environment variable MINIGPT_CACHE names another cache folder; empty, it turns
    the cache off.
    """
    chosen = os.environ.get("MINIGPT_CACHE")
    if chosen == "":
        return None
    try:
        folder = (Path(chosen) if chosen else _user_cache() / "minigpt") / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _is_private(folder) and os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):  # a read-only disk; no home folder
        return None


def _user_cache() -> Path:
    """This system's cache folder of the user."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else Path.home() / ".cache"  # XDG ignores relative paths


def _is_private(folder: Path) -> bool:
    """Whether the folder belongs to this user and nobody else can write to it."""
    if sys.platform == "win32":  # access lists keep profile folders private
        return True
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022
