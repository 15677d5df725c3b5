"""A model as a GGUF file, which llama.cpp and what is built on it run.

Values and names are those of gguf_gpt2.py, which reads them back. Matrices are written in the
type asked for, vectors and wpe as f32, as llama.cpp's own converter does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..checkpoint import Checkpoint, open_checkpoint, resolve
from ..checkpoint.blocks import F16, F32, Q8_0, Encoding, all_finite, encoded
from ..checkpoint.gguf_gpt2 import (
    ACTIVATION,
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    UNUSED,
    USER_DEFINED,
    is_flipped,
    their_name,
)
from ..checkpoint.gguf_writing import NewTensor, WrittenValue, write_gguf
from ..config import GPTConfig
from ..errors import CheckpointError, ConfigError, InputError, TokenizerError, short_repr
from ..kernels.layout import bf16_to_f32
from ..tokenizer.vocabulary import Vocabulary, read_vocabulary
from ..weights.checks import checked_names, quantized_dtype
from ..weights.loading import weight_shapes
from .convert import Progress

GGUF_DTYPES = {"f32": F32, "f16": F16, "q8_0": Q8_0}
_FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7}  # llama.cpp's LLAMA_FTYPE
_PIECE_BYTES = 16 << 20  # of float32

# The first is what llama.cpp computes, the next two are the same by another name or to 1e-7, and
# the last, Cerebras' own, differs by less than 0.0005.
_WRITTEN_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu")


def save_gguf(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    dtype: str = "f16",
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Writes a model source as a GGUF file, whole or not at all, in place of any at `path`.

    dtype     "f32", "f16" or "q8_0": how the matrices are stored
    progress  is told how far it is, after every few megabytes

    Memory holds about one tensor. Raises InputError for another dtype, and for a source that was
    converted to int8 or int4; SourceError (and its children) for a source that is damaged, has no
    tokenizer, or is a model that llama.cpp would run wrongly, and where the file cannot be written.
    """
    if not (isinstance(dtype, str) and dtype in GGUF_DTYPES):
        raise InputError(f"dtype {short_repr(dtype)}: must be one of {', '.join(GGUF_DTYPES)}")
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise InputError(f"path {short_repr(path)}: must be the path of a file")
    found = resolve(source)
    config = GPTConfig.from_source(found)
    _check_expressible(config, found)
    vocabulary = read_vocabulary(found)
    checkpoint = open_checkpoint(found)
    made = quantized_dtype(checkpoint)
    if made:
        raise InputError(f"{found}: was converted to {made}; take the original")
    _, names = checked_names(checkpoint, config)
    shapes = weight_shapes(checkpoint, config, names)
    wanted = GGUF_DTYPES[dtype]
    stored = {_new_tensor(name, shape, wanted): names[name] for name, shape in shapes.items()}
    values: dict[str, WrittenValue] = {
        "general.architecture": "gpt2",
        "general.name": Path(source).resolve().name.removesuffix(".gguf"),
        "general.file_type": _FILE_TYPE[dtype],
        "general.quantization_version": 2,
        **_config_values(config),
        **_tokenizer_values(vocabulary, config, found),
    }
    write_gguf(Path(path), values, list(stored), _blocks_of(checkpoint, stored, progress))


def _check_expressible(config: GPTConfig, source: Path) -> None:
    """A file has no way to say these, and llama.cpp would compute something else in silence."""
    flaw = None
    if config.model_type != "gpt2":
        flaw = f"model_type {config.model_type}"
    elif config.activation_function not in _WRITTEN_ACTIVATIONS:
        flaw = f"activation_function {config.activation_function}"
    elif not config.scale_attn_weights:
        flaw = "scale_attn_weights false"
    elif config.scale_attn_by_inverse_layer_idx:
        flaw = "scale_attn_by_inverse_layer_idx true"
    if flaw:
        raise ConfigError(f"{source}: {flaw} has no form in a GGUF file of GPT-2")


# ---- tensors ----


def _new_tensor(name: str, shape: tuple[int, ...], wanted: Encoding) -> NewTensor:
    """The line in the file's table for the tensor that the table in weights.py has as `name`."""
    stored = shape[::-1] if is_flipped(name) else shape
    encoding = wanted if len(shape) == 2 and name != "wpe.weight" else F32
    if stored[-1] % encoding.length:
        encoding = F16  # as llama.cpp's own converter does with rows that blocks do not fill
    return NewTensor(their_name(name), stored, encoding)


