"""A model source → a GGUF file, for llama.cpp and the programs built on it.

Keys and names are those of gguf_gpt2.py, which reads them. Matrices are written in the chosen
dtype, vectors and wpe as F32, as llama.cpp's own converter does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..arguments import check_callable, check_tokenizer, checked_choice, checked_file_name
from ..checkpoint.blocks import F16, F32, Q8_0, Encoding, all_finite, encode
from ..checkpoint.gguf_gpt2 import (
    ACTIVATION,
    CHAT_TEMPLATE,
    CONTROL,
    EOS_IDS,
    EOS_KEYS,
    NORMAL,
    PRE_TOKENIZERS,
    UNUSED,
    USER_DEFINED,
    gguf_name,
    is_transposed_in_gguf,
)
from ..checkpoint.gguf_writing import NewTensor, WrittenValue, write_gguf
from ..config import GPTConfig
from ..errors import CheckpointError, ConfigError, TokenizerError, short_repr, warn
from ..kernels.layout import bf16_to_f32
from ..source import ModelSource, open_source
from ..tokenizer.files import read_vocabulary
from ..tokenizer.tokenizer import GPTTokenizer
from ..tokenizer.vocabulary import Vocabulary
from ..weights.table import is_packed
from .convert import Progress

GGUF_DTYPES = {"f32": F32, "f16": F16, "q8_0": Q8_0}
_FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7}  # llama.cpp's LLAMA_FTYPE
_CHUNK_BYTES = 16 << 20  # of float32

# llama.cpp computes GELU by tanh for every GPT-2. The exact GELU, which Cerebras-GPT was trained
# with, differs by less than 0.0005.
_EXPORTED_ACTIVATIONS = ("gelu_tanh", "gelu")


def save_gguf(
    source: str | os.PathLike[str] | ModelSource,
    path: str | os.PathLike[str],
    dtype: str = "f16",
    progress: Callable[[Progress], None] | None = None,
    *,
    tokenizer: GPTTokenizer | None = None,
) -> None:
    """Write the model of a source, with its tokenizer, as a GGUF file.

    source     a folder, a GGUF file, or a hub id; int8 and int4 are dequantized
    path       of the file, which is replaced if it exists; it appears complete or not at all
    dtype      of the matrices: "f32", "f16" or "q8_0"
    progress   called after every few megabytes that are written
    tokenizer  written in place of the source's own. Default: that of the source

    Memory holds about one tensor. Raises InputError for another dtype, SourceError (and its
    subclasses) for a source that is damaged, has no tokenizer, or is a model that llama.cpp would
    run wrongly, and where the file cannot be written.
    """
    dtype = checked_choice("dtype", dtype, tuple(GGUF_DTYPES))
    path = checked_file_name("path", path)
    check_callable("progress", progress)
    if tokenizer is not None:
        check_tokenizer("tokenizer", tokenizer)
    opened = open_source(source)
    _check_exportable(opened.config, opened.path)
    vocabulary = tokenizer.vocabulary if tokenizer else read_vocabulary(opened.files)
    _warn_of_lost_flags(vocabulary, opened.path)
    tensors = {
        _new_tensor(name, shape, GGUF_DTYPES[dtype]): name for name, shape in opened.shapes.items()
    }
    name = opened.path if isinstance(source, ModelSource) else Path(source)
    values: dict[str, WrittenValue] = {
        "general.architecture": "gpt2",
        "general.name": name.resolve().name.removesuffix(".gguf"),
        "general.file_type": _FILE_TYPE[dtype],
        "general.quantization_version": 2,
        **_config_values(opened.config),
        **_tokenizer_values(vocabulary, opened.config, opened.path),
    }
    write_gguf(Path(path), values, list(tensors), _block_reader(opened, tensors, progress))


def _check_exportable(config: GPTConfig, source: Path) -> None:
    """Raise ConfigError for a config that GGUF has no key for and llama.cpp would ignore."""
    wrong = None
    if config.model_type != "gpt2":
        wrong = f"model_type {config.model_type}"
    elif config.activation not in _EXPORTED_ACTIVATIONS:
        wrong = f"activation_function {config.activation_function}"
    elif not config.scale_attn_weights:
        wrong = "scale_attn_weights false"
    elif config.scale_attn_by_inverse_layer_idx:
        wrong = "scale_attn_by_inverse_layer_idx true"
    if wrong:
        raise ConfigError(f"{source}: {wrong} has no form in a GGUF file of GPT-2")


# ---- tensors ----


def _new_tensor(name: str, shape: tuple[int, ...], encoding: Encoding) -> NewTensor:
    """The entry in the file's table of tensors for `name` of weights/table.py."""
    stored = shape[::-1] if is_transposed_in_gguf(name) else shape
    if not is_packed(name, shape):
        encoding = F32
    if stored[-1] % encoding.length:
        encoding = F16  # as llama.cpp's converter does for rows that are not a multiple of a block
    return NewTensor(gguf_name(name), stored, encoding)


