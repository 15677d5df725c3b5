"""Writing a model as a folder: in Hugging Face layout, or what goes with weights in any."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import TensorInfo, by_width, write_file, write_tensors
from ..checkpoint.tensors import NUMPY_DTYPE
from ..config import GPTConfig
from ..errors import InputError, SourceError, short_repr
from ..kernels.layout import bf16_to_f32
from ..tokenizer.vocabulary import tokenizer_files
from ..weights.checks import stored_shapes
from ..weights.packed import Weights, f32_to_bf16
from ..weights.table import PREFIX, checkpoint_name


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
        raise InputError(f"dtype {short_repr(dtype)}: must be f32 or bf16")
    folder = checked_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError for a zero byte in its name
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{folder}: cannot be made: {reason}") from None
    infos = plain_infos(weights.shapes, dtype)
    write_tensors(
        folder / "model.safetensors",
        by_width(infos.values()),
        lambda info: [as_type(weights.tensor(plain_name(info.name)), info.dtype)],
    )
    write_beside(folder, source, {**config.to_dict(), "tie_word_embeddings": weights.tied})


def checked_folder(folder: Any) -> Path:
    """What a caller names as the folder to write; raises InputError for what is no path."""
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise InputError(f"folder {short_repr(folder)}: must be the path of a folder")
    return Path(folder)


def write_beside(folder: Path, source: Path, config: dict[str, Any]) -> None:
    """Write config.json, and those tokenizer files of `source` that the folder does not have."""
    write_file(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    for name, content in tokenizer_files(source).items():
        if not (folder / name).exists():
            write_file(folder / name, content)


def plain_infos(shapes: dict[str, tuple[int, ...]], dtype: str) -> dict[str, TensorInfo]:
    """{name: how a folder in Hugging Face layout holds it}; dtype "f32" or "bf16"."""
    infos = {}
    for name, shape in shapes.items():
        narrow = dtype == "bf16" and len(shape) == 2
        nbytes = (2 if narrow else 4) * math.prod(shape)
        infos[name] = TensorInfo(stored_name(name), "BF16" if narrow else "F32", shape, nbytes)
    return infos


def converted_infos(shapes: dict[str, tuple[int, ...]], dtype: str) -> list[TensorInfo]:
    """How a folder converted to "int8" or "int4" holds the tensors, in the order of its file.

    What lies in panels comes first, each with its scales after it: these are whole cache lines,
    and so each begins with one. wpe, in elements of two bytes, is the last.
    """
    infos = []
    for name, (kind, shape) in stored_shapes(shapes, dtype).items():
        nbytes = NUMPY_DTYPE[kind].itemsize * math.prod(shape)
        infos.append(TensorInfo(stored_name(name), kind, shape, nbytes))
    lines = [info for info in infos if len(info.shape) > 2]
    return lines + by_width(info for info in infos if len(info.shape) <= 2)


def stored_name(name: str) -> str:
    """The name that Hugging Face gives the tensor in a language model."""
    return checkpoint_name(name, PREFIX)


def plain_name(stored: str) -> str:
    """The table's name for it."""
    return stored.removeprefix(PREFIX)


def as_type(tensor: np.ndarray, dtype: str) -> np.ndarray:
    """A float32 or bfloat16 tensor as "F32" or "BF16"."""
    if (dtype == "BF16") == (tensor.dtype == np.uint16):
        return tensor
    return f32_to_bf16(tensor) if dtype == "BF16" else bf16_to_f32(tensor)
