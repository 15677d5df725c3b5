"""A model source, opened and checked once: its config and its tensors by name.

    source = open_source("cerebras/Cerebras-GPT-111M")
    source.config.n_layer, source.shapes["wte.weight"], source.read("wte.weight")

Opening reads config.json and the headers of the weights; of a GGUF file, its one header. Loading,
conversion, calibration, export and `minigpt info` all start from a ModelSource.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .checkpoint import Checkpoint, open_checkpoint, resolve
from .config import GPTConfig
from .kernels.layout import QUANT_BLOCK, bf16_to_f32, padded
from .weights.checks import checked_names, quantized_dtype, quantized_wte_dtype
from .weights.table import HEAD, SCALES, Shapes, all_shapes
from .weights.unpack import unpacked_matrix

if TYPE_CHECKING:
    from .checkpoint.gguf import GGUF

_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class ModelSource:
    """A model on disk whose headers fit its config.

    path        its folder, or its GGUF file
    files       what else is read from it: the folder, or the parsed header of the GGUF file
    config      from config.json, or from the values of the GGUF file
    checkpoint  the tensors under the names they are stored by
    quantized   "int8" or "int4" for a folder of such weights, else None: the dtype of its layers
    prefix      what the stored names begin with, "transformer." or nothing; what a wrapper has put
                before it, such as "_orig_mod.", does not count
    names       {name in weights/table.py: stored name} of every tensor of the model
    """

    path: Path
    files: Path | GGUF = field(repr=False)
    config: GPTConfig
    checkpoint: Checkpoint = field(repr=False)
    quantized: str | None
    prefix: str
    names: dict[str, str] = field(repr=False)

    @property
    def auto_dtype(self) -> str:
        """The dtype that "auto" loads: that of quantized weights; "bf16" where all matrices are
        stored as BF16; else "f32".

        A stored head counts: one that equals wte bit for bit is of the same dtype.
        """
        if self.quantized:
            return self.quantized
        infos = [self.checkpoint.tensors[name] for name in self.names.values()]
        matrices = {info.dtype for info in infos if len(info.shape) == 2}
        return "bf16" if matrices == {"BF16"} else "f32"

    @property
    def wte_dtype(self) -> str:
        """The dtype of wte and the head where "auto" loads the source; see Weights.wte_dtype."""
        if self.quantized:
            return quantized_wte_dtype(self.checkpoint, self.names["wte.weight"])
        return self.auto_dtype

    @cached_property
    def tied(self) -> bool:
        """Whether the head is wte: none is stored, or one that equals wte bit for bit.

        Reads both tensors where a float head is stored.
        """
        if HEAD not in self.names:
            return True
        return self.quantized is None and self._equal_bits(HEAD, "wte.weight")

    @cached_property
    def shapes(self) -> Shapes:
        """{name: shape} of the tensors the model has; the head among them unless it is tied."""
        return all_shapes(self.config, tied=self.tied)

    def read(self, name: str) -> np.ndarray:
        """A tensor in its own shape: bfloat16 bits (uint16) if stored as BF16, else float32.

        A view of the file where the stored bytes are that array. A quantized matrix is dequantized,
        to exactly the numbers that it stands for.
        """
        stored = self.checkpoint.read(self.names[name])
        if name + SCALES in self.names:
            scales = self.checkpoint.read(self.names[name + SCALES])
            return unpacked_matrix(name, self.shapes[name], stored.reshape(-1), scales.reshape(-1))
        return self._as_f32_or_bf16(name, stored)

    def read_float32(self, name: str) -> np.ndarray:
        """A tensor as a C-contiguous float32 copy; the pages of the file are released."""
        array = self.read(name)
        wide = bf16_to_f32(array) if array.dtype == np.uint16 else np.array(array, order="C")
        self.checkpoint.release()
        return np.ascontiguousarray(wide)

    def row_chunks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of a matrix, some megabytes at a time, each as `read` returns them.

        A quantized matrix is dequantized at once.
        """
        dequantized = name + SCALES in self.names
        array = self.read(name) if dequantized else self.checkpoint.read(self.names[name])
        rows, columns = array.shape
        step = padded(max(1, _CHUNK_BYTES // (columns * array.itemsize)), QUANT_BLOCK)
        for first in range(0, rows, step):
            yield first, self._as_f32_or_bf16(name, array[first : first + step])

    def chunks(self, name: str) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first row, first column, chunk) of a matrix, each chunk as `read` returns it.

        A chunk has whole rows; of a matrix whose file stores the transpose, whole columns. The
        pages of the file are released after each. A quantized matrix is dequantized at once.
        """
        if name + SCALES in self.names:
            yield from ((row, 0, rows) for row, rows in self.row_chunks(name))
            self.checkpoint.release()
            return
        for row, column, chunk in self.checkpoint.chunks(self.names[name], _CHUNK_BYTES):
            yield row, column, self._as_f32_or_bf16(name, chunk)
            self.checkpoint.release()

    def _as_f32_or_bf16(self, name: str, array: np.ndarray) -> np.ndarray:
        is_bf16 = self.checkpoint.tensors[self.names[name]].dtype == "BF16"
        with np.errstate(all="ignore"):  # a float64 may overflow: infinite weights are found later
            return array if is_bf16 else array.astype(np.float32, copy=False)

    def _equal_bits(self, a: str, b: str) -> bool:
        """Whether two matrices of one shape are equal bit for bit."""
        infos, names = self.checkpoint.tensors, self.names
        if infos[names[a]].dtype != infos[names[b]].dtype:
            return False
        views = self.checkpoint.read(names[a]), self.checkpoint.read(names[b])
        if views[0].ctypes.data == views[1].ctypes.data:  # most tied heads share the bytes of wte
            return True
        for (_, rows_a), (_, rows_b) in zip(self.row_chunks(a), self.row_chunks(b), strict=True):
            if rows_a.tobytes() != rows_b.tobytes():
                return False
            self.checkpoint.release()
        return True


def open_source(
    source: str | os.PathLike[str] | ModelSource, config: GPTConfig | None = None
) -> ModelSource:
    """Open the model of a folder, a GGUF file or a hub id; a ModelSource is returned as it is.

    config  for a folder without a config.json

    Raises SourceError where there is no such source or it holds no weights, ConfigError for a
    wrong config.json, and CheckpointError for files of weights that are damaged or do not fit it.
    """
    if isinstance(source, ModelSource):
        return source
    path = resolve(source)
    files = _opened(path)
    config = config or GPTConfig.from_source(files)
    checkpoint = open_checkpoint(files)
    quantized = quantized_dtype(checkpoint)
    prefix, names = checked_names(checkpoint, config, quantized)
    return ModelSource(path, files, config, checkpoint, quantized, prefix, names)


def _opened(path: Path) -> Path | GGUF:
    if not path.is_file():
        return path
    from .checkpoint.gguf_gpt2 import open_gguf  # only a GGUF file needs its reader

    return open_gguf(path)
