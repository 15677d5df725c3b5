"""Weights as kernels read them: matrices in panels, vectors in float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.layout import (
    bf16_to_f32,
    dequantize_panels,
    unpack_panels,
)
from .table import HEAD, in_panels, is_transposed, operand_shape


@dataclass(frozen=True)
class Weights:
    """
    tensors  {name: array}: flat panels of what is `in_panels`, else an array of the table's shape;
             `lm_head.weight` only where it is not tied
    scales   {name: array}: of what is in panels of whole numbers
    shapes   {name: shape} of the tensors, as in the table
    dtype    "f32", "bf16", "int8" or "int4": how the matrices are held
    prefix   what the checkpoint puts before the names: "transformer." or nothing
    """

    tensors: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    dtype: str
    prefix: str

    @property
    def tied(self) -> bool:
        """The head is wte."""
        return HEAD not in self.tensors

    @property
    def head(self) -> np.ndarray:
        """The panels of what the last hidden state is multiplied with, [C, V]."""
        return self.tensors.get(HEAD, self.tensors["wte.weight"])

    @property
    def nbytes(self) -> int:
        """The bytes the weights take."""
        return sum(a.nbytes for a in (*self.tensors.values(), *self.scales.values()))

    def tensor(self, name: str) -> np.ndarray:
        """A tensor in the table's shape: a copy where it lies in panels, float32 where whole."""
        held, shape = self.tensors[name], self.shapes[name]
        if not in_panels(name, shape):
            return held
        K, N = operand_shape(name, shape)
        if name in self.scales:
            matrix = dequantize_panels(held, self.scales[name], K, N)
        else:
            matrix = unpack_panels(held, K, N)
        return np.ascontiguousarray(matrix.T if is_transposed(name) else matrix)

    def float32_copies(self) -> dict[str, np.ndarray]:
        """{name: tensor} of all, float32 in the table's shapes: what a Learner may change."""
        copies = {}
        for name in self.shapes:
            tensor = self.tensor(name)
            copies[name] = bf16_to_f32(tensor) if tensor.dtype == np.uint16 else tensor.copy()
        return copies


def f32_to_bf16(array: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 (uint16), to the nearest, halves to the even one; NaN stays NaN."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)
