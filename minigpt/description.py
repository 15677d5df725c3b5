"""The sizes, dtype and memory needs of a model source, from its headers alone.

minigpt.describe("cerebras/Cerebras-GPT-111M").memory_bytes
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .bundled import BUNDLED_MODEL
from .model.kv_cache import kv_cache_bytes
from .source import ModelSource, open_source
from .weights.table import HEAD, parameter_count, weights_bytes


@dataclass(frozen=True)
class SourceDescription:
    """The facts that `describe` finds; the fields of `minigpt info --json`.

    source              the path of the folder or GGUF file
    model_type … activation_function  as in GPTConfig
    tied_head           whether the head is wte, as config.json and the headers say
    parameters          their number; a tied head counts once
    dtype               of the stored weights: "int8", "int4", or all float types, as "bf16+f32"
    files               the names of the files of weights
    disk_bytes          the size of these files
    weights_bytes       memory of the weights at the dtype "auto"
    kv_cache_bytes      memory of the keys and values of one sequence of n_positions tokens
    memory_bytes        both together
    """

    source: str
    model_type: str
    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int
    n_positions: int
    vocab_size: int
    activation_function: str
    tied_head: bool
    parameters: int
    dtype: str
    files: list[str]
    disk_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    memory_bytes: int


def describe(source: str | os.PathLike[str] | ModelSource = BUNDLED_MODEL) -> SourceDescription:
    """Describe a folder, a GGUF file or a hub id; default: the bundled model.

    Reads config.json and the headers of the files of weights, not the weights. Raises SourceError
    (and its subclasses) for a wrong source.
    """
    opened = open_source(source)
    config, names, infos = opened.config, opened.names, opened.checkpoint.tensors
    if opened.quantized:
        tied = HEAD not in names
        stored = opened.quantized
    else:
        tied = config.tie_word_embeddings or HEAD not in names
        stored = "+".join(sorted({infos[name].dtype for name in names.values()})).lower()
    weights = weights_bytes(config, opened.auto_dtype, tied, opened.wte_dtype)
    cache = kv_cache_bytes(config, 1, config.n_positions, opened.auto_dtype)
    return SourceDescription(
        source=str(opened.path),
        model_type=config.model_type,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        n_inner=config.n_inner,
        n_positions=config.n_positions,
        vocab_size=config.vocab_size,
        activation_function=config.activation_function,
        tied_head=tied,
        parameters=parameter_count(config, tied),
        dtype=stored,
        files=[path.name for path in opened.checkpoint.files],
        disk_bytes=sum(path.stat().st_size for path in opened.checkpoint.files),
        weights_bytes=weights,
        kv_cache_bytes=cache,
        memory_bytes=weights + cache,
    )
