"""GPT-2 in a GGUF file, in Hugging Face's terms: tensor names, config.json, tokenizer files.

llama.cpp has its own names for the tensors, and stores every matrix as [out, in], where GPT-2's
Conv1D has [in, out]; the embeddings are [V, C] in both. The values of the file correspond to
config.json, vocab.json and merges.txt. No key exists for:

- The activation. llama.cpp always computes GPT-2's `gelu_new`, and so does minigpt for a file
  without it: both generate the same text. minigpt writes it as `minigpt.activation_function`.
- More than three tokens that end a text: llama.cpp's keys are eos, eot and eom_token_id. minigpt
  writes all of them as `minigpt.eos_token_ids`, too.
- Attention scales other than GPT-2's, and the muP variants of Cerebras: such a model cannot be
  written as GGUF.

Names: `MODEL_TENSORS[GPT2]` in gguf-py/gguf/constants.py of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, ConfigError, TokenizerError, short_repr
from .blocks import EncodedTensor
from .gguf import GGUF
from .gguf_parts import open_parts
from .named import Checkpoint

ACTIVATION = "minigpt.activation_function"
ASSUMED_ACTIVATION = "gelu_new"
CHAT_TEMPLATE = "tokenizer.chat_template"
EOS_IDS = "minigpt.eos_token_ids"
EOS_KEYS = tuple(f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = range(1, 6)  # tokenizer.ggml.token_type
PRE_TOKENIZERS = ("gpt-2", "default")  # tokenizer.ggml.pre; older converters wrote "default"

_KINDS = ("weight", "bias")
_FROM_GGUF = {
    "token_embd.weight": "wte.weight",
    "position_embd.weight": "wpe.weight",
    "output_norm.weight": "ln_f.weight",
    "output_norm.bias": "ln_f.bias",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_FROM_GGUF_IN_LAYER = {
    f"{a}.{kind}": f"{b}.{kind}" for a, b in _IN_LAYER.items() for kind in _KINDS
}
_TO_GGUF = {ours: theirs for theirs, ours in (_FROM_GGUF | _FROM_GGUF_IN_LAYER).items()}
_GGUF_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,4})\.(.+)")
_SIZES = {  # of config.json
    "n_layer": "gpt2.block_count",
    "n_head": "gpt2.attention.head_count",
    "n_embd": "gpt2.embedding_length",
    "n_positions": "gpt2.context_length",
}


def open_gguf(file: Path | GGUF) -> GGUF:
    """The parsed header of a GGUF file of a GPT-2; one that is parsed already is returned as it is.

    file  may be a part of a model in several files

    Raises CheckpointError for a damaged file, for missing parts, and for another architecture.
    """
    if isinstance(file, GGUF):
        return file
    gguf = open_parts(file)
    architecture = gguf.values.get("general.architecture")
    if architecture != "gpt2":
        path, found = gguf.file.path, short_repr(architecture)
        raise CheckpointError(f"{path}: general.architecture is {found}; it must be 'gpt2'")
    return gguf


# ---- tensors ----


def gguf_checkpoint(file: Path | GGUF) -> Checkpoint:
    """The tensors of a GGUF file under Hugging Face's names, Conv1D matrices as [in, out].

    Raises CheckpointError for a damaged file, and for a tensor that GPT-2 does not have.
    """
    gguf = open_gguf(file)
    path = gguf.file.path
    stored: dict[str, EncodedTensor] = {}
    for gguf_tensor_name, tensor in gguf.tensors.items():
        name = _table_name(gguf_tensor_name)
        if name is None:
            raise CheckpointError(
                f"{path}: tensor {short_repr(gguf_tensor_name)} does not exist in GPT-2"
            )
        transposed = is_transposed_in_gguf(name) and len(tensor.info.shape) == 2
        shape = tensor.info.shape[::-1] if transposed else tensor.info.shape
        info = replace(tensor.info, name=name, shape=shape)
        stored[name] = replace(tensor, info=info, transposed=transposed)
    tensors = {name: tensor.info for name, tensor in stored.items()}
    files = dict.fromkeys([path, *(tensor.file.path for tensor in stored.values())])
    return Checkpoint(path, tuple(files), tensors, stored)


def is_transposed_in_gguf(name: str) -> bool:
    """Whether a GGUF file stores the tensor that the table calls `name` as its transpose."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def _table_name(name: str) -> str | None:
    """`blk.3.ffn_up.weight` → `h.3.mlp.c_fc.weight`; None for a tensor that GPT-2 does not have."""
    layer = _GGUF_LAYER.fullmatch(name)
    if layer is None:
        return _FROM_GGUF.get(name)
    in_layer = _FROM_GGUF_IN_LAYER.get(layer[2])
    return in_layer and f"h.{layer[1]}.{in_layer}"


def gguf_name(name: str) -> str:
    """`h.3.mlp.c_fc.weight` → `blk.3.ffn_up.weight`."""
    if not name.startswith("h."):
        return _TO_GGUF[name]
    _, layer, in_layer = name.split(".", 2)
    return f"blk.{layer}.{_TO_GGUF[in_layer]}"


# ---- config.json ----


