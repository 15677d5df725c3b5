"""From the tensors of a model source to the weights of a model: converted and packed in chunks.

Packing reads every weight once, with all threads, and releases the pages of the mapped file after
each chunk: memory holds the weights and one chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..arguments import checked_choice
from ..errors import CheckpointError
from ..kernels.gemm.packing import pack
from ..kernels.gemm.quantize import QUANTIZE_SCRATCH, quantize
from ..kernels.layout import (
    QUANT_BLOCK,
    STORAGE_DTYPE,
    aligned_arrays,
    bf16_to_f32,
    f32_to_bf16,
    padded,
    panels_size,
    qweight_size,
    scales_size,
    thread_scratch,
)
from ..kernels.team import Team
from .packed import Weights, map_quantized
from .table import (
    DTYPES,
    QUANTIZED_DTYPES,
    Shapes,
    is_packed,
    is_transposed,
    matrix_dtype,
    operand_shape,
)

if TYPE_CHECKING:
    from ..source import ModelSource  # which imports weights/checks.py


def load_weights(source: ModelSource, dtype: str = "auto", threads: int = 1) -> Weights:
    """The weights of a source.

    dtype  "f32", "bf16", "int8", "int4" (whose wte and head are int8), or "auto": that of a
           quantized source; of others bf16 where all matrices are stored as BF16, else f32

    The files of a quantized source are mapped: nothing is read before it is used. For another dtype
    its matrices are dequantized, which regains nothing of the original.

    Raises InputError for another dtype, CheckpointError for weights that are not finite where they
    would be quantized.
    """
    dtype = checked_choice("dtype", dtype, DTYPES)
    if dtype == "auto":
        dtype = source.auto_dtype
    if dtype == source.quantized:
        return map_quantized(source, dtype)
    shapes = source.shapes
    tensors, scales = allocate_packed(shapes, dtype)
    team = Team(threads)
    for name in shapes:
        if name in tensors:
            pack_matrix(source, name, tensors[name], scales.get(name), team)
        else:
            tensors[name] = read_unpacked(source, name, dtype)
    tensors = {name: tensors[name] for name in shapes}
    return Weights(tensors, scales, shapes, dtype, source.prefix)


def allocate_packed(
    shapes: Shapes, dtype: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """({name: panels}, {name: scales}) of the packed matrices among `shapes`, all zero.

    Panels are one allocation, which the system backs with its largest pages: with small ones, page
    faults would take half of the loading time, and GEMMs would miss the TLB.
    """
    operands = {name: operand_shape(name, s) for name, s in shapes.items() if is_packed(name, s)}
    if dtype not in QUANTIZED_DTYPES:
        sizes = {name: panels_size(K, N) for name, (K, N) in operands.items()}
        return aligned_arrays(sizes, STORAGE_DTYPE[dtype])[1], {}
    dtypes = {name: matrix_dtype(name, dtype) for name in operands}
    sizes = {name: qweight_size(K, N, dtypes[name]) for name, (K, N) in operands.items()}
    scales_sizes = {name: scales_size(K, N, dtypes[name]) for name, (K, N) in operands.items()}
    qbytes = aligned_arrays(sizes, np.dtype(np.uint8))[1]
    qweights = {name: array.view(STORAGE_DTYPE[dtypes[name]]) for name, array in qbytes.items()}
    return qweights, aligned_arrays(scales_sizes, np.dtype(np.uint16))[1]


def pack_matrix(
    source: ModelSource,
    name: str,
    panels: np.ndarray,
    scales: np.ndarray | None,
    team: Team,
    importance: np.ndarray | None = None,
) -> None:
    """Pack a matrix of the source into `panels`; quantize it where there are `scales`.

    importance  float32 [K], the weight of each row's error (kernels/gemm/quantize.py); default 1

    Raises CheckpointError for a matrix to quantize that is not finite.
    """
    stored_name = source.names[name]
    K, _ = operand_shape(name, source.shapes[name])
    transposed = is_transposed(name)
    scratch = thread_scratch(team.size, QUANTIZE_SCRATCH)
    if importance is None:
        importance = np.ones(K, np.float32)
    for row, column, chunk in source.chunks(name):
        first_k, first_n = (column, row) if transposed else (row, column)
        operand = chunk.T if transposed else chunk
        rows, columns = operand.shape
        strides = [stride // chunk.itemsize for stride in operand.strides]
        flat = chunk.ravel(order="K")  # in the order of memory: nothing is copied
        if scales is None:
            team.run(
                pack, scratch, panels, flat, first_k, first_n, rows, columns, padded(K), *strides
            )
        else:
            blocks = padded(K, QUANT_BLOCK) // QUANT_BLOCK
            team.run(
                quantize, scratch, panels, scales, flat, importance,
                first_k, first_n, rows, columns, blocks, *strides,
            )  # fmt: skip
    if scales is not None and (scales & 0x7F80 == 0x7F80).any():
        raise CheckpointError(
            f"{source.path}: tensor {stored_name} holds NaN or infinite numbers; "
            "it cannot be quantized: load it as f32"
        )


def read_unpacked(source: ModelSource, name: str, dtype: str) -> np.ndarray:
    """A copy of a tensor that is not packed: wpe in float32 or bfloat16, a vector in float32."""
    array = source.read(name)
    if dtype == "f32" or array.ndim == 1:
        return bf16_to_f32(array) if array.dtype == np.uint16 else array.copy()
    return array.copy() if array.dtype == np.uint16 else f32_to_bf16(array)
