"""From the tensors of a checkpoint to the weights of a model: converted, packed, a piece at a time.

Packing reads every weight once, with all threads, and gives the pages of the mapped file back as
it goes: there is never more than the weights and one piece in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .checkpoint import Checkpoint
from .config import GPTConfig
from .errors import InputError, shown
from .kernels.layout import GROUP, HELD, PAD, padded, panels_size
from .kernels.packing import pack
from .kernels.team import Team
from .weights import (
    DTYPES,
    HEAD,
    Weights,
    checked_names,
    in_panels,
    is_transposed,
    narrowed,
    tensor_shapes,
    widened,
)

_PIECE_BYTES = 32 << 20

# (panels, piece, first k, first n, K, N, depth, stride of k, stride of n): see kernels/packing.py
_PackPiece = Callable[..., None]


def load_weights(
    checkpoint: Checkpoint, config: GPTConfig, dtype: str = "auto", threads: int = 1
) -> Weights:
    """The weights of a checkpoint, checked against the config.

    dtype  "f32", "bf16", or "auto": bf16 where all matrices are stored so, else f32

    Raises CheckpointError for a tensor that is missing, of another shape, or changes the
    architecture; InputError for another dtype.
    """
    if not (isinstance(dtype, str) and dtype in DTYPES):
        raise InputError(f"dtype {shown(dtype)}: must be one of {', '.join(DTYPES)}")
    prefix, stored = checked_names(checkpoint, config)
    shapes = tensor_shapes(config)
    if HEAD in stored and not _same(checkpoint, stored[HEAD], stored["wte.weight"]):
        shapes[HEAD] = shapes["wte.weight"]
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    if dtype == "auto":
        narrow = all(checkpoint.tensors[stored[name]].dtype == "BF16" for name in matrices)
        dtype = "bf16" if narrow else "f32"

    team, scratch = Team(threads), np.zeros((threads, 1), np.float32)

    def pack_piece(*arguments: object) -> None:
        team.run(pack, scratch, *arguments)

    sizes = {
        name: shape[::-1] if is_transposed(name) else shape
        for name, shape in shapes.items()
        if in_panels(name, shape)
    }
    panels = _room(sizes, dtype)
    tensors = {}
    for name, shape in shapes.items():
        if name in panels:
            tensors[name] = panels[name]
            _pack(checkpoint, stored[name], panels[name], is_transposed(name), pack_piece)
        else:
            tensors[name] = _plain(checkpoint, stored[name], dtype if len(shape) == 2 else "f32")
    return Weights(tensors, shapes, dtype, prefix)


def _room(sizes: dict[str, tuple[int, ...]], dtype: str) -> dict[str, np.ndarray]:
    """Room for the panels of matrices [K, N], aligned to cache lines; what is padding is zero.

    One piece of memory, so that the system can give it in its largest pages: half of the time of
    loading would be faults of small ones, and products would look up their addresses.
    """
    kind = HELD[dtype]
    line = 64 // kind.itemsize
    starts, end = {}, 0
    for name, (K, N) in sizes.items():
        starts[name], end = end, end + padded(panels_size(K, N), line)
    memory = np.empty(end + line, kind)
    offset = -memory.ctypes.data % 64 // kind.itemsize
    room = {}
    for name, (K, N) in sizes.items():
        room[name] = memory[offset + starts[name] :][: panels_size(K, N)]
        padding = 0 if K % PAD else N // GROUP * GROUP * K
        room[name][padding:] = 0
    return room


def _pack(
    checkpoint: Checkpoint, name: str, panels: np.ndarray, transposed: bool, pack_piece: _PackPiece
) -> None:
    """A matrix into its panels; one that is stored `transposed` into those of its transpose."""
    rows, columns = checkpoint.tensors[name].shape
    for first, piece in _pieces(checkpoint, name):
        flat = piece.reshape(-1)
        if transposed:
            pack_piece(panels, flat, 0, first, columns, len(piece), padded(columns), 1, columns)
        else:
            pack_piece(panels, flat, first, 0, len(piece), columns, padded(rows), columns, 1)
        checkpoint.release()


def _plain(checkpoint: Checkpoint, name: str, dtype: str) -> np.ndarray:
    """A tensor in its own shape, copied out of the file."""
    array = _as_f32_or_bf16(checkpoint, name, checkpoint.read(name))
    if dtype == "f32":
        return widened(array) if array.dtype == np.uint16 else array.copy()
    return array.copy() if array.dtype == np.uint16 else narrowed(array)


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of a matrix, float32 or bfloat16, some megabytes at a time."""
    array = checkpoint.read(name)
    rows, columns = array.shape
    step = padded(max(1, _PIECE_BYTES // (columns * array.itemsize)))
    for first in range(0, rows, step):
        yield first, _as_f32_or_bf16(checkpoint, name, array[first : first + step])


def _as_f32_or_bf16(checkpoint: Checkpoint, name: str, array: np.ndarray) -> np.ndarray:
    """What the file stores as F16 or F64 as float32, anything else as it is."""
    is_bf16 = checkpoint.tensors[name].dtype == "BF16"
    return array if is_bf16 else array.astype(np.float32, copy=False)


def _same(checkpoint: Checkpoint, a: str, b: str) -> bool:
    """Equal bit for bit; at once where both are the same memory, as a tied head's mostly is."""
    if checkpoint.read(a).ctypes.data == checkpoint.read(b).ctypes.data:
        return True
    if checkpoint.tensors[a].dtype != checkpoint.tensors[b].dtype:
        return False
    for (_, one), (_, other) in zip(_pieces(checkpoint, a), _pieces(checkpoint, b), strict=True):
        if one.tobytes() != other.tobytes():
            return False
        checkpoint.release()
    return True
