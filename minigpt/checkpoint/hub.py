"""A model source → a folder, or a GGUF file: one that is there, or a model of the Hugging Face
hub, fetched.

Fetching is left to huggingface_hub: its cache, its progress bar, its going on where an
interrupted download stopped. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they
always mean to it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import SourceError, short_repr

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
# Weights: of the first of these names that a model has, the files that go with it.
_WEIGHTS = (
    ("model.safetensors", ("model.safetensors",)),
    ("model.safetensors.index.json", ("model.safetensors.index.json", "model*.safetensors")),
    ("pytorch_model.bin", ("pytorch_model.bin",)),
    ("pytorch_model.bin.index.json", ("pytorch_model.bin.index.json", "pytorch_model*.bin")),
)


def resolve(source: str | os.PathLike[str]) -> Path:
    """The folder, or the GGUF file, that a model source names; a hub id such as
    "cerebras/Cerebras-GPT-111M" is fetched first, or found in the cache.

    A folder whose only weights are one GGUF file stands for that file.

    Raises SourceError when `source` is neither, or when it cannot be fetched.
    """
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise SourceError(f"a model source is a folder or a hub id, not {short_repr(source)}")
    path = Path(source)
    try:
        if path.is_dir():
            return _only_gguf(path) or path
        if path.suffix.lower() == ".gguf" and path.exists():
            return path
        is_file = path.exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        is_file = False
    if is_file:
        raise SourceError(f"{path}: is a file; name the folder that it lies in, or a .gguf file")
    if isinstance(source, str) and _HUB_ID.fullmatch(source) and ".." not in source:
        return _fetch(source)
    raise SourceError(f"{short_repr(str(source))}: no such folder, and not a hub id (owner/name)")


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF file in a folder that holds one and no other weights."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:  # whoever reads the folder will tell
        return None
    found = [name for name in names if name.lower().endswith(".gguf")]
    if len(found) == 1 and not any(first in names for first, _ in _WEIGHTS):
        return folder / found[0]
    return None


def _fetch(hub_id: str) -> Path:
    """Fetches what a model needs into huggingface_hub's cache; returns the folder there.

    When the hub cannot be asked, what the cache has is taken.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError:
        raise SourceError(
            f"{hub_id}: no such folder; to fetch it from the hub: pip install huggingface_hub"
        ) from None
    with _quiet_unless_terminal():
        try:
            # Not list_repo_files, which tries for 20 s more when there is no network.
            info = huggingface_hub.HfApi().model_info(hub_id)
            wanted = _wanted([file.rfilename for file in info.siblings or []])
        except RepositoryNotFoundError as flaw:
            raise SourceError(_not_given(hub_id, flaw)) from None
        except Exception as flaw:  # whatever a library for networks may raise
            return _cached(hub_id, flaw)
        if not wanted:
            raise SourceError(f"{hub_id}: is on the hub, with no weights of a kind that is read")
        try:
            return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted))
        except RepositoryNotFoundError as flaw:  # one that asks to log in: its list is public
            raise SourceError(_not_given(hub_id, flaw)) from None
        except Exception as flaw:
            raise SourceError(
                f"{hub_id}: cannot be fetched: {_first_line(flaw)}; "
                "what has arrived is kept, so another try goes on from there"
            ) from None


def _not_given(hub_id: str, flaw: Exception) -> str:
    reason = "the hub has no such model, or wants you to log in for it (`hf auth login`)"
    return f"{hub_id}: no such folder, and {reason}: {_first_line(flaw)}"


def _cached(hub_id: str, why_not_asked: Exception) -> Path:
    import huggingface_hub

    try:
        # The cache may hold less than all of the model; the readers then name what is missing.
        patterns = list(_SMALL_FILES)
        folder = huggingface_hub.snapshot_download(
            hub_id, allow_patterns=patterns, local_files_only=True
        )
    except Exception:
        raise SourceError(
            f"{hub_id}: no such folder, not in the cache, and the hub cannot be asked "
            f"({_first_line(why_not_asked)})"
        ) from None
    return Path(folder)


def _wanted(names: list[str]) -> list[str]:
    """Of all files of a model on the hub, those to fetch; empty if there are no weights."""
    plain = [name for name in names if _PLAIN_NAME.fullmatch(name)]  # no folders, no patterns
    for first, patterns in _WEIGHTS:
        if first in plain:
            weights = [name for name in plain if any(fnmatchcase(name, p) for p in patterns)]
            return [name for name in plain if name in _SMALL_FILES] + weights
    return []


def _first_line(flaw: Exception) -> str:
    """An error of another library on one line, without the advice that mostly follows."""
    lines = str(flaw).strip().splitlines()
    return (lines[0] if lines else type(flaw).__name__)[:200].rstrip(" .:")


@contextlib.contextmanager
def _quiet_unless_terminal() -> Iterator[None]:
    """Keeps huggingface_hub's progress bar to terminals, and its own notes to itself."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    verbosity = logging.get_verbosity()
    hide_bars = not sys.stderr.isatty() and not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if hide_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if hide_bars:
            enable_progress_bars()
