"""From the tensors of a checkpoint to the weights of a model: converted, packed, a piece at a time.

Packing reads every weight once, with all threads, and gives the pages of the mapped file back as
it goes: there is never more than the weights and one piece in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..checkpoint import Checkpoint
from ..config import GPTConfig
from ..errors import CheckpointError, InputError, short_repr
from ..kernels.gemm.packing import pack
from ..kernels.gemm.quantize import QUANTIZE_SCRATCH, quantize
from ..kernels.layout import (
    CACHE_LINE,
    K_ALIGN,
    LANES,
    N_BLOCK,
    QUANT_BLOCK,
    STORAGE_DTYPE,
    bf16_to_f32,
    padded,
    panels_size,
    qweight_size,
    scales_size,
    thread_scratch,
)
from ..kernels.team import Team
from .checks import checked_names, checked_quantized, quantized_dtype
from .packed import Weights, f32_to_bf16
from .table import (
    DTYPES,
    HEAD,
    QUANTIZED,
    SCALES,
    all_shapes,
    in_panels,
    is_transposed,
    operand_shape,
)

_PIECE_BYTES = 32 << 20


def load_weights(
    checkpoint: Checkpoint, config: GPTConfig, dtype: str = "auto", threads: int = 1
) -> Weights:
    """The weights of a checkpoint, checked against the config.

    dtype  "f32", "bf16", "int8", "int4", or "auto": as the checkpoint was converted; bf16 where
           all matrices are stored so, else f32

    A converted checkpoint is taken as it lies in its files: nothing is read before it is used.

    Raises CheckpointError for a tensor that is missing, of another shape, changes the
    architecture, or is no finite number where it should become whole; InputError for another
    dtype, and for one that the checkpoint was not converted to.
    """
    if not (isinstance(dtype, str) and dtype in DTYPES):
        raise InputError(f"dtype {short_repr(dtype)}: must be one of {', '.join(DTYPES)}")
    converted = quantized_dtype(checkpoint)
    if converted:
        if dtype not in ("auto", converted):
            raise InputError(
                f"dtype {dtype}: {checkpoint.folder} was converted to {converted}; "
                f"take {converted} or auto, or convert the original again"
            )
        return _as_it_lies(checkpoint, config, converted)
    prefix, stored = checked_names(checkpoint, config)
    shapes = weight_shapes(checkpoint, config, stored)
    if dtype == "auto":
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        narrow = all(checkpoint.tensors[stored[name]].dtype == "BF16" for name in matrices)
        dtype = "bf16" if narrow else "f32"
    tensors, scales = allocate_weights(shapes, dtype)
    team = Team(threads)
    for name, shape in shapes.items():
        if name in tensors:
            fill(checkpoint, stored[name], name, tensors[name], scales.get(name), team)
        else:
            tensors[name] = plain(checkpoint, stored[name], shape, dtype)
    tensors = {name: tensors[name] for name in shapes}
    return Weights(tensors, scales, shapes, dtype, prefix)


def weight_shapes(
    checkpoint: Checkpoint, config: GPTConfig, stored: dict[str, str]
) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors a model holds: the table's, and a head that is not wte again."""
    own_head = HEAD in stored and not _same(checkpoint, stored[HEAD], stored["wte.weight"])
    return all_shapes(config, own_head)


def _as_it_lies(checkpoint: Checkpoint, config: GPTConfig, dtype: str) -> Weights:
    """A converted checkpoint's weights, which are its files, mapped."""
    prefix, stored, shapes = checked_quantized(checkpoint, config, dtype)
    tensors, scales = {}, {}
    for name, shape in shapes.items():
        tensors[name] = checkpoint.read(stored[name]).reshape(-1)
        if in_panels(name, shape):
            scales[name] = checkpoint.read(stored[name + SCALES]).reshape(-1)
        else:
            tensors[name] = tensors[name].reshape(shape)
    return Weights(tensors, scales, shapes, dtype, prefix)


