"""GPT-2's pre-tokenization of UTF-8 bytes.

The regular expression of minigpt/tokenizer/bpe.py by hand, one pre-token at a time: the suffix of
an English contraction; letters, digits, or other characters, each with at most one space before; or
white space. A run of white space leaves its last character to the next pre-token, which takes it if
it is a space; otherwise it is a pre-token of its own.

Each character is read once, white space twice: the time is linear in the length of the text.

No function here has two returns, or uses an array for the last time inside a branch: Numba would
count references to it for every pre-token, atomically, which is slow.
"""

from __future__ import annotations

import numpy as np

from ..jit import inline

# Kinds of characters: the values of `kinds` for each of Unicode's CODE_POINTS.
OTHER, LETTER, DIGIT, WHITE = range(4)
CODE_POINTS = 0x110000


@inline
def pretoken_end(text, start, kinds):
    """The end of the pre-token that starts at text[start].

    text   uint8 [N], valid UTF-8
    start  < N, the first byte of a character
    kinds  uint8 [CODE_POINTS]
    """
    first = start
    if text[start] == ord(" ") and start + 1 < text.size:
        first += 1
    kind = _kind(text, first, kinds)
    end = _run_end(text, first, kind, kinds)
    if kind == WHITE and end < text.size:
        end = _without_last(text, start, end)
    return max(end, start + _contraction(text, start))  # not the apostrophe alone


@inline
def _contraction(text, start):
    """The length of the 's 't 'd 'm 're 've 'll that starts at text[start]; 0 if none does."""
    last = text.size - 1
    a, b = text[min(start + 1, last)], text[min(start + 2, last)]
    short = (a == ord("s")) | (a == ord("t")) | (a == ord("d")) | (a == ord("m"))
    long = ((a == ord("r")) | (a == ord("v"))) & (b == ord("e")) | (a == ord("l")) & (b == ord("l"))
    size = 2 * short + 3 * (long & (start + 2 <= last))
    return size * (text[start] == ord("'"))


@inline
def _run_end(text, end, kind, kinds):
    """The offset of the first character from text[end] on that has another kind."""
    while end < text.size and _kind(text, end, kinds) == kind:
        if text[end] < 0x80:
            end += 1
        else:
            end += 2 + (text[end] >= 0xE0) + (text[end] >= 0xF0)
    return end


@inline
def _without_last(text, start, end):
    """The offset of the last character of text[start:end]; `end` if it is the only one."""
    last = end - 1
    while text[last] & 0xC0 == 0x80:  # a continuation byte
        last -= 1
    return last if last > start else end


@inline
def _kind(text, i, kinds):
    """The kind of the character at text[i]."""
    a = text[i]
    if a < 0x80:
        code = np.int64(a)
    elif a < 0xE0:
        code = (a & 0x1F) << 6 | _low(text, i + 1)
    elif a < 0xF0:
        code = (a & 0x0F) << 12 | _low(text, i + 1) << 6 | _low(text, i + 2)
    else:
        code = (a & 0x07) << 18 | _low(text, i + 1) << 12 | _low(text, i + 2) << 6
        code |= _low(text, i + 3)
    return kinds[code]


@inline
def _low(text, i):
    """The six bits of a code point in a continuation byte."""
    return text[i] & 0x3F
