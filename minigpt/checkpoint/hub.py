"""A model source → its folder or GGUF file: a local path, or a model of the Hugging Face hub.

huggingface_hub downloads, with its cache, progress bar and resumption of interrupted downloads.
Its variables HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE work as usual.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from ..bundled import BUNDLED_MODEL
from ..errors import SourceError, short_repr
from .gguf_parts import gguf_models, is_gguf, listed

_HUB_ID = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*)"
    r"(?:/([A-Za-z0-9_-][A-Za-z0-9_.-]*\.gguf))?"
)
# A model of the hub's early days, such as gpt2, has no owner. What looks like a file is none.
_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9])?")
_FILE_SUFFIXES = {".bin", ".gguf", ".json", ".pt", ".pth", ".safetensors", ".txt", ".zip"}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_TOKENIZERS = {"tokenizer.json", "vocab.json", "encoder.json"}
# (first file of weights, files to fetch with it), in order of precedence.
_WEIGHTS = (
    ("model.safetensors", ("model.safetensors",)),
    ("model.safetensors.index.json", ("model.safetensors.index.json", "model*.safetensors")),
    ("pytorch_model.bin", ("pytorch_model.bin",)),
    ("pytorch_model.bin.index.json", ("pytorch_model.bin.index.json", "pytorch_model*.bin")),
)


def resolve(source: str | os.PathLike[str], tokenizer_only: bool = False) -> Path:
    """The path of a model source: a folder, a GGUF file, a hub id, or the bundled model's name.

    tokenizer_only  True to resolve the source of a tokenizer: of the hub only the files of the
                    tokenizer are fetched, and any other file is a source, too

    The model of a hub id such as "cerebras/Cerebras-GPT-111M" or "gpt2" is downloaded, or found in
    the cache. A folder whose only weights are a GGUF file, or the parts of one, stands for that
    file, and so does such a repository of the hub. "owner/name/file.gguf" is one of several in a
    repository. A folder or a file comes before a name.

    Raises SourceError for anything else, and for a model that cannot be downloaded.
    """
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise SourceError(f"a model source is a folder or a hub id, not {short_repr(source)}")
    path = Path(source)
    try:
        if path.is_dir():
            return _only_gguf(path, tokenizer_only) or path
        is_file = path.exists()
        if is_file and (tokenizer_only or is_gguf(path)):
            return path
    except (OSError, ValueError):  # too long, or with a zero byte
        is_file = False
    if is_file:
        raise SourceError(f"{path}: is a file; name its folder, or a GGUF file")
    if source == BUNDLED_MODEL.name:
        return resolve(BUNDLED_MODEL, tokenizer_only)
    hub_id = _as_hub_id(source) if isinstance(source, str) else None
    if hub_id:
        return _fetch(*hub_id, tokenizer_only)
    if path == BUNDLED_MODEL:
        raise SourceError(
            f"{path}: the bundled model is missing: it cannot be read from an archive, and "
            "pyinstaller --collect-data minigpt adds it to a bundle; name another model"
        )
    raise SourceError(
        f"{short_repr(str(source))}: no such folder or GGUF file, and not a hub id (owner/name)"
    )


def _as_hub_id(source: str) -> tuple[str, str | None] | None:
    """(hub id, name of a GGUF file or None); None for what is no name on the hub."""
    if ".." in source:
        return None
    if match := _HUB_ID.fullmatch(source):
        return match[1], match[2]
    is_file_name = Path(source).suffix.lower() in _FILE_SUFFIXES
    return (source, None) if _HUB_NAME.fullmatch(source) and not is_file_name else None


def _only_gguf(folder: Path, tokenizer_only: bool = False) -> Path | None:
    """The GGUF file of a folder with no other weights, the first where it has parts.

    Raises SourceError where the weights are in several, of which one must be named.
    """
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:  # opening a file of the folder will raise the error
        return None
    found = gguf_models(names)
    if any(first in names for first, _ in _WEIGHTS):
        return None
    if len(found) > 1 and not tokenizer_only:
        known = listed([files[0] for files in found])
        raise SourceError(f"{folder}: holds several GGUF files; name one of them: {known}")
    return folder / found[0][0] if len(found) == 1 else None


def _fetch(hub_id: str, file: str | None, tokenizer_only: bool) -> Path:
    """Download the files of a model into huggingface_hub's cache; returns its folder there.

    Of a GGUF file, `file` or the only one, returns its path. Without a connection to the hub, the
    files in the cache are used.
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
            # list_repo_files would retry for 20 s longer without a network
            info = huggingface_hub.HfApi().model_info(hub_id)
            names = [sibling.rfilename for sibling in info.siblings or []]
        except RepositoryNotFoundError as error:
            raise SourceError(_not_available(hub_id, error)) from None
        except Exception as error:  # a network library may raise anything
            return _cached(hub_id, file, error)
        wanted = _wanted(hub_id, file, names, tokenizer_only)
        try:
            folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted))
        except RepositoryNotFoundError as error:  # its list is public, its files need a login
            raise SourceError(_not_available(hub_id, error)) from None
        except Exception as error:
            raise SourceError(
                f"{hub_id}: cannot be fetched: {_first_line(error)}; "
                "run it again to continue the download"
            ) from None
    gguf = file or next((name for name in wanted if name.lower().endswith(".gguf")), None)
    return folder / gguf if gguf else folder


