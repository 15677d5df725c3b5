"""The tensors of a GPT: the one table of their names and shapes, and how they are held.

Names are the checkpoint's, without the `transformer.` that some checkpoints put before them.
Matrices are held as float32, as bfloat16 in uint16 arrays, or as whole numbers of 8 or 4 bits with
scales; the vectors (layernorms, biases) always as float32. What is multiplied with lies in panels
(kernels/layout.py), wte and the head transposed. wpe, of which a row is looked up, is bfloat16
where the others are whole.
"""

from __future__ import annotations

import math

from ..config import GPTConfig
from ..kernels.layout import (
    AUX_DTYPE,
    BITS_PER_WEIGHT,
)

DTYPES = ("auto", "f32", "bf16", "int8", "int4")
QUANTIZED = ("int8", "int4")
PREFIX = "transformer."
HEAD = "lm_head.weight"
SCALES = ".scales"  # after the name of a tensor of whole numbers, in a converted checkpoint


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
            total += BITS_PER_WEIGHT[dtype] / 8 * size
        else:
            total += size * (AUX_DTYPE[dtype].itemsize if len(shape) == 2 else 4)
    return int(total)


def checkpoint_name(name: str, prefix: str) -> str:
    """The name in a checkpoint whose names begin with `prefix`; a head's never does."""
    return name if name == HEAD else prefix + name


def in_panels(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is multiplied with, and so lies in panels."""
    return len(shape) == 2 and name != "wpe.weight"


def is_transposed(name: str) -> bool:
    """Whether a tensor in panels is stored as [out, in]: an embedding is, Conv1D is not."""
    return name in (HEAD, "wte.weight")


def operand_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """[K, N] of a matrix as the right factor that it is."""
    return shape[::-1] if is_transposed(name) else shape
