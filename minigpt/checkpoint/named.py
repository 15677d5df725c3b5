"""The tensors of a model by name, whatever files they lie in."""

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
    """The named tensors of a model; headers are read, tensors are not until asked for.

    folder   where it lies: a folder, or a GGUF file
    files    the files of weights that were opened, first to last
    tensors  what the headers say of each tensor, by name as it is stored
    """

    folder: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    stored: Mapping[str, StoredTensor | EncodedTensor]

    def read(self, name: str) -> np.ndarray:
        """A tensor as an array of its stored dtype; BF16 comes as the uint16 bits, what is stored
        in blocks as float32. It is C-contiguous, but for a transposed view of a GGUF file.

        Where it lies contiguous and aligned in its file, this is a view: nothing is copied, and
        pages are loaded as they are touched. Writing to a view never changes the file. A view
        is lost (the process gets SIGBUS) if another program cuts its file short meanwhile.

        Raises CheckpointError when there is no such tensor.
        """
        return self._tensor(name).read()

    def pieces(self, name: str, nbytes: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first row, first column, part) of a matrix, part by part, each as `read` gives it.

        A part takes about `nbytes` and is whole rows, or, where the file holds the transpose,
        whole columns: a transposed view. So either it or its transpose is C-contiguous.

        Raises CheckpointError when there is no such tensor.
        """
        return self._tensor(name).pieces(nbytes)

    def _tensor(self, name: str) -> StoredTensor | EncodedTensor:
        if name not in self.stored:
            raise CheckpointError(f"{self.folder}: holds no tensor {short_repr(name)}")
        return self.stored[name]

    def release(self) -> None:
        """Give back the memory of all pages that were touched; what is read again is loaded again.

        What was written to a view is forgotten.
        """
        for file in {id(tensor.file): tensor.file for tensor in self.stored.values()}.values():
            release_pages(file.data)
