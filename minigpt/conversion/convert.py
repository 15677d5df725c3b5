"""Any model source → a folder of another dtype, one tensor at a time.

    minigpt.convert("cerebras/Cerebras-GPT-13B", "gpt-13b-int8", dtype="int8")

A folder of f32 or bf16 is in Hugging Face layout. One of int8 or int4 holds the panels that the
kernels read (docs/format.md): it is mapped into memory as it is, and needs no loading. Memory holds
one tensor and a chunk of the source. The folder appears when all of it is on disk, not before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arguments import (
    check_callable,
    check_tokenizer,
    checked_bool,
    checked_choice,
    checked_folder,
    checked_text,
    checked_threads,
)
from ..checkpoint import TensorInfo, by_width, creating_folder, write_tensors
from ..errors import InputError, SourceError, short_repr
from ..kernels.layout import QUANT_BLOCK
from ..kernels.team import Team
from ..source import ModelSource, open_source
from ..tokenizer.tokenizer import GPTTokenizer
from ..weights.loading import allocate_packed, pack_matrix, read_unpacked
from ..weights.table import QUANTIZED_DTYPES, SCALES, is_packed, matrix_dtype
from .calibrate import first_ids, importance
from .saving import (
    as_dtype,
    float_infos,
    quantized_infos,
    table_name,
    write_config_and_tokenizer,
)

DTYPES = ("f32", "bf16", "int8", "int4")

# Returns the arrays that together are a tensor; called once for each, in the order of the file.
_ReadTensor = Callable[[TensorInfo], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Progress:
    """How much of a result is written: tensors and bytes, each beside its total."""

    tensors: int
    all_tensors: int
    nbytes: int
    all_nbytes: int


def convert(
    source: str | os.PathLike[str] | ModelSource,
    folder: str | os.PathLike[str],
    dtype: str = "int8",
    threads: int | None = None,
    calibration: str | Iterable[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    *,
    tokenizer: GPTTokenizer | None = None,
    allow_special: bool = False,
) -> None:
    """Write the model of a source, with its tokenizer files, as a new folder.

    source         a folder, a GGUF file, or a hub id
    folder         must not exist, or be empty
    dtype          of the matrices: "f32", "bf16", "int8" or "int4", whose wte and head are int8
    threads        that quantize; default: one for each processor this process may use
    calibration    for int4: a text like those the model will meet, or several, of which the
                   first few thousand tokens are read. Errors are weighted by the activations in
                   them (see calibrate.py); default: all weights count alike
    progress       called after each array that is written
    tokenizer      written and used in place of the source's own. Default: that of the source
    allow_special  True to read special tokens such as `<|endoftext|>` in `calibration` as these
                   tokens. Default: plain text

    A source of int8 or int4 is copied to the same dtype and dequantized for another, which regains
    nothing of the original.

    Raises InputError for an argument out of its range, SourceError (and its subclasses) for a wrong
    source, and where the folder exists or cannot be written. An interrupted conversion leaves no
    folder behind.
    """
    dtype = checked_choice("dtype", dtype, DTYPES)
    if calibration is not None and dtype != "int4":
        raise InputError(f"dtype {dtype}: only int4 can be calibrated", "dtype")
    if isinstance(calibration, str):
        calibration = [checked_text("calibration", calibration)]
    if not isinstance(calibration, Iterable | None):
        raise InputError(f"calibration {short_repr(calibration)}: must be a text", "calibration")
    folder, threads = checked_folder(folder), checked_threads(threads)
    check_callable("progress", progress)
    if tokenizer is not None:
        check_tokenizer("tokenizer", tokenizer)
    allow_special = checked_bool("allow_special", allow_special)
    opened = open_source(source)
    if opened.quantized == dtype:
        if calibration is not None:
            raise InputError(
                f"calibration: {opened.path} is int4 already; calibrate the original", "calibration"
            )
        infos, read = _copied(opened, dtype)
    elif dtype in QUANTIZED_DTYPES:
        row_importance = {}
        if calibration is not None:
            encoder = tokenizer or GPTTokenizer.from_pretrained(opened)
            row_importance = importance(opened, first_ids(calibration, encoder, allow_special))
        infos, read = _quantized(opened, dtype, Team(threads), row_importance)
    else:
        infos, read = _floats(opened, dtype)
    if progress:
        read = _with_progress(read, infos, progress)
    try:
        with creating_folder(folder) as temporary:
            metadata = {"format": "minigpt" if dtype in QUANTIZED_DTYPES else "pt"}
            write_tensors(temporary / "model.safetensors", infos, read, metadata)
            config = {**opened.config.to_dict(), "tie_word_embeddings": opened.tied}
            if dtype in QUANTIZED_DTYPES:
                wte_dtype = opened.wte_dtype if opened.quantized == dtype else None
                config["quantization_config"] = _quantization_config(dtype, wte_dtype)
            write_config_and_tokenizer(temporary, config, opened.files, tokenizer)
    except MemoryError as error:
        raise SourceError(
            f"{opened.path}: its largest tensor needs more memory than there is"
        ) from error


def _quantization_config(dtype: str, wte_dtype: str | None) -> dict[str, Any]:
    """The entry of config.json by which programs see that they cannot read the folder."""
    wte_dtype = matrix_dtype("wte.weight", dtype, wte_dtype)
    bits, wte_bits = (int(name.removeprefix("int")) for name in (dtype, wte_dtype))
    quantization = {"quant_method": "minigpt", "bits": bits, "block": QUANT_BLOCK}
    return quantization if wte_bits == bits else {**quantization, "wte_bits": wte_bits}


def _with_progress(
    read: _ReadTensor, infos: list[TensorInfo], progress: Callable[[Progress], None]
) -> _ReadTensor:
    """`read`, which calls `progress` after each array."""
    numbers = {info.name: number for number, info in enumerate(infos, 1)}
    total, done = sum(info.nbytes for info in infos), 0

    def reporting(info: TensorInfo) -> Iterator[np.ndarray]:
        nonlocal done
        for array in read(info):
            yield array
            done += array.nbytes
            progress(Progress(numbers[info.name], len(infos), done, total))

    return reporting


def _floats(source: ModelSource, dtype: str) -> tuple[list[TensorInfo], _ReadTensor]:
    """The tensors of a source as f32 or bf16, and the function that reads them."""

    def read(info: TensorInfo) -> Iterator[np.ndarray]:
        name = table_name(info.name)
        if len(info.shape) == 1:
            yield read_unpacked(source, name, dtype)
            return
        for _, rows in source.row_chunks(name):
            yield as_dtype(rows, info.dtype)
            source.checkpoint.release()

    return by_width(float_infos(source.shapes, dtype)), read


def _copied(source: ModelSource, dtype: str) -> tuple[list[TensorInfo], _ReadTensor]:
    """The tensors of a source that is quantized to `dtype`, and the function that reads them."""

    def read(info: TensorInfo) -> Iterator[np.ndarray]:
        yield source.checkpoint.read(source.names[table_name(info.name)])
        source.checkpoint.release()

    return quantized_infos(source.shapes, dtype, source.wte_dtype), read


def _quantized(
    source: ModelSource, dtype: str, team: Team, row_importance: dict[str, np.ndarray]
) -> tuple[list[TensorInfo], _ReadTensor]:
    """The tensors of a source as int8 or int4, and the function that quantizes them.

    row_importance  {matrix: float32 [K]}; rows of the others are equally important
    """
    shapes = source.shapes
    pending: dict[str, np.ndarray] = {}  # scales of the matrix before, which follow it in the file

    def read(info: TensorInfo) -> Iterator[np.ndarray]:
        name = table_name(info.name)
        if name.endswith(SCALES):
            yield pending.pop(name)
        elif is_packed(name, shapes[name]):
            qweights, scales = allocate_packed({name: shapes[name]}, dtype)
            importance = row_importance.get(name)
            pack_matrix(source, name, qweights[name], scales[name], team, importance)
            pending[name + SCALES] = scales[name]
            yield qweights[name]
        else:
            yield read_unpacked(source, name, dtype)

    return quantized_infos(shapes, dtype), read