def _blocks_of(
    checkpoint: Checkpoint,
    stored: dict[NewTensor, str],
    progress: Callable[[Progress], None] | None,
) -> Callable[[NewTensor], Iterator[np.ndarray]]:
    """What write_gguf asks for the contents of a tensor, which read them as they are needed."""
    order = list(stored)
    nbytes = sum(tensor.nbytes for tensor in order)

    def blocks(tensor: NewTensor) -> Iterator[np.ndarray]:
        number = order.index(tensor)
        written = sum(other.nbytes for other in order[:number])
        for lines in _lines(checkpoint, stored[tensor], tensor.shape[-1]):
            part = encoded(lines, tensor.encoding)
            if tensor.encoding is not F32 and not all_finite(part):
                flaw = f"tensor {stored[tensor]} holds numbers too large, or none, for 16 bits"
                raise CheckpointError(f"{checkpoint.folder}: {flaw}; choose f32")
            yield part
            written += part.nbytes
            if progress is not None:
                progress(Progress(number + 1, len(order), written, nbytes))

    return blocks


def _lines(checkpoint: Checkpoint, name: str, length: int) -> Iterator[np.ndarray]:
    """A tensor of the checkpoint in lines as the file has them: float32 [n, length] pieces."""
    array = checkpoint.read(name)
    lines = (array.T if is_flipped(name) else array).reshape(-1, length)
    step = max(1, _PIECE_BYTES // (4 * length))
    is_bf16 = checkpoint.tensors[name].dtype == "BF16"
    for first in range(0, len(lines), step):
        part = np.ascontiguousarray(lines[first : first + step])
        with np.errstate(over="ignore"):  # of float64; infinity is noticed where it matters
            numbers = bf16_to_f32(part) if is_bf16 else part.astype(np.float32, copy=False)
        yield numbers
        checkpoint.release()


# ---- values ----


def _config_values(config: GPTConfig) -> dict[str, WrittenValue]:
    return {
        "gpt2.context_length": config.n_positions,
        "gpt2.embedding_length": config.n_embd,
        "gpt2.block_count": config.n_layer,
        "gpt2.feed_forward_length": config.n_inner,
        "gpt2.attention.head_count": config.n_head,
        "gpt2.attention.layer_norm_epsilon": config.layer_norm_epsilon,
        "gpt2.vocab_size": config.vocab_size,
        ACTIVATION: config.activation_function,
    }


def _tokenizer_values(
    vocabulary: Vocabulary, config: GPTConfig, source: Path
) -> dict[str, WrittenValue]:
    """The tokenizer, its tokens padded to the rows of the embedding, as llama.cpp wants it."""
    tokens, V = vocabulary.tokens, config.vocab_size
    if len(tokens) > V:
        flaw = f"its tokenizer has {len(tokens)} tokens, and the model {V}"
        raise TokenizerError(f"{source}: {flaw}; a GGUF file can have no more than the model")
    if not vocabulary.merges.joined:
        raise TokenizerError(f"{source}: its tokenizer has no merges, which a GGUF file must have")
    types = [NORMAL] * len(tokens)
    for token in vocabulary.added.values():
        types[token.id] = CONTROL if token.special else USER_DEFINED
    padding = range(len(tokens), V)
    values: dict[str, WrittenValue] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE_TOKENIZERS[0],
        "tokenizer.ggml.tokens": tokens + [f"[K_ALIGN{token_id}]" for token_id in padding],
        "tokenizer.ggml.token_type": types + [UNUSED for _ in padding],
        "tokenizer.ggml.merges": _merges(vocabulary),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": vocabulary.add_prefix_space,
    }
    end = config.eos_token_id if config.eos_token_id is not None else vocabulary.eos_id
    if end is not None:
        values["tokenizer.ggml.bos_token_id"] = end
        values["tokenizer.ggml.eos_token_id"] = end
    return values


def _merges(vocabulary: Vocabulary) -> list[str]:
    """The merges in order, each the two tokens with a space between."""
    tokens, ranks = vocabulary.tokens, vocabulary.merges.ranks
    pairs = sorted(ranks, key=ranks.__getitem__)
    return [f"{tokens[pair >> 32]} {tokens[pair & 0xFFFFFFFF]}" for pair in pairs]
