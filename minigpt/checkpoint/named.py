"""The tensors of a model by name, from all of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, short_repr
from .blocks import EncodedTensor
from .files import release_pages
from .tensors import StoredTensor, TensorInfo


@dataclass(frozen=True)
class Checkpoint:
    """The named tensors of a model: headers are read, tensors only when asked for.

    path     the model's folder, or its GGUF file
    files    the files of weights that were opened, first to last
    tensors  {stored name: what the headers say of the tensor}
    stored   {stored name: the tensor in its file}
    """

    path: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    stored: Mapping[str, StoredTensor | EncodedTensor]

    def read(self, name: str) -> np.ndarray:
        """A tensor as an array of its stored dtype: BF16 as uint16 bits, blocks as float32.

        It is C-contiguous, except that a transposed matrix of a GGUF file is a transposed view.

        Where the stored bytes are contiguous and aligned, the array is a view of the file: nothing
        is copied, and pages are loaded as they are touched. Writing to a view never changes the
        file. If another program truncates the file meanwhile, touching the view kills the process
        (SIGBUS).

        Raises CheckpointError when there is no such tensor.
        """
        return self._tensor(name).read()

    def chunks(self, name: str, nbytes: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first row, first column, chunk) of a matrix, each chunk as `read` returns it.

        A chunk takes about `nbytes` and has whole rows, or, where the file stores the transpose,
        whole columns, as a transposed view: either it or its transpose is C-contiguous.

        Raises CheckpointError when there is no such tensor.
        """
        return self._tensor(name).chunks(nbytes)

    def release(self) -> None:
        """Give back the memory of all pages that were touched; reading loads them again.

        Whatever was written to a view is lost.
        """
        for file in {id(tensor.file): tensor.file for tensor in self.stored.values()}.values():
            release_pages(file.data)

    def _tensor(self, name: str) -> StoredTensor | EncodedTensor:
        if name not in self.stored:
            raise CheckpointError(f"{self.path}: holds no tensor {short_repr(name)}")
        return self.stored[name]
