"""From any model source to a folder of ours, a tensor at a time.

    minigpt.conversion.convert.convert("cerebras/Cerebras-GPT-13B", "gpt-13b-int8", dtype="int8")

A folder of f32 or bf16 is in Hugging Face layout. One of int8 or int4 holds what the kernels
read, as it lies in memory (docs/format.md): it is mapped, and needs no loading. There is never
more than one tensor and a piece of the source in memory. The folder appears when all of it is on
the disk, and not before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arguments import checked_threads
from ..checkpoint import (
    Checkpoint,
    TensorInfo,
    by_width,
    creating_folder,
    open_checkpoint,
    resolve,
    write_tensors,
)
from ..config import GPTConfig
from ..errors import InputError, SourceError, short_repr
from ..kernels.layout import QUANT_BLOCK
from ..kernels.team import Team
from ..tokenizer.tokenizer import GPTTokenizer
from ..weights.checks import checked_names, quantized_dtype
from ..weights.loading import allocate_weights, fill, load_weights, pieces, plain, weight_shapes
from ..weights.table import HEAD, QUANTIZED, SCALES, in_panels
from .calibrate import importance
from .saving import (
    as_type,
    checked_folder,
    converted_infos,
    plain_infos,
    plain_name,
    write_beside,
)

DTYPES = ("f32", "bf16", "int8", "int4")


@dataclass(frozen=True)
class Progress:
    """How far a conversion is: the tensors and bytes of the result that are written, and all."""

    tensors: int
    all_tensors: int
    nbytes: int
    all_nbytes: int


def convert(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    dtype: str = "int8",
    threads: int | None = None,
    calibration: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Write the model of a source as a new folder.

    dtype        how matrices are held: "f32", "bf16", "int8" or "int4"
    calibration  for int4, a text like those the model will meet: weights are fitted to what they
                 are multiplied with in it (see calibrate.py)
    progress     is told how far it is, after each tensor

    Raises InputError for an argument out of its range, SourceError (and its children) for what is
    wrong with the source, or where the folder is there already or cannot be written. Whatever
    interrupts it leaves no folder behind.
    """
    if not (isinstance(dtype, str) and dtype in DTYPES):
        raise InputError(f"dtype {short_repr(dtype)}: must be one of {', '.join(DTYPES)}")
    folder, threads = checked_folder(folder), checked_threads(threads)
    origin = resolve(source)
    config = GPTConfig.from_source(origin)
    checkpoint = open_checkpoint(origin)
    made = quantized_dtype(checkpoint)
    if calibration is not None and dtype != "int4":
        raise InputError(f"dtype {dtype}: only int4 is fitted to a text")
    if made and dtype in QUANTIZED:
        raise InputError(
            f"dtype {dtype}: {origin} was converted to {made} already; convert the original"
        )
    if made:
        infos, make = _widened(checkpoint, config, dtype)
    elif dtype in QUANTIZED:
        known = {}
        if calibration is not None:
            ids = GPTTokenizer.from_pretrained(origin).encode(calibration)
            known = importance(checkpoint, config, ids)
        infos, make = _whole(checkpoint, config, dtype, threads, known)
    else:
        infos, make = _floats(checkpoint, config, dtype)
    try:
        with creating_folder(folder) as temporary:
            weights = temporary / "model.safetensors"
            metadata = {"format": "minigpt" if dtype in QUANTIZED else "pt"}
            write_tensors(weights, infos, _told(infos, make, progress), metadata)
            tied = all(info.name != HEAD for info in infos)
            write_beside(temporary, origin, _fields(config, tied, dtype))
    except MemoryError as error:
        raise SourceError(
            f"{origin}: its largest tensor needs more memory than there is"
        ) from error


def _fields(config: GPTConfig, tied: bool, dtype: str) -> dict[str, Any]:
    """The config.json of the result."""
    fields = {**config.to_dict(), "tie_word_embeddings": tied}
    if dtype in QUANTIZED:  # other programs then see that they cannot read it
        bits = int(dtype.removeprefix("int"))
        fields["quantization_config"] = {
            "quant_method": "minigpt",
            "bits": bits,
            "block": QUANT_BLOCK,
        }
    return fields


# Makes a tensor, in one array or several; called in the order in which they lie in the file.
_Make = Callable[[TensorInfo], Iterator[np.ndarray]]


def _told(
    infos: list[TensorInfo], make: _Make, progress: Callable[[Progress], None] | None
) -> _Make:
    """`make`, which tells after each array how far it is."""
    if progress is None:
        return make
    total, done = sum(info.nbytes for info in infos), 0

    def told(info: TensorInfo) -> Iterator[np.ndarray]:
        nonlocal done
        for piece in make(info):
            yield piece
            done += piece.nbytes
            progress(Progress(infos.index(info) + 1, len(infos), done, total))

    return told


def _floats(
    checkpoint: Checkpoint, config: GPTConfig, dtype: str
) -> tuple[list[TensorInfo], _Make]:
    """f32 or bf16, in Hugging Face layout."""
    _, stored = checked_names(checkpoint, config)
    shapes = weight_shapes(checkpoint, config, stored)

    def make(info: TensorInfo) -> Iterator[np.ndarray]:
        name = plain_name(info.name)
        if len(info.shape) == 1:
            yield plain(checkpoint, stored[name], info.shape, dtype)
            return
        for _, piece in pieces(checkpoint, stored[name]):
            yield as_type(piece, info.dtype)
            checkpoint.release()

    return by_width(plain_infos(shapes, dtype).values()), make


def _widened(
    checkpoint: Checkpoint, config: GPTConfig, dtype: str
) -> tuple[list[TensorInfo], _Make]:
    """The same, of what was converted to whole numbers."""
    weights = load_weights(checkpoint, config)

    def make(info: TensorInfo) -> Iterator[np.ndarray]:
        yield as_type(weights.tensor(plain_name(info.name)), info.dtype)
        checkpoint.release()

    return by_width(plain_infos(weights.shapes, dtype).values()), make


def _whole(
    checkpoint: Checkpoint,
    config: GPTConfig,
    dtype: str,
    threads: int,
    known: dict[str, np.ndarray],
) -> tuple[list[TensorInfo], _Make]:
    """int8 or int4, with each matrix's scales after it.

    known  {matrix: the importance of its rows}
    """
    _, stored = checked_names(checkpoint, config)
    shapes = weight_shapes(checkpoint, config, stored)
    team = Team(threads)
    scales: dict[str, np.ndarray] = {}

    def make(info: TensorInfo) -> Iterator[np.ndarray]:
        name = plain_name(info.name)
        if name.endswith(SCALES):
            yield scales.pop(name)
        elif in_panels(name, shapes[name]):
            numbers, beside = allocate_weights({name: shapes[name]}, dtype)
            fill(
                checkpoint, stored[name], name, numbers[name], beside[name], team, known.get(name)
            )  # fmt: skip
            scales[name + SCALES] = beside[name]
            yield numbers[name]
        else:
            yield plain(checkpoint, stored[name], shapes[name], dtype)

    return converted_infos(shapes, dtype), make
