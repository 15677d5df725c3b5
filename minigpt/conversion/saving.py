"""Writing a model as a folder: tensors in Hugging Face layout, config.json, tokenizer files."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import checked_choice, checked_folder
from ..checkpoint import TensorInfo, by_width, write_file, write_tensors
from ..checkpoint.tensors import NUMPY_DTYPE
from ..config import GENERATION_CONFIG, GPTConfig, read_generation_config
from ..errors import SourceError
from ..kernels.layout import bf16_to_f32, f32_to_bf16
from ..tokenizer.files import tokenizer_files
from ..tokenizer.tokenizer import GPTTokenizer
from ..weights.checks import quantized_layout
from ..weights.packed import Weights
from ..weights.table import PREFIX, Shapes, checkpoint_name

if TYPE_CHECKING:
    from ..checkpoint.gguf import GGUF


def save_model(
    config: GPTConfig,
    weights: Weights,
    source: Path,
    folder: str | os.PathLike[str],
    dtype: str = "f32",
) -> None:
    """Write model.safetensors, config.json, and the tokenizer files of `source` into a folder.

    dtype  "f32" or "bf16", of the matrices; vectors are written as f32

    Each file appears complete or not at all. Raises InputError for another dtype and for a `folder`
    that is not a path, SourceError where the folder cannot be written.
    """
    dtype = checked_choice("dtype", dtype, ("f32", "bf16"))
    folder = checked_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError for a zero byte in its name
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{folder}: cannot be created: {reason}") from None
    write_tensors(
        folder / "model.safetensors",
        by_width(float_infos(weights.shapes, dtype)),
        lambda info: [as_dtype(weights.tensor(table_name(info.name)), info.dtype)],
    )
    config_json = {**config.to_dict(), "tie_word_embeddings": weights.tied}
    write_config_and_tokenizer(folder, config_json, source)


def write_config_and_tokenizer(
    folder: Path,
    config: dict[str, Any],
    source: Path | GGUF,
    tokenizer: GPTTokenizer | None = None,
) -> None:
    """Write config.json, generation_config.json where `source` has one, and those tokenizer files
    that the folder does not have.

    tokenizer  whose files are written. Default: those of `source`, if it has any
    """
    write_file(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    generation_config = read_generation_config(source)
    if generation_config is None and (folder / GENERATION_CONFIG).exists():
        # another model's, which would go before config.json
        ends = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
        generation_config = (json.dumps(ends, indent=2) + "\n").encode()
    if generation_config is not None:
        write_file(folder / GENERATION_CONFIG, generation_config)
    files = tokenizer.vocabulary.files if tokenizer else tokenizer_files(source)
    for name, content in files.items():
        if not (folder / name).exists():
            write_file(folder / name, content)


def float_infos(shapes: Shapes, dtype: str) -> list[TensorInfo]:
    """The tensors of a folder in Hugging Face layout; dtype, "f32" or "bf16", of the matrices."""
    infos = []
    for name, shape in shapes.items():
        stored = "BF16" if dtype == "bf16" and len(shape) == 2 else "F32"
        infos.append(_info(name, stored, shape))
    return infos


def quantized_infos(shapes: Shapes, dtype: str, wte_dtype: str | None = None) -> list[TensorInfo]:
    """The tensors of a folder of "int8" or "int4", in the order of its file.

    wte_dtype  of wte and the head. Default: that of `matrix_dtype`

    The packed matrices come first, each followed by its scales: their sizes are multiples of a
    cache line, and each begins at one. wpe, in elements of two bytes, is last.
    """
    layout = quantized_layout(shapes, dtype, wte_dtype)
    infos = [_info(name, stored, shape) for name, (stored, shape) in layout.items()]
    packed = [info for info in infos if len(info.shape) > 2]
    return packed + by_width(info for info in infos if len(info.shape) <= 2)


def _info(name: str, dtype: str, shape: tuple[int, ...]) -> TensorInfo:
    nbytes = NUMPY_DTYPE[dtype].itemsize * math.prod(shape)
    return TensorInfo(stored_name(name), dtype, shape, nbytes)


def stored_name(name: str) -> str:
    """The name that Hugging Face's GPT2LMHeadModel stores a tensor of the table by."""
    return checkpoint_name(name, PREFIX)


def table_name(stored: str) -> str:
    """The table's name of a tensor; the inverse of `stored_name`."""
    return stored.removeprefix(PREFIX)


def as_dtype(tensor: np.ndarray, dtype: str) -> np.ndarray:
    """A float32 tensor, or the uint16 bits of a bfloat16 one, as "F32" or "BF16"."""
    if (dtype == "BF16") == (tensor.dtype == np.uint16):
        return tensor
    return f32_to_bf16(tensor) if dtype == "BF16" else bf16_to_f32(tensor)
