"""GPT-2's words, found in UTF-8 bytes.

What minigpt/bpe.py says as a regular expression, one word at a time: an English contraction's tail;
letters, digits, or other signs, each with at most one space before; or white space. A run of white
space leaves its last character to what follows: a space joins the word, another stands alone.

Each character is read once, in a run of white space twice: the time is linear in the text.
"""

from __future__ import annotations

from .jit import inline, jit

# The kinds of characters, as `kinds` holds them for each of Unicode's CODE_POINTS.
OTHER, LETTER, DIGIT, WHITE = range(4)
CODE_POINTS = 0x110000


@jit
def word_end(text, start, kinds):
    """Where the word that starts at text[start] ends.

    text   uint8 [n], UTF-8 without flaw
    start  < n, the first byte of a character
    kinds  uint8 [CODE_POINTS]
    """
    tail = _tail_of_contraction(text, start)
    if tail > 0:
        return start + tail
    kind, end = _character(text, start, kinds)
    if text[start] == ord(" ") and end < text.size:
        following, after = _character(text, end, kinds)
        if following != WHITE:
            kind, end = following, after
    if kind == WHITE:
        return _end_of_white(text, start, kinds)
    while end < text.size:
        following, after = _character(text, end, kinds)
        if following != kind:
            break
        end = after
    return end


@jit
def _end_of_white(text, start, kinds):
    """Before the last character of the run of white space, unless that is its first, or the text's
    last."""
    last, end = start, start
    while end < text.size:
        kind, after = _character(text, end, kinds)
        if kind != WHITE:
            return last if last > start else end
        last, end = end, after
    return end


@jit
def _tail_of_contraction(text, start):
    """The bytes of 's 't 'd 'm 're 've 'll, where one of them starts; else 0."""
    if text[start] != ord("'") or start + 1 == text.size:
        return 0
    a = text[start + 1]
    if a == ord("s") or a == ord("t") or a == ord("d") or a == ord("m"):
        return 2
    b = text[start + 2] if start + 2 < text.size else 0
    if (a == ord("r") or a == ord("v")) and b == ord("e"):
        return 3
    return 3 if a == ord("l") and b == ord("l") else 0


@inline
def _character(text, i, kinds):
    """The kind of the character at text[i], and where the next one starts."""
    a = text[i]
    if a < 0x80:
        return kinds[a], i + 1
    if a < 0xE0:
        return kinds[(a & 0x1F) << 6 | _low(text, i + 1)], i + 2
    if a < 0xF0:
        return kinds[(a & 0x0F) << 12 | _low(text, i + 1) << 6 | _low(text, i + 2)], i + 3
    high = (a & 0x07) << 18 | _low(text, i + 1) << 12
    return kinds[high | _low(text, i + 2) << 6 | _low(text, i + 3)], i + 4


@inline
def _low(text, i):
    """The six bits that a byte after the first adds to its character."""
    return text[i] & 0x3F
