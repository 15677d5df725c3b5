"""Checks of a checkpoint's headers against the config: names, shapes and dtypes of tensors."""

from __future__ import annotations

import re

from ..checkpoint import Checkpoint
from ..checkpoint.blocks import ENCODINGS
from ..config import GPTConfig
from ..errors import CheckpointError, short_repr
from ..kernels.layout import qweight_shape, scales_shape
from .table import HEAD, PREFIX, SCALES, Shapes, all_shapes, is_packed, matrix_dtype, operand_shape

# TensorInfo.dtype of a weight, beside the encodings of GGUF files
FLOATS = ("F32", "BF16", "F16", "F64")
_GGUF_DTYPES = tuple(encoding.name for encoding in ENCODINGS.values())
_QWEIGHT_DTYPE = {"int8": "I8", "int4": "U8"}

# Buffers in the checkpoints of older versions of transformers: the causal mask and its fill value.
_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def quantized_dtype(checkpoint: Checkpoint) -> str | None:
    """ "int8" or "int4" for a checkpoint of quantized weights, else None.

    One of int4 may hold matrices of int8, too: wte and the head.
    """
    tensors = checkpoint.tensors
    found = {tensor.dtype for name, tensor in tensors.items() if name + SCALES in tensors}
    return next((dtype for dtype in ("int4", "int8") if _QWEIGHT_DTYPE[dtype] in found), None)


def quantized_wte_dtype(checkpoint: Checkpoint, wte: str) -> str:
    """ "int8" or "int4": the dtype of the quantized tensor `wte`, and so of the head."""
    is_int4 = checkpoint.tensors[wte].dtype == _QWEIGHT_DTYPE["int4"]
    return "int4" if is_int4 else "int8"


def checked_names(
    checkpoint: Checkpoint, config: GPTConfig, quantized: str | None
) -> tuple[str, dict[str, str]]:
    """(prefix, {name in the table: stored name}) of a checkpoint whose tensors fit the config.

    quantized  "int8", "int4" or None, as `quantized_dtype` returns it; the names then include
               those of the scales

    Every tensor of the table is stored, in the right shape and dtype. Where config.json ties wte
    and the head, either stands for both; where both are stored, both are used, as in transformers.
    A float checkpoint has no other tensor inside a layer. Tensors outside the layers, such as the
    heads of other tasks, are ignored. Raises CheckpointError.
    """
    prefix, stored = _without_prefix(checkpoint)
    if config.tie_word_embeddings and "wte.weight" not in stored and HEAD in stored:
        stored["wte.weight"] = stored.pop(HEAD)  # safetensors' save_model keeps one of the two
    shapes = all_shapes(config, tied=HEAD not in stored and config.tie_word_embeddings)
    if quantized:
        wte = stored.get("wte.weight")
        wte_dtype = quantized_wte_dtype(checkpoint, wte) if wte else None
        layout = quantized_layout(shapes, quantized, wte_dtype)
        for name, (dtype, shape) in layout.items():
            _check_quantized(checkpoint, stored, name, dtype, shape, quantized)
        return prefix, {name: stored[name] for name in layout}
    for name, shape in shapes.items():
        _check_float(checkpoint, stored, name, shape)
    for name in stored:
        if name.startswith("h.") and name not in shapes and not _BUFFER.fullmatch(name):
            raise CheckpointError(
                f"{checkpoint.path}: tensor {name} is in no layer that config.json describes"
            )
    return prefix, {name: stored[name] for name in shapes}


def quantized_layout(
    shapes: Shapes, dtype: str, wte_dtype: str | None = None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (dtype, shape)} of the tensors in a folder of "int8" or "int4" (docs/format.md).

    wte_dtype  of wte and the head. Default: that of `matrix_dtype`
    """
    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if is_packed(name, shape):
            K, N = operand_shape(name, shape)
            quantized = matrix_dtype(name, dtype, wte_dtype)
            layout[name] = _QWEIGHT_DTYPE[quantized], qweight_shape(K, N, quantized)
            layout[name + SCALES] = "BF16", scales_shape(K, N, quantized)
        else:
            layout[name] = "BF16" if len(shape) == 2 else "F32", shape
    return layout


def _without_prefix(checkpoint: Checkpoint) -> tuple[str, dict[str, str]]:
    """(prefix, {name without it: stored name})

    The prefix is PREFIX or nothing. What a wrapper has put before it, such as "_orig_mod." or
    "base_model.model.", is left out of both.
    """
    wrapper = _wrapper(checkpoint)
    unwrapped = {name.removeprefix(wrapper): name for name in checkpoint.tensors}
    prefix = PREFIX if any(name.startswith(PREFIX) for name in unwrapped) else ""
    stored: dict[str, str] = {}
    for name in checkpoint.tensors:
        plain = name.removeprefix(wrapper).removeprefix(PREFIX)
        if plain in stored:
            both = " and ".join(map(short_repr, sorted((stored[plain], name))))
            raise CheckpointError(f"{checkpoint.path}: tensor {plain} is there twice, as {both}")
        stored[plain] = name
    return prefix, stored


def _wrapper(checkpoint: Checkpoint) -> str:
    """What the names of the model's tensors have before PREFIX, or before the names in the table.

    Found by wpe, of which a model has one. Raises CheckpointError for the tensors of two models.
    """
    ending = "wpe.weight"
    found = [n for n in checkpoint.tensors if n == ending or n.endswith("." + ending)]
    wrappers = sorted({name.removesuffix(ending).removesuffix(PREFIX) for name in found})
    if len(wrappers) > 1 and "" not in wrappers:
        names = " and ".join(map(short_repr, wrappers[:2]))
        raise CheckpointError(
            f"{checkpoint.path}: holds several models, whose tensors begin with {names}; "
            "it must hold one"
        )
    return wrappers[0] if wrappers else ""


def _check_float(
    checkpoint: Checkpoint, stored: dict[str, str], name: str, shape: tuple[int, ...]
) -> None:
    where = f"{checkpoint.path}: tensor {name}"
    if name not in stored:
        raise CheckpointError(f"{where} is missing; config.json asks for it")
    found = checkpoint.tensors[stored[name]]
    if found.shape != shape:
        raise CheckpointError(
            f"{where} has shape {list(found.shape)}; by config.json it is {list(shape)}"
        )
    if found.dtype not in (*FLOATS, *_GGUF_DTYPES):
        raise CheckpointError(f"{where} is of type {found.dtype}; weights are {', '.join(FLOATS)}")


def _check_quantized(
    checkpoint: Checkpoint,
    stored: dict[str, str],
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    quantized: str,
) -> None:
    where = f"{checkpoint.path}: tensor {name}"
    if name not in stored:
        raise CheckpointError(f"{where} is missing; a model quantized to {quantized} has it")
    found = checkpoint.tensors[stored[name]]
    if (found.dtype, found.shape) != (dtype, shape):
        raise CheckpointError(
            f"{where} is {found.dtype} {list(found.shape)}; by config.json, in a model quantized "
            f"to {quantized}, it is {dtype} {list(shape)}"
        )