def allocate_weights(
    shapes: dict[str, tuple[int, ...]], dtype: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Room for what lies in panels, and for the scales of what is whole; padding is zero.

    One piece of memory, so that the system can give it in its largest pages: half of the time of
    loading would be faults of small ones, and products would look up their addresses.
    """
    factors = {
        name: operand_shape(name, shape) for name, shape in shapes.items() if in_panels(name, shape)
    }
    if dtype not in QUANTIZED:
        sizes = {name: panels_size(K, N) for name, (K, N) in factors.items()}
        panels = _aligned(sizes, STORAGE_DTYPE[dtype])
        for name, (K, N) in factors.items():
            padding = 0 if K % K_ALIGN else N // N_BLOCK * N_BLOCK * K
            panels[name][padding:] = 0
        return panels, {}
    sizes = {name: qweight_size(K, N, dtype) for name, (K, N) in factors.items()}
    numbers = _aligned(sizes, STORAGE_DTYPE[dtype])
    sizes = {name: scales_size(K, N, dtype) for name, (K, N) in factors.items()}
    scales = _aligned(sizes, np.dtype(np.uint16))
    for name, (_, N) in factors.items():  # the panels that no column of the matrix is in
        filled = padded(N, LANES) / padded(N, N_BLOCK)
        for array in (numbers[name], scales[name]):
            array[round(array.size * filled) :] = 0
    return numbers, scales


def _aligned(sizes: dict[str, int], kind: np.dtype) -> dict[str, np.ndarray]:
    """Arrays of these sizes in one piece of memory, each from a cache line's beginning on."""
    line = CACHE_LINE // kind.itemsize
    starts, end = {}, 0
    for name, size in sizes.items():
        starts[name], end = end, end + padded(size, line)
    memory = np.empty(end + line, kind)
    offset = -memory.ctypes.data % CACHE_LINE // kind.itemsize
    return {name: memory[offset + starts[name] :][:size] for name, size in sizes.items()}


def fill(
    checkpoint: Checkpoint,
    stored: str,
    name: str,
    held: np.ndarray,
    scales: np.ndarray | None,
    team: Team,
    importance: np.ndarray | None = None,
) -> None:
    """A matrix, `stored` in the checkpoint, into its panels, or into whole numbers and scales.

    importance  float32, of each row of the factor (kernels/quantizing.py); by default all alike

    Raises CheckpointError for what is not finite and should become whole.
    """
    shape = checkpoint.tensors[stored].shape
    K, _ = operand_shape(name, shape)
    transposed = is_transposed(name)
    scratch = thread_scratch(team.size, QUANTIZE_SCRATCH)
    if importance is None:
        importance = np.ones(K, np.float32)
    for row, column, piece in checkpoint.pieces(stored, _PIECE_BYTES):
        piece = _as_f32_or_bf16(checkpoint, stored, piece)
        first_k, first_n = (column, row) if transposed else (row, column)
        factor = piece.T if transposed else piece
        rows, columns = factor.shape
        strides = [stride // piece.itemsize for stride in factor.strides]
        flat = piece.ravel(order="K")  # in the order of memory: nothing is copied
        if scales is None:
            team.run(
                pack, scratch, held, flat, first_k, first_n, rows, columns, padded(K), *strides
            )
        else:
            blocks = padded(K, QUANT_BLOCK) // QUANT_BLOCK
            team.run(
                quantize, scratch, held, scales, flat, importance,
                first_k, first_n, rows, columns, blocks, *strides,
            )  # fmt: skip
        checkpoint.release()
    if scales is not None and (scales & 0x7F80 == 0x7F80).any():
        raise CheckpointError(
            f"{checkpoint.folder}: tensor {stored} holds NaN or infinite numbers; "
            "it cannot be made whole: load it as f32"
        )


def plain(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A tensor that is no factor, in its own shape, copied out of the file: a vector as float32."""
    array = _as_f32_or_bf16(checkpoint, name, checkpoint.read(name))
    if dtype == "f32" or len(shape) == 1:
        return bf16_to_f32(array) if array.dtype == np.uint16 else array.copy()
    return array.copy() if array.dtype == np.uint16 else f32_to_bf16(array)


def pieces(checkpoint: Checkpoint, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of a matrix, float32 or bfloat16, some megabytes at a time."""
    array = checkpoint.read(name)
    rows, columns = array.shape
    step = padded(max(1, _PIECE_BYTES // (columns * array.itemsize)), QUANT_BLOCK)
    for first in range(0, rows, step):
        yield first, _as_f32_or_bf16(checkpoint, name, array[first : first + step])


def _as_f32_or_bf16(checkpoint: Checkpoint, name: str, array: np.ndarray) -> np.ndarray:
    """What the file stores as F16 or F64 as float32, anything else as it is."""
    is_bf16 = checkpoint.tensors[name].dtype == "BF16"
    return array if is_bf16 else array.astype(np.float32, copy=False)


def _same(checkpoint: Checkpoint, a: str, b: str) -> bool:
    """Equal bit for bit; at once where both are the same memory, as a tied head's mostly is."""
    if checkpoint.tensors[a].dtype != checkpoint.tensors[b].dtype:
        return False
    if checkpoint.read(a).ctypes.data == checkpoint.read(b).ctypes.data:
        return True
    for (_, one), (_, other) in zip(pieces(checkpoint, a), pieces(checkpoint, b), strict=True):
        if one.tobytes() != other.tobytes():
            return False
        checkpoint.release()
    return True