def _block_reader(
    source: ModelSource,
    tensors: dict[NewTensor, str],
    progress: Callable[[Progress], None] | None,
) -> Callable[[NewTensor], Iterator[np.ndarray]]:
    """The function that write_gguf calls for the blocks of each tensor, in chunks.

    tensors  {new tensor: its name in weights/table.py}, in the order of the file
    """
    order = list(tensors)
    total = sum(tensor.nbytes for tensor in order)

    def blocks(tensor: NewTensor) -> Iterator[np.ndarray]:
        number = order.index(tensor)
        written = sum(other.nbytes for other in order[:number])
        for lines in _lines(source, tensors[tensor], tensor.shape[-1]):
            chunk = encode(lines, tensor.encoding)
            if tensor.encoding is not F32 and not all_finite(chunk):
                name = source.names[tensors[tensor]]
                raise CheckpointError(
                    f"{source.path}: tensor {name} holds numbers that 16 bits cannot store; "
                    "choose f32"
                )
            yield chunk
            written += chunk.nbytes
            if progress is not None:
                progress(Progress(number + 1, len(order), written, total))

    return blocks


def _lines(source: ModelSource, name: str, length: int) -> Iterator[np.ndarray]:
    """A tensor in lines as the GGUF file stores them: float32 [n, length], in chunks."""
    with np.errstate(all="ignore"):  # of float64: `all_finite` catches what matters
        array = source.read(name)
    lines = (array.T if is_transposed_in_gguf(name) else array).reshape(-1, length)
    step = max(1, _CHUNK_BYTES // (4 * length))
    for first in range(0, len(lines), step):
        chunk = np.ascontiguousarray(lines[first : first + step])
        yield bf16_to_f32(chunk) if chunk.dtype == np.uint16 else chunk
        source.checkpoint.release()


# ---- values ----


def _config_values(config: GPTConfig) -> dict[str, WrittenValue]:
    """The config under llama.cpp's keys, and the activation under one of our own."""
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
    """The tokenizer; its tokens are padded to the rows of wte, as llama.cpp requires."""
    V = config.vocab_size
    # The model may have no rows for special tokens that are named without an id: they are left out.
    tokens = vocabulary.tokens[: max(V, vocabulary.stored_size)]
    if len(tokens) > V:
        raise TokenizerError(
            f"{source}: its tokenizer has {len(tokens)} tokens, and the model {V}; "
            "a GGUF file can have no more than the model"
        )
    types = [NORMAL] * len(tokens)
    for token in vocabulary.added.values():
        if token.id < len(tokens):
            types[token.id] = CONTROL if token.special else USER_DEFINED
    padding = range(len(tokens), V)
    values: dict[str, WrittenValue] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE_TOKENIZERS[0],
        "tokenizer.ggml.tokens": tokens + [f"[PAD{token_id}]" for token_id in padding],
        "tokenizer.ggml.token_type": types + [UNUSED for _ in padding],
        "tokenizer.ggml.merges": _merges(vocabulary),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": vocabulary.add_prefix_space,
    }
    ends = config.eos_token_ids
    if not ends and vocabulary.eos_id is not None and vocabulary.eos_id < V:
        ends = (vocabulary.eos_id,)
    start = ends[0] if config.start_token_id is None and ends else config.start_token_id
    if start is not None:
        values["tokenizer.ggml.bos_token_id"] = start
    values.update(zip(EOS_KEYS, ends, strict=False))
    if len(ends) > len(EOS_KEYS):
        values[EOS_IDS] = ends
    template = _chat_template(vocabulary.files)
    if template:
        values[CHAT_TEMPLATE] = template
    return values


def _warn_of_lost_flags(vocabulary: Vocabulary, source: Path) -> None:
    """Warn of the first added token with a flag that changes ids and has no key in GGUF."""
    for token in vocabulary.added.values():
        flags = [name for name in ("lstrip", "rstrip", "single_word") if getattr(token, name)]
        if flags:
            warn(
                f"{source}: the added token {short_repr(token.content)} has "
                f"{' and '.join(flags)}, which a GGUF file cannot hold: texts with this token "
                "have other ids there"
            )
            return


def _chat_template(files: dict[str, bytes]) -> str | None:
    """The chat template among tokenizer files: the default one, where tokenizer_config.json has
    several."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8", errors="replace")
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    template = config.get("chat_template")
    if isinstance(template, list):
        named = (each for each in template if isinstance(each, dict))
        template = next((t.get("template") for t in named if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _merges(vocabulary: Vocabulary) -> list[str]:
    """The merges by rank, each as its two tokens with a space between."""
    tokens, ranks = vocabulary.tokens, vocabulary.merges.ranks
    pairs = sorted(ranks, key=ranks.__getitem__)
    return [f"{tokens[pair >> 32]} {tokens[pair & 0xFFFFFFFF]}" for pair in pairs]
