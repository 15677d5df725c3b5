"""Tokenizers of a few hundred tokens, for tests."""

from __future__ import annotations

import json
from itertools import islice, product
from pathlib import Path

from minigpt.tokenizer.bpe import byte_symbols
from minigpt.tokenizer.tokenizer import GPTTokenizer

END = "<|endoftext|>"


def byte_tokenizer(folder: Path, size: int = 257, end: str = END) -> GPTTokenizer:
    """A vocabulary of `size` tokens: the 256 bytes, pairs of them, and the end-of-text token."""
    pairs = list(islice(product(byte_symbols(), repeat=2), size - 257))
    tokens = [*byte_symbols(), *map("".join, pairs), end]
    vocab = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, pairs)]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return GPTTokenizer.from_pretrained(folder)
