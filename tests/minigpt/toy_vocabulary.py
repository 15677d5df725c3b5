"""A toy vocabulary: the one of the worked example in bpe.py, in files of every form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.tokenizer.bpe import byte_symbols
from minigpt.tokenizer.tokenizer import GPTTokenizer

TOY_MERGES = ["l o", "lo w", "e r", "Ġ low"]


def toy_vocab(merges: list[str] = TOY_MERGES) -> dict[str, int]:
    """The 256 bytes, the merged tokens, and <|endoftext|>."""
    tokens = [*byte_symbols(), *(line.replace(" ", "") for line in merges), "<|endoftext|>"]
    return {token: token_id for token_id, token in enumerate(tokens)}


def write_toy(folder: Path, **others: Any) -> Path:
    """vocab.json and merges.txt of the toy vocabulary, and NAME.json for each NAME=object."""
    (folder / "vocab.json").write_text(json.dumps(toy_vocab()), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *TOY_MERGES, ""]), encoding="utf-8", newline="\n"
    )
    for name, data in others.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    """The toy vocabulary as one tokenizer.json; a change may be named `model__field`."""
    data: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 260, "content": "<|endoftext|>", "special": True, "normalized": False}
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "vocab": toy_vocab(), "merges": TOY_MERGES},
    }
    for change, value in changes.items():
        *parents, last = change.split("__")
        parent = data
        for name in parents:
            parent = parent[name]
        parent[last] = value
    return data


def load_json(folder: Path, data: object) -> GPTTokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return GPTTokenizer.from_pretrained(folder)


def changed(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")

    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def vocab(**changes: Any) -> Callable[[Path], None]:
    return changed("vocab.json", json.dumps({**toy_vocab(), **changes}))
