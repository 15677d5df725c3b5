"""GPTTokenizer.chunks: the chunks of a text have the ids of the text."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import byte_tokenizer

from minigpt.tokenizer.tokenizer import GPTTokenizer


@pytest.fixture(scope="module")
def prefixing(tmp_path_factory: pytest.TempPathFactory) -> GPTTokenizer:
    """A vocabulary that reads a text as if it began with a space."""
    folder = tmp_path_factory.mktemp("prefixing")
    (folder / "tokenizer_config.json").write_text('{"add_prefix_space": true}', encoding="utf-8")
    tokenizer = byte_tokenizer(folder)
    assert tokenizer.encode("a") == tokenizer.encode(" a")
    return tokenizer


PARTS = [
    "the",
    " cat",
    "'ll",
    "42",
    "...",
    "é",
    "语",
    "   ",
    "\n\n\n",
    "\r\n",
    "\t",
    "\x1c",
    "\u2003 ",
]
AWKWARD = st.lists(st.sampled_from(PARTS) | st.characters(codec="utf-8"), max_size=12).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=AWKWARD, size=st.integers(1, 9))
def test_chunks_have_the_ids_of_the_text(gpt2: GPTTokenizer, text: str, size: int) -> None:
    chunks = list(gpt2.chunks(text, size))
    assert "".join(chunks) == text
    assert [i for chunk in chunks for i in gpt2.encode(chunk)] == gpt2.encode(text)


def test_white_space_of_re_is_white_space_of_regex() -> None:
    """Chunks are cut before white space as `re` knows it, pre-tokens as `regex` does."""
    characters = "".join(map(chr, chain(range(0xD800), range(0xE000, 0x110000))))
    assert not set(regex.findall(r"\s", characters)) - set(re.findall(r"\s", characters))
    assert {" ", "\n"} <= set(regex.findall(r"\s", characters))


def test_chunks_of_prose_have_about_the_given_size(gpt2: GPTTokenizer) -> None:
    """Else the tests above would pass if nothing was ever cut."""
    chunks = list(gpt2.chunks("The cat  sat.\n\n" * 100 + "end", 40))
    assert all(40 <= len(chunk) < 50 for chunk in chunks[:-1])
    assert len(chunks) > 25


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from(" \nab;")), size=st.integers(1, 4))
def test_chunks_get_no_prefix_space_of_their_own(prefixing, text: str, size: int) -> None:
    chunks = list(prefixing.chunks(text, size))
    assert [i for chunk in chunks for i in prefixing.encode(chunk)] == prefixing.encode(text)


def test_an_added_token_is_never_cut(tmp_path: Path) -> None:
    byte_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"New York": 257}')
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert list(tokenizer.chunks("in New York I", 1)) == ["in New York I"]
    assert 257 in tokenizer.encode("in New York I")


def test_chunks_with_special_tokens(gpt2: GPTTokenizer, tmp_path: Path) -> None:
    """Chunks may end after a special token, but within none that holds white space."""
    text = "one <|endoftext|> two<|endoftext|>\n three" * 9
    chunks = list(gpt2.chunks(text, 5, allow_special=True))
    assert len(chunks) > 9
    ids = [i for chunk in chunks for i in gpt2.encode(chunk, allow_special=True)]
    assert ids == gpt2.encode(text, allow_special=True)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<the end>"}')
    tokenizer = byte_tokenizer(tmp_path, end="<the end>")
    assert list(tokenizer.chunks("a <the end> b", 1)) == ["a", " <the", " end>", " b"]
    assert list(tokenizer.chunks("a <the end> b", 1, allow_special=True)) == ["a <the end> b"]
