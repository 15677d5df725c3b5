"""The split into words over bytes: that of GPT-2's regular expression, for all of Unicode."""

from __future__ import annotations

import numba
import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.kernels.bpe.pretokenize import CODE_POINTS, DIGIT, LETTER, OTHER, WHITE, pretoken_end
from minigpt.tokenizer.compiled import character_kinds

# As OpenAI publishes it.
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
EVERY_CHARACTER = [chr(c) for c in range(CODE_POINTS) if not 0xD800 <= c < 0xE000]
CHARACTERS = st.characters(exclude_categories=["Cs"])
# One or two of each kind and of each length in bytes, and all that the expression names.
TELLING = [
    *"strevmld'' \n\t\r\v\fZ7!_\x00\x1c\x7f",
    *"\x85\xa0éª²\u0301\u1680ا٣\u200b\u2028\u3000中〇😀𝐀𝟏",
]


@numba.njit  # not `entry`: what tests compile is not kept
def all_ends(ends, text, kinds):
    start = count = 0
    while start < text.size:
        start = pretoken_end(text, start, kinds)
        ends[count] = start
        count += 1
    return count


@pytest.fixture(scope="module")
def kinds() -> np.ndarray:
    return character_kinds()


def words(text: str, kinds: np.ndarray) -> list[str]:
    data = text.encode("utf-8")
    ends = np.zeros(len(data), np.int64)
    count = all_ends(ends, np.frombuffer(data, np.uint8), kinds)
    starts = [0, *ends[: count - 1]]
    return [data[a:b].decode("utf-8") for a, b in zip(starts, ends[:count], strict=True)]


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [(OTHER, r"[^\s\p{L}\p{N}]"), (LETTER, r"\p{L}"), (DIGIT, r"\p{N}"), (WHITE, r"\s")],
)
def test_every_character_is_of_the_kind_that_regex_gives_it(kinds, kind, pattern):
    characters = "".join(map(chr, range(CODE_POINTS)))
    expected = [ord(c) for c in regex.findall(pattern, characters)]
    assert np.flatnonzero(kinds == kind).tolist() == expected


@pytest.mark.parametrize("beside", ["", " "])
def test_every_character_is_read_right(kinds, beside):
    text = beside.join(EVERY_CHARACTER)
    assert words(text, kinds) == GPT2.findall(text)


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from(TELLING) | CHARACTERS, min_size=1))
def test_words_are_those_of_the_expression(kinds, text):
    assert words(text, kinds) == GPT2.findall(text)


def test_what_ends_where_the_text_does(kinds):
    """Half a contraction, a space alone, white space of several bytes: nothing is read beyond."""
    for end in ("'", "'r", "'l", "a'", " ", " '", "\u3000", " \u3000", "'s", "'re", "x ", " \n"):
        for text in (end, "word" + end):
            assert words(text, kinds) == GPT2.findall(text)
