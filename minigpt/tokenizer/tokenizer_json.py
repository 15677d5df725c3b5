"""tokenizer.json: whether what it describes is byte-level BPE with GPT-2's pre-tokens.

Such a file describes any pipeline of the tokenizers library. Many forms of it mean the same: a
Sequence of one part, a template that adds no token, GPT-2's regular expression written out. All
that give GPT-2's ids are read, and every other is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from ..errors import TokenizerError
from .json_fields import field

# The values in "model" with which its ids are those of GPT-2's algorithm. None stands for absent or
# null.
_MODEL: dict[str, tuple[object, ...]] = {
    "type": (None, "BPE"),
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "ignore_merges": (None, False),
}
# {step of the pipeline: the name under which a Sequence lists its parts}
_LISTED_AS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
# GPT-2's pre-tokens, as the tokenizers library and as tiktoken write them.
_GPT2_PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)


def gpt2_model(data: dict[str, Any], where: Path) -> dict[str, Any]:
    """The "model" of a tokenizer.json; raises TokenizerError unless its ids are of GPT-2's kind."""
    model = field(data, "model", dict, where) or {}
    for name, accepted in _MODEL.items():
        if model.get(name) not in accepted:
            right = " or ".join(map(json.dumps, accepted))
            raise _other_kind(where, f"model.{name}", model.get(name), right)
    for name, is_gpt2, right in _PIPELINE:
        if not is_gpt2(_parts(data, name, where)):
            raise _other_kind(where, name, data.get(name), right)
    return model


def prefixes_space(data: dict[str, Any], where: Path) -> bool:
    """`add_prefix_space` of the pre-tokenizer in a tokenizer.json that `gpt2_model` has checked."""
    parts = _parts(data, "pre_tokenizer", where)
    return any(part.get("add_prefix_space") for part in parts)


def _other_kind(where: Path, name: str, value: object, right: str) -> TokenizerError:
    return TokenizerError(
        f"{where}: {name} is {brief(value)}, which is no tokenizer of GPT-2's kind: "
        f"it must be {right}"
    )


def _parts(data: dict[str, Any], name: str, where: Path) -> list[dict[str, Any]]:
    """The parts of a step of the pipeline, those of a Sequence one by one; [] for null."""
    pending: list[object] = [data.get(name)]
    parts: list[dict[str, Any]] = []
    while pending:
        part = pending.pop()
        if isinstance(part, dict) and part.get("type") == "Sequence":
            pending += reversed(field(part, _LISTED_AS[name], list, where) or [])
        elif isinstance(part, dict):
            parts.append(part)
        elif part is not None:
            raise _other_kind(where, name, part, "an object or null")
    return parts


# ---- what the steps must be for GPT-2's ids ----


def _is_gpt2_pre_tokenizer(parts: list[dict[str, Any]]) -> bool:
    """Whether ByteLevel splits a text, or GPT-2's regular expression does in its place."""
    *before, last = parts or [{}]
    if last.get("type") != "ByteLevel" or not isinstance(last.get("add_prefix_space"), bool):
        return False
    if not before:
        return last.get("use_regex") in (None, True)
    return (
        [_is_gpt2_split(part) for part in before] == [True]
        and last.get("use_regex") is False
        and not last["add_prefix_space"]  # it would add one to each pre-token
    )


def _is_gpt2_split(part: dict[str, Any]) -> bool:
    pattern = part.get("pattern")
    return (
        part.get("type") == "Split"
        and isinstance(pattern, dict)
        and pattern.get("Regex") in _GPT2_PATTERNS
        and (part.get("behavior"), part.get("invert")) in (("Isolated", False), ("Removed", True))
    )


def _adds_no_token(parts: list[dict[str, Any]]) -> bool:
    """Whether post-processors leave the ids of a text as they are."""
    return all(part.get("type") == "ByteLevel" or _is_empty_template(part) for part in parts)


def _is_empty_template(part: dict[str, Any]) -> bool:
    """Whether a template is the text alone: `$A`."""
    items = part.get("single")
    if part.get("type") != "TemplateProcessing" or not isinstance(items, list):
        return False
    sequences = [item.get("Sequence") for item in items if isinstance(item, dict)]
    ids = [sequence.get("id") for sequence in sequences if isinstance(sequence, dict)]
    return ids == ["A"] and len(items) == 1


def _is_byte_level_or_none(parts: list[dict[str, Any]]) -> bool:
    return [part.get("type") for part in parts] in ([], ["ByteLevel"])


_PIPELINE: tuple[tuple[str, Callable[[list[dict[str, Any]]], bool], str], ...] = (
    ("normalizer", lambda parts: not parts, "null"),
    ("pre_tokenizer", _is_gpt2_pre_tokenizer, "ByteLevel with GPT-2's regular expression"),
    ("post_processor", _adds_no_token, "null, ByteLevel, or a template that adds no token"),
    ("decoder", _is_byte_level_or_none, "null or ByteLevel"),
)
