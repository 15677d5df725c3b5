"""Writing a model as a folder in Hugging Face layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from .checkpoint import write_file, write_safetensors
from .checkpoint.files import read_small_file
from .config import GPTConfig
from .errors import InputError, SourceError, shown
from .vocabulary import LARGEST_FILE, SAVED_AS
from .weights import Weights, narrowed, widened


def save_model(
    config: GPTConfig,
    weights: Weights,
    source: Path,
    folder: str | os.PathLike[str],
    dtype: str = "f32",
) -> None:
    """Write model.safetensors, config.json, and the tokenizer files that `source` has.

    dtype  "f32" or "bf16", of the matrices; vectors are written as f32

    Each file appears whole or not at all. Raises InputError for another dtype and for what is no
    path, SourceError where the folder cannot be written.
    """
    if not (isinstance(dtype, str) and dtype in ("f32", "bf16")):
        raise InputError(f"dtype {shown(dtype)}: must be f32 or bf16")
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise InputError(f"folder {shown(folder)}: must be the path of a folder")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError for a zero byte in its name
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{folder}: cannot be made: {reason}") from None
    tensors = {_stored_name(name): weights.tensor(name) for name in weights.tensors}
    narrow = {name for name, tensor in tensors.items() if tensor.ndim == 2 and dtype == "bf16"}
    held = {name: _as(tensor, name in narrow) for name, tensor in tensors.items()}
    write_safetensors(folder / "model.safetensors", held)
    saved = {**config.to_dict(), "tie_word_embeddings": weights.tied}
    write_file(folder / "config.json", (json.dumps(saved, indent=2) + "\n").encode())
    for name, saved_as in SAVED_AS.items():
        if (source / name).is_file() and not (folder / saved_as).exists():
            content = read_small_file(source / name, LARGEST_FILE, SourceError)
            write_file(folder / saved_as, content)


def _stored_name(name: str) -> str:
    """The name that Hugging Face gives the tensor in a language model."""
    return name if name.startswith("lm_head.") else f"transformer.{name}"


def _as(tensor: np.ndarray, narrow: bool) -> np.ndarray:
    """A float32 or bfloat16 tensor as bfloat16 if it is to be narrow, else as float32."""
    if narrow == (tensor.dtype == np.uint16):
        return tensor
    return narrowed(tensor) if narrow else widened(tensor)
