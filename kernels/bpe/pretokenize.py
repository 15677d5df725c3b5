"""GPT-2's words, found in UTF-8 bytes.

What minigpt/bpe.py says as a regular expression, one word at a time: an English contraction's tail;
letters, digits, or other signs, each with at most one space before; or white space. A run of white
space leaves its last character to what follows: a space joins the word, another stands alone.

Each character is read once, in a run of white space twice: the time is linear in the text.

No function here returns in two places, or uses an array for the last time in a branch: Numba would
count the references to it for every word, and atomically, which is slow.
"""

from __future__ import annotations

import numpy as np

from ..jit import inline

# The kinds of characters, as `kinds` holds them for each of Unicode's CODE_POINTS.
OTHER, LETTER, DIGIT, WHITE = range(4)
CODE_POINTS = 0x110000


@inline
def pretoken_end(text, start, kinds):
    """Where the word that starts at text[start] ends.

    text   uint8 [N], UTF-8 without flaw
    start  < N, the first byte of a character
    kinds  uint8 [CODE_POINTS]
    """
    first = start
    if text[start] == ord(" ") and start + 1 < text.size:
        first += 1
    kind = _kind(text, first, kinds)
    end = _end_of_run(text, first, kind, kinds)
    if kind == WHITE and end < text.size:
        end = _without_last(text, start, end)
    return max(end, start + _contraction(text, start))  # else its sign would stand alone


@inline
def _contraction(text, start):
    """The bytes of 's 't 'd 'm 're 've 'll, where one of them starts at text[start]; else 0."""
    last = text.size - 1
    a, b = text[min(start + 1, last)], text[min(start + 2, last)]
    short = (a == ord("s")) | (a == ord("t")) | (a == ord("d")) | (a == ord("m"))
    long = ((a == ord("r")) | (a == ord("v"))) & (b == ord("e")) | (a == ord("l")) & (b == ord("l"))
    size = 2 * short + 3 * (long & (start + 2 <= last))
    return size * (text[start] == ord("'"))


@inline
def _end_of_run(text, end, kind, kinds):
    """The first place from text[end] on where a character of another kind stands."""
    while end < text.size and _kind(text, end, kinds) == kind:
        if text[end] < 0x80:
            end += 1
        else:
            end += 2 + (text[end] >= 0xE0) + (text[end] >= 0xF0)
    return end


@inline
def _without_last(text, start, end):
    """Before the last character of text[start:end], unless it is the only one."""
    last = end - 1
    while text[last] & 0xC0 == 0x80:  # not the first byte of a character
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
    """The six bits that a byte after the first adds to its character."""
    return text[i] & 0x3F
