"""From the panels of a matrix back to the matrix."""

from __future__ import annotations

import numpy as np

from ..kernels.layout import dequantize_panels, unpack_panels
from .table import is_transposed, operand_shape


def unpacked_matrix(
    name: str, shape: tuple[int, ...], panels: np.ndarray, scales: np.ndarray | None
) -> np.ndarray:
    """A packed matrix in the table's `shape`, a copy; integer panels with their scales as float32.

    panels, scales  flat; scales None for panels of floats
    """
    K, N = operand_shape(name, shape)
    if scales is None:
        matrix = unpack_panels(panels, K, N)
    else:
        matrix = dequantize_panels(panels, scales, K, N)
    return np.ascontiguousarray(matrix.T if is_transposed(name) else matrix)
