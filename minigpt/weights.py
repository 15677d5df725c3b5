"""The tensors of a GPT: the one table of their names and shapes, and how they are held.

Names are the checkpoint's, without the `transformer.` that some checkpoints put before them.
Matrices are held as float32, as bfloat16 in uint16 arrays, or as whole numbers of 8 or 4 bits with
scales; the vectors (layernorms, biases) always as float32. What is multiplied with lies in panels
(kernels/layout.py), wte and the head transposed. wpe, of which a row is looked up, is bfloat16
where the others are whole.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from .checkpoint import Checkpoint
from .config import GPTConfig
from .errors import CheckpointError
from .kernels.layout import (
    BESIDE,
    BITS,
    dequantized,
    numbers_shape,
    scales_shape,
    unpacked,
    widened,
)

DTYPES = ("auto", "f32", "bf16", "int8", "int4")
WHOLE = ("int8", "int4")
# What TensorInfo.dtype of a weight may be; the last three are blocks of a GGUF file.
FLOATS = ("F32", "BF16", "F16", "F64", "Q8_0", "Q4_0", "Q6_K")
PREFIX = "transformer."
HEAD = "lm_head.weight"
SCALES = ".scales"  # after the name of a tensor of whole numbers, in a converted checkpoint
# Buffers that old checkpoints carry: the causal mask, and the number it puts in place of scores.
_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def layer_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """{name within a layer: shape}, in the order of the computation. Matrices are [in, out]."""
    C, H = config.n_embd, config.n_inner
    return {
        "ln_1.weight": (C,),
        "ln_1.bias": (C,),
        "attn.c_attn.weight": (C, 3 * C),
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias": (C,),
        "ln_2.weight": (C,),
        "ln_2.bias": (C,),
        "mlp.c_fc.weight": (C, H),
        "mlp.c_fc.bias": (H,),
        "mlp.c_proj.weight": (H, C),
        "mlp.c_proj.bias": (C,),
    }


def tensor_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor but the head."""
    C = config.n_embd
    layers = layer_shapes(config)
    return {
        "wte.weight": (config.vocab_size, C),
        "wpe.weight": (config.n_positions, C),
        **{f"h.{n}.{name}": s for n in range(config.n_layer) for name, s in layers.items()},
        "ln_f.weight": (C,),
        "ln_f.bias": (C,),
    }


def all_shapes(config: GPTConfig, own_head: bool) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor; of the head where it is not wte."""
    shapes = tensor_shapes(config)
    return {**shapes, HEAD: shapes["wte.weight"]} if own_head else shapes


def parameter_count(config: GPTConfig, tied: bool = True) -> int:
    """The number of weights; a tied head counts once."""
    return sum(math.prod(shape) for shape in all_shapes(config, not tied).values())


def weights_bytes(config: GPTConfig, dtype: str, tied: bool = True) -> int:
    """The memory that the weights take, without padding."""
    total = 0.0
    for name, shape in all_shapes(config, not tied).items():
        size = math.prod(shape)
        if in_panels(name, shape):
            total += BITS[dtype] / 8 * size
        else:
            total += size * (BESIDE[dtype].itemsize if len(shape) == 2 else 4)
    return int(total)


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
        K, N = factor_shape(name, shape)
        if name in self.scales:
            matrix = dequantized(held, self.scales[name], K, N)
        else:
            matrix = unpacked(held, K, N)
        return np.ascontiguousarray(matrix.T if is_transposed(name) else matrix)

    def float32_copies(self) -> dict[str, np.ndarray]:
        """{name: tensor} of all, float32 in the table's shapes: what a Learner may change."""
        copies = {}
        for name in self.shapes:
            tensor = self.tensor(name)
            copies[name] = widened(tensor) if tensor.dtype == np.uint16 else tensor.copy()
        return copies


def checkpoint_name(name: str, prefix: str) -> str:
    """The name in a checkpoint whose names begin with `prefix`; a head's never does."""
    return name if name == HEAD else prefix + name


def in_panels(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is multiplied with, and so lies in panels."""
    return len(shape) == 2 and name != "wpe.weight"


def is_transposed(name: str) -> bool:
    """Whether a tensor in panels is stored as [out, in]: an embedding is, Conv1D is not."""
    return name in (HEAD, "wte.weight")


def factor_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """[K, N] of a matrix as the right factor that it is."""
    return shape[::-1] if is_transposed(name) else shape


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


def converted_to(checkpoint: Checkpoint) -> str | None:
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
            K, N = factor_shape(name, shape)
            stored[name] = _STORED_AS[dtype], numbers_shape(K, N, dtype)
            stored[name + SCALES] = "BF16", scales_shape(K, N, dtype)
        else:
            stored[name] = "BF16" if len(shape) == 2 else "F32", shape
    return stored


def checked_converted(
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


def narrowed(array: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 (uint16), to the nearest, halves to the even one; NaN stays NaN."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)
