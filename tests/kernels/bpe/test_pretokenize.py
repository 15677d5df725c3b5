"""Pre-tokens of UTF-8 bytes are those of GPT-2's regular expression, for all of Unicode."""

from __future__ import annotations

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.kernels.bpe.pretokenize import (
    CODE_POINTS,
    DIGIT,
    LETTER,
    OTHER,
    READ_AHEAD,
    WHITE,
    mark_boundaries,
)
from minigpt.kernels.jit import entry
from minigpt.tokenizer.compiled import character_kinds

# As OpenAI publishes it.
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
EVERY_CHARACTER = [chr(c) for c in range(CODE_POINTS) if not 0xD800 <= c < 0xE000]
CHARACTERS = st.characters(exclude_categories=["Cs"])
# One or two of each kind and of each length in bytes, and every character in the expression.
ALPHABET = [
    *"strevmld'' \n\t\r\v\fZ7!_\x00\x1c\x7f",
    *"\x85\xa0éª²\u0301\u1680ا٣\u200b\u2028\u3000中〇😀𝐀𝟏",
]


@entry
def marked(boundaries, text, start, size, kinds):
    mark_boundaries(boundaries, text, start, size, kinds)


@pytest.fixture(scope="module")
def kinds() -> np.ndarray:
    return character_kinds()


def pretokens(text: str, kinds: np.ndarray, before: str = "") -> list[str]:
    """The pre-tokens of `text`, which stands behind other bytes and before some that are wrong."""
    start = len(before.encode("utf-8"))
    data = text.encode("utf-8")
    padded = b"".join((before.encode("utf-8"), data, bytes(1), b"\xf0 a'" * READ_AHEAD))
    boundaries = np.full(len(data) // 64 + 1, 0xA5A5, np.uint64)
    marked(boundaries, np.frombuffer(padded, np.uint8), start, len(data), kinds)
    bits = np.unpackbits(boundaries.view(np.uint8), bitorder="little")
    ends = np.flatnonzero(bits).tolist()
    return [data[a:b].decode("utf-8") for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [(OTHER, r"[^\s\p{L}\p{N}]"), (LETTER, r"\p{L}"), (DIGIT, r"\p{N}"), (WHITE, r"\s")],
)
def test_the_kind_of_every_character_is_that_of_regex(kinds, kind, pattern):
    characters = "".join(map(chr, range(CODE_POINTS)))
    expected = [ord(c) for c in regex.findall(pattern, characters)]
    assert np.flatnonzero(kinds == kind).tolist() == expected


@pytest.mark.parametrize("separator", ["", " "])
def test_every_character_is_decoded(kinds, separator):
    text = separator.join(EVERY_CHARACTER)
    assert pretokens(text, kinds) == GPT2.findall(text)


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from(ALPHABET) | CHARACTERS, min_size=1))
def test_pretokens_are_those_of_the_expression(kinds, text):
    assert pretokens(text, kinds) == GPT2.findall(text)


def test_pretokens_at_the_end_of_a_text(kinds):
    """Half a contraction, a single space, multi-byte white space: nothing is read beyond."""
    for end in ("'", "'r", "'l", "a'", " ", " '", "\u3000", " \u3000", "'s", "'re", "x ", " \n"):
        for text in (end, "word" + end):
            assert pretokens(text, kinds) == GPT2.findall(text)
