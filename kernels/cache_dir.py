"""The user's own folder for what takes time to make, and can be made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def private_folder(name: str) -> Path | None:
    """The folder `name` in minigpt's cache, made private to the user; None where there is none.

    Private, as code is kept in it, and what is loaded as code is run. It is never in the
    installed package, which may be read-only, and absent rather than fatal when nothing can be
    written. `MINIGPT_CACHE` names another cache; the empty string turns it off.
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
    """Where this system keeps what a user's programs can make again."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else Path.home() / ".cache"  # by XDG's own rule


def _is_private(folder: Path) -> bool:
    """No other user can put code there: it is ours, and only we can write."""
    if sys.platform == "win32":  # a profile folder is private by its access list
        return True
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022
