"""Checks of a checkpoint's tensors, names, shapes and types, against the config."""

from __future__ import annotations

import re

from ..checkpoint import Checkpoint
from ..config import GPTConfig
from ..errors import CheckpointError
from ..kernels.layout import (
    qweight_shape,
    scales_shape,
)
from .table import HEAD, PREFIX, SCALES, all_shapes, in_panels, operand_shape

# What TensorInfo.dtype of a weight may be; the last three are blocks of a GGUF file.
FLOATS = ("F32", "BF16", "F16", "F64", "Q8_0", "Q4_0", "Q6_K")


# Buffers that old checkpoints carry: the causal mask, and the number it puts in place of scores.
_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def checked_names(checkpoint: Checkpoint, config: GPTConfig) -> tuple[str, dict[str, str]]:
    """(prefix, {name in the table: name in the checkpoint}), of tensors that fit the config.

    All tensors of the table are there, in their shape and a type of floats, and nothing else is
    inside a layer. Tensors outside the layers that the table does not have belong to other tasks'
    heads. Reads headers only; raises CheckpointError.
    """
    prefix, stored = _by_plain_name(checkpoint)
    shapes = all_shapes(config, HEAD in stored or not config.tie_word_embeddings)
    for name, shape in shapes.items():
        _check_tensor(checkpoint, stored, name, shape)
    for name in stored:
        if name.startswith("h.") and name not in shapes and not _BUFFER.fullmatch(name):
            raise CheckpointError(
                f"{checkpoint.folder}: tensor {name} is in no layer that config.json describes"
            )
    return prefix, stored


def _by_plain_name(checkpoint: Checkpoint) -> tuple[str, dict[str, str]]:
    """(prefix, {name without it: name in the checkpoint})"""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in checkpoint.tensors) else ""
    stored: dict[str, str] = {}
    for name in checkpoint.tensors:
        plain = name.removeprefix(PREFIX)
        if plain in stored:
            raise CheckpointError(
                f"{checkpoint.folder}: {plain} is there both with and without {PREFIX!r}"
            )
        stored[plain] = name
    return prefix, stored


def _check_tensor(
    checkpoint: Checkpoint, stored: dict[str, str], name: str, shape: tuple[int, ...]
) -> None:
    if name not in stored:
        raise CheckpointError(
            f"{checkpoint.folder}: tensor {name} is missing; config.json asks for it"
        )
    found = checkpoint.tensors[stored[name]]
    if tuple(found.shape) != shape:
        raise CheckpointError(
            f"{checkpoint.folder}: tensor {name} has shape {list(found.shape)}; "
            f"by config.json it is {list(shape)}"
        )
    if found.dtype not in FLOATS:
        raise CheckpointError(
            f"{checkpoint.folder}: tensor {name} is of type {found.dtype}; "
            f"weights are {', '.join(FLOATS)}"
        )


# ---- converted checkpoints (docs/format.md) ----
_STORED_AS = {"int8": "I8", "int4": "U8"}


def quantized_dtype(checkpoint: Checkpoint) -> str | None:
    """ "int8" or "int4" for a checkpoint that was converted to it, else None."""
    tensors = checkpoint.tensors
    found = {tensor.dtype for name, tensor in tensors.items() if name + SCALES in tensors}
    return next((dtype for dtype, stored in _STORED_AS.items() if stored in found), None)


def stored_shapes(
    shapes: dict[str, tuple[int, ...]], dtype: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (type, shape)} of the tensors of a checkpoint converted to int8 or int4."""
    stored = {}
    for name, shape in shapes.items():
        if in_panels(name, shape):
            K, N = operand_shape(name, shape)
            stored[name] = _STORED_AS[dtype], qweight_shape(K, N, dtype)
            stored[name + SCALES] = "BF16", scales_shape(K, N, dtype)
        else:
            stored[name] = "BF16" if len(shape) == 2 else "F32", shape
    return stored


def checked_quantized(
    checkpoint: Checkpoint, config: GPTConfig, dtype: str
) -> tuple[str, dict[str, str], dict[str, tuple[int, ...]]]:
    """(prefix, {name: name in the checkpoint}, {name: shape in the table}) of a converted one.

    Reads headers only; raises CheckpointError where a tensor is missing, or is not as it should be.
    """
    prefix, stored = _by_plain_name(checkpoint)
    shapes = all_shapes(config, HEAD in stored or not config.tie_word_embeddings)
    for name, (kind, shape) in stored_shapes(shapes, dtype).items():
        if name not in stored:
            raise CheckpointError(
                f"{checkpoint.folder}: tensor {name} is missing; "
                f"a model converted to {dtype} has it"
            )
        found = checkpoint.tensors[stored[name]]
        if (found.dtype, tuple(found.shape)) != (kind, shape):
            raise CheckpointError(
                f"{checkpoint.folder}: tensor {name} is {found.dtype} {list(found.shape)}; by "
                f"config.json, in a model converted to {dtype}, it is {kind} {list(shape)}"
            )
    return prefix, stored, shapes
