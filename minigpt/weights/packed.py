"""Weights in the form that kernels read: matrices in panels, vectors in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.layout import bf16_to_f32
from .table import HEAD, SCALES, Shapes, is_packed
from .unpack import unpacked_matrix

if TYPE_CHECKING:
    from ..source import ModelSource  # which imports weights/checks.py


@dataclass(frozen=True)
class Weights:
    """The weights of a model, ready for the kernels.

    tensors  {name: array}: flat panels of what `is_packed`, else an array of the table's shape;
             `lm_head.weight` only where the head is not tied
    scales   {name: flat array} of the quantized matrices
    shapes   {name: shape} of the tensors, as in the table
    dtype    "f32", "bf16", "int8" or "int4", of the matrices in layers
    prefix   what the names in the checkpoint begin with: "transformer." or nothing
    """

    tensors: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    shapes: Shapes
    dtype: str
    prefix: str

    @property
    def tied(self) -> bool:
        """Whether the head is wte."""
        return HEAD not in self.tensors

    @property
    def head(self) -> np.ndarray:
        """The panels of the head, [C, V]; wte's where it is tied."""
        return self.tensors.get(HEAD, self.tensors["wte.weight"])

    @property
    def wte_dtype(self) -> str:
        """The dtype of wte and the head: int8 beside layers of int4, else `dtype`.

        In a folder of an earlier version they are int4, too.
        """
        is_int8 = self.tensors["wte.weight"].dtype == np.int8
        return "int8" if is_int8 else self.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors and scales."""
        return sum(a.nbytes for a in (*self.tensors.values(), *self.scales.values()))

    def tensor(self, name: str) -> np.ndarray:
        """A tensor in the table's shape: a copy where it is packed, dequantized to float32."""
        array, shape = self.tensors[name], self.shapes[name]
        if not is_packed(name, shape):
            return array
        return unpacked_matrix(name, shape, array, self.scales.get(name))

    def float32_copies(self) -> dict[str, np.ndarray]:
        """{name: float32 array of the table's shape}: copies that training may change."""
        copies = {}
        for name in self.shapes:
            tensor = self.tensor(name)
            copies[name] = bf16_to_f32(tensor) if tensor.dtype == np.uint16 else tensor.copy()
        return copies


def map_quantized(source: ModelSource, dtype: str) -> Weights:
    """The weights of a source quantized to `dtype`, as views of its files: nothing is read."""
    tensors, scales = {}, {}
    for name, shape in source.shapes.items():
        array = source.checkpoint.read(source.names[name])
        if is_packed(name, shape):
            tensors[name] = array.reshape(-1)
            scales[name] = source.checkpoint.read(source.names[name + SCALES]).reshape(-1)
        else:
            tensors[name] = array.reshape(shape)
    return Weights(tensors, scales, source.shapes, dtype, source.prefix)


def float32_tensors(source: ModelSource) -> dict[str, np.ndarray]:
    """{name: float32 array of the table's shape}, copied; quantized weights are dequantized."""
    return {name: source.read_float32(name) for name in source.shapes}
