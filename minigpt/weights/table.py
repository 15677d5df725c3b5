"""The tensors of a GPT: the one table of their names and shapes, and how memory stores them.

Names are those of Hugging Face's checkpoints, without the prefix `transformer.` that some have.
Memory stores every matrix but wpe in panels (kernels/layout.py) of float32, of bfloat16 as its bits
in uint16, or of int8 or int4 with scales. Vectors (layernorms, biases) are always float32. wpe is
only looked up by rows: it is float32 beside float32 panels, bfloat16 beside others. Beside layers
of int4, wte and the head are int8: in 4 bits they would lose more than all layers together.
"""

from __future__ import annotations

import math

from ..config import GPTConfig
from ..kernels.layout import AUX_DTYPE, BITS_PER_WEIGHT

DTYPES = ("auto", "f32", "bf16", "int8", "int4")
QUANTIZED_DTYPES = ("int8", "int4")
PREFIX = "transformer."
HEAD = "lm_head.weight"
SCALES = ".scales"  # suffix, in a quantized checkpoint, of the name of a matrix's scales

Shapes = dict[str, tuple[int, ...]]


def layer_shapes(config: GPTConfig) -> Shapes:
    """{name within a layer: shape}, in the order of the computation.

    Matrices are [K, N], as Conv1D stores them: y [M, N] = x [M, K] · w + bias. C = n_embd,
    H = n_inner; the comments name the variables of model/block.py.
    """
    C, H = config.n_embd, config.n_inner
    return {
        "ln_1.weight": (C,),  # normed = ln_1(x), the input of c_attn
        "ln_1.bias": (C,),
        "attn.c_attn.weight": (C, 3 * C),  # qkv = c_attn(normed): queries, keys, values
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),  # x += c_proj(attention(qkv))
        "attn.c_proj.bias": (C,),
        "ln_2.weight": (C,),  # normed = ln_2(x), the input of c_fc
        "ln_2.bias": (C,),
        "mlp.c_fc.weight": (C, H),  # hidden = activation(c_fc(normed))
        "mlp.c_fc.bias": (H,),
        "mlp.c_proj.weight": (H, C),  # x += c_proj(hidden)
        "mlp.c_proj.bias": (C,),
    }


def tensor_shapes(config: GPTConfig) -> Shapes:
    """{name: shape} of every tensor but lm_head.weight.

    wte and lm_head are [V, C], a row for each token, and the head multiplies by their transpose;
    wpe has a row for each position. C = n_embd, V = vocab_size.
    """
    C = config.n_embd
    layers = layer_shapes(config)
    return {
        "wte.weight": (config.vocab_size, C),  # x = wte[id] + …; the head, too, if it is tied
        "wpe.weight": (config.n_positions, C),  # … + wpe[position]
        **{f"h.{n}.{name}": s for n in range(config.n_layer) for name, s in layers.items()},
        "ln_f.weight": (C,),  # logits = ln_f(x) · lm_headᵀ
        "ln_f.bias": (C,),
    }


def all_shapes(config: GPTConfig, tied: bool) -> Shapes:
    """{name: shape} of every tensor; lm_head.weight [V, C] is one of them unless `tied`."""
    shapes = tensor_shapes(config)
    return shapes if tied else {**shapes, HEAD: shapes["wte.weight"]}


def parameter_count(config: GPTConfig, tied: bool = True) -> int:
    """The number of parameters; a tied head counts once."""
    return sum(math.prod(shape) for shape in all_shapes(config, tied).values())


def weights_bytes(
    config: GPTConfig, dtype: str, tied: bool = True, wte_dtype: str | None = None
) -> int:
    """The bytes of the weights in memory at that dtype, without padding.

    wte_dtype  of wte and the head. Default: that of `matrix_dtype`
    """
    total = 0.0
    for name, shape in all_shapes(config, tied).items():
        size = math.prod(shape)
        if is_packed(name, shape):
            total += BITS_PER_WEIGHT[matrix_dtype(name, dtype, wte_dtype)] / 8 * size
        else:
            total += size * (AUX_DTYPE[dtype].itemsize if len(shape) == 2 else 4)
    return int(total)


def checkpoint_name(name: str, prefix: str) -> str:
    """The stored name in a checkpoint with that prefix; the head's never has it."""
    return name if name == HEAD else prefix + name


def is_packed(name: str, shape: tuple[int, ...]) -> bool:
    """Whether memory stores a tensor in panels: every matrix but wpe."""
    return len(shape) == 2 and name != "wpe.weight"


def matrix_dtype(name: str, dtype: str, wte_dtype: str | None = None) -> str:
    """The dtype of a packed matrix in a model of `dtype`: int8 for wte and the head of int4.

    wte_dtype  of wte and the head, in a folder of an earlier version where both are int4, too
    """
    if not is_transposed(name):
        return dtype
    return wte_dtype or {"int4": "int8"}.get(dtype, dtype)


def is_transposed(name: str) -> bool:
    """Whether a checkpoint stores a packed matrix as [N, K]: wte and the head, not Conv1D's."""
    return name in (HEAD, "wte.weight")


def operand_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """[K, N] of a packed matrix: x [M, K] times it is [M, N]."""
    return shape[::-1] if is_transposed(name) else shape