def _not_available(hub_id: str, error: Exception) -> str:
    reason = "the hub has no such model, or requires a login (`hf auth login`)"
    return f"{hub_id}: no such folder, and {reason}: {_first_line(error)}"


def _cached(hub_id: str, file: str | None, cause: Exception) -> Path:
    """The folder of a model in the cache, or its GGUF file; `cause` is why the hub failed."""
    import huggingface_hub

    try:
        # The cache may lack files of the model; opening them raises an error that names them.
        patterns = list(_SMALL_FILES)
        folder = huggingface_hub.snapshot_download(
            hub_id, allow_patterns=patterns, local_files_only=True
        )
    except Exception:
        raise SourceError(
            f"{hub_id}: no such folder, not in the cache, and the hub cannot be reached "
            f"({_first_line(cause)})"
        ) from None
    return Path(folder, file) if file else _only_gguf(Path(folder)) or Path(folder)


def _wanted(hub_id: str, file: str | None, names: list[str], tokenizer_only: bool) -> list[str]:
    """The files to download, of all files of a model; GGUF where it has no other weights.

    file            a GGUF file that was asked for
    tokenizer_only  no weights, unless GGUF files alone may hold the tokenizer

    Raises SourceError for a model without weights, or with several GGUF files of which none, or
    another, was named.
    """
    plain = [name for name in names if _PLAIN_NAME.fullmatch(name)]  # no folders, no patterns
    small = [name for name in plain if name in _SMALL_FILES]
    if tokenizer_only and file is None and _TOKENIZERS.intersection(small):
        return small
    for first, patterns in _WEIGHTS if file is None else ():
        if first in plain:
            weights = [name for name in plain if any(fnmatchcase(name, p) for p in patterns)]
            if tokenizer_only:
                break
            return small + weights
    models = gguf_models(plain)
    found = [files for files in models if file is None or file in files]
    if len(found) == 1:
        return found[0]
    if not models:
        what = "a tokenizer" if tokenizer_only else "weights"
        raise SourceError(f"{hub_id}: is on the hub, but without {what} that can be read")
    problem = "holds several GGUF files" if file is None else f"holds no file {short_repr(file)}"
    known = listed([files[0] for files in models])
    example = f"{hub_id}/{models[0][0]}"
    raise SourceError(f"{hub_id}: {problem}; name one of {known}, as in {example}")


def _first_line(error: Exception) -> str:
    """The first line of another library's message; the rest is mostly advice."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(" .:")


@contextlib.contextmanager
def _quiet_unless_terminal() -> Iterator[None]:
    """Silence huggingface_hub's log, and its progress bar unless stderr is a terminal."""
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    verbosity = hub_logging.get_verbosity()
    hide_bars = not sys.stderr.isatty() and not are_progress_bars_disabled()
    hub_logging.set_verbosity(logging.ERROR)
    if hide_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)
        if hide_bars:
            enable_progress_bars()