def gguf_config(file: Path | GGUF) -> dict[str, Any]:
    """The config.json of the model in a GGUF file; GPTConfig.from_dict checks its ranges.

    Raises ConfigError for a value that is missing or of the wrong type, CheckpointError for a
    damaged file.
    """
    gguf = open_gguf(file)
    data: dict[str, Any] = {"model_type": "gpt2"}
    for name, key in _SIZES.items():
        data[name] = _value(gguf, key, int)
    data["n_inner"] = _value(gguf, "gpt2.feed_forward_length", int, 4 * data["n_embd"])
    epsilon = _value(gguf, "gpt2.attention.layer_norm_epsilon", float, 1e-5)
    with np.errstate(all="ignore"):  # a float64 may overflow
        data["layer_norm_epsilon"] = float(str(np.float32(epsilon)))  # 1e-5, not 9.99999974e-6
    data["activation_function"] = _value(gguf, ACTIVATION, str, ASSUMED_ACTIVATION)
    ends = [_value(gguf, key, int, -1) for key in EOS_KEYS]  # llama.cpp ends at each of them
    data["eos_token_id"] = gguf.numbers(EOS_IDS) or ends
    data["bos_token_id"] = _value(gguf, "tokenizer.ggml.bos_token_id", int, -1)
    if "token_embd.weight" not in gguf.tensors:
        raise CheckpointError(f"{gguf.file.path}: tensor token_embd.weight is missing")
    data["vocab_size"] = gguf.tensors["token_embd.weight"].info.shape[0]
    data["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    return data


def _value(gguf: GGUF, key: str, kind: type, default: object = None) -> Any:
    """The value of a key, checked to be of that type; `default` where it is missing."""
    value = gguf.values.get(key, default)
    if type(value) is not kind:
        what = {int: "an integer", float: "a float", str: "a string", bool: "true or false"}[kind]
        found = "missing" if value is None else short_repr(value)
        raise ConfigError(f"{gguf.file.path}: {key} is {found}; it must be {what}")
    return value


# ---- tokenizer ----


def gguf_tokenizer(file: Path | GGUF) -> dict[str, bytes]:
    """{name: content} of tokenizer files with the tokenizer of a GGUF file; {} if it has none.

    Raises TokenizerError for a tokenizer that is not GPT-2's kind, CheckpointError for a damaged
    file.
    """
    gguf = open_gguf(file)
    path = gguf.file.path
    if gguf.values.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
        return {}
    _check_kind(gguf)
    tokens = gguf.texts("tokenizer.ggml.tokens")
    merges = gguf.texts("tokenizer.ggml.merges")
    if tokens is None or merges is None:
        missing = "tokenizer.ggml." + ("tokens" if tokens is None else "merges")
        raise TokenizerError(f"{path}: {missing} is missing; a tokenizer has tokens and merges")
    types = gguf.numbers("tokenizer.ggml.token_type")
    if types is None:
        types = [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise TokenizerError(
            f"{path}: has {len(tokens)} tokens, and types of {len(types)}; each must have one"
        )
    while types and types[-1] == UNUSED:  # padding up to the rows of wte
        del types[-1], tokens[-1]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for token_id, token in enumerate(tokens) if ids[token] != token_id)
        raise TokenizerError(f"{path}: token {short_repr(twice)} occurs twice")
    merge_lines = "".join(f"{merge}\n" for merge in merges)
    template = _value(gguf, CHAT_TEMPLATE, str, "")
    return {
        **({"chat_template.jinja": template.encode()} if template else {}),
        "vocab.json": json.dumps(ids).encode(),
        "merges.txt": f"#version: 0.2\n{merge_lines}".encode(),
        "tokenizer_config.json": json.dumps(_tokenizer_config(gguf, tokens, types)).encode(),
    }


def _check_kind(gguf: GGUF) -> None:
    """Raise TokenizerError for a tokenizer that is not GPT-2's byte-level BPE."""
    path, model = gguf.file.path, gguf.values.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise TokenizerError(
            f"{path}: tokenizer.ggml.model is {short_repr(model)}; it must be 'gpt2'"
        )
    pre_tokenizer = gguf.values.get("tokenizer.ggml.pre", "default")
    if pre_tokenizer not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"{path}: tokenizer.ggml.pre is {short_repr(pre_tokenizer)}, another pre-tokenizer; "
            f"it must be one of {', '.join(PRE_TOKENIZERS)}"
        )


def _tokenizer_config(gguf: GGUF, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """The tokenizer_config.json: added tokens, end-of-text token, and what is put before a text.

    The reader of the tokenizer files refuses `add_bos_token` if it is true.
    """
    added = {
        str(token_id): {"content": tokens[token_id], "special": kind != USER_DEFINED}
        for token_id, kind in enumerate(types)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    }
    config: dict[str, Any] = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": _value(gguf, "tokenizer.ggml.add_bos_token", bool, False),
        "add_prefix_space": _value(gguf, "tokenizer.ggml.add_space_prefix", bool, False),
        "added_tokens_decoder": added,
    }
    eos = _value(gguf, "tokenizer.ggml.eos_token_id", int, -1)
    untyped = "tokenizer.ggml.token_type" not in gguf.values
    if 0 <= eos < len(tokens) and (untyped or types[eos] != NORMAL):
        config["eos_token"] = tokens[eos]  # which makes it a special token: not one such as "."
    return config
