"""GPT-2's pre-tokenization of UTF-8 bytes, 64 at a time.

The regular expression of minigpt/tokenizer/bpe.py: the suffix of an English contraction; letters,
digits, or other characters, each with at most one space before; or white space. A run of white
space leaves its last character to the next pre-token, which takes it if it is a space; otherwise it
is a pre-token of its own.

Whether a pre-token starts at a byte depends on the kind of this byte, of the byte before and of the
byte after. So 64 bytes become a mask for each kind, a uint64 with one bit a byte, and a few
operations on masks find all starts among them. The bytes of a character have its kind. Vectors
compare ASCII; a block with another character is read one by one.
"""

from __future__ import annotations

import numpy as np

from ..jit import inline, jit
from ..simd import BLOCK, bytes_between

# Kinds of characters: the values of `kinds` for each of Unicode's CODE_POINTS.
OTHER, LETTER, DIGIT, WHITE = range(4)
CODE_POINTS = 0x110000

READ_AHEAD = 2 * BLOCK  # bytes behind a text that are read, whatever they are

_NO_KIND = 4  # of what is before the first byte
_ZERO, _ONE, _TWO, _THREE, _LAST = (np.uint64(n) for n in (0, 1, 2, 3, BLOCK - 1))
_ALL = ~_ZERO


@jit
def mark_boundaries(boundaries, text, start, size, kinds):
    """Mark where the pre-tokens of text[start : start + size] end, one bit a byte.

    boundaries  uint64 [size // 64 + 1]: bit i % 64 of boundaries[i // 64] becomes 1 where a
                pre-token ends before text[start + i], for i = 1 … size; all other bits become 0
    text        uint8 [N], valid UTF-8 from `start` to start + size, then a zero or white
                space; N is at least start + size + READ_AHEAD
    kinds       uint8 [CODE_POINTS]
    """
    kind, after_space = _NO_KIND, False  # of the byte before a block
    cleared = added = _ZERO  # by contractions that reach from one block into the next
    for first in range(0, size + 1, BLOCK):
        i = start + first
        rest = size - first
        inside = _ALL if rest >= BLOCK else (_ONE << np.uint64(rest)) - _ONE
        ascii_only = bytes_between(text, i, 0x80, 0xFF) & inside == _ZERO
        if ascii_only:
            letters, digits, white = _ascii_masks(text, i)
            starts = _ZERO
        else:
            letters, digits, white, starts = _unicode_masks(text, i, start + size, kind, kinds)
        spaces = _equal(text, i, " ")
        others = ~(letters | digits | white)
        same = letters & _after(letters, kind == LETTER) | digits & _after(digits, kind == DIGIT)
        same |= white & _after(white, kind == WHITE) | others & _after(others, kind == OTHER)
        starts |= ~same & ~(_after(spaces, after_space) & ~white)
        # White space of one byte before text. The last byte needs a look into the next block.
        last_white = white & bytes_between(text, i, 0, 0x7F)
        text_follows = (~white & inside) >> _ONE
        if last_white >> _LAST and rest > BLOCK and _kind(text, i + BLOCK, kinds) != WHITE:
            text_follows |= _ONE << _LAST
        starts |= last_white & text_follows
        starts = starts & ~cleared | added
        cleared = added = _ZERO
        apostrophes = starts & inside & _equal(text, i, "'")
        if apostrophes != _ZERO:
            short, long = _contractions(text, i, apostrophes)
            starts &= ~((short | long) << _ONE | long << _TWO)
            starts |= short << _TWO | long << _THREE
            cleared = (short | long) >> _LAST | long >> _LAST - _ONE
            added = short >> _LAST - _ONE | long >> _LAST - _TWO
        if first == 0:
            starts &= ~_ONE
        if rest < BLOCK:
            starts = starts & inside | _ONE << np.uint64(rest)
        boundaries[first // BLOCK] = starts
        kind = _last_kind(letters, digits, white)
        after_space = spaces >> _LAST != _ZERO


@inline
def _after(mask, before):
    """The mask of the bytes behind those in `mask`; `before` says whether 0 is behind one."""
    return mask << _ONE | np.uint64(before)


@inline
def _ascii_masks(text, i):
    """The letters, digits and white space among text[i : i + 64], which is ASCII."""
    letters = bytes_between(text, i, ord("a"), ord("z"))
    letters |= bytes_between(text, i, ord("A"), ord("Z"))
    digits = bytes_between(text, i, ord("0"), ord("9"))
    white = bytes_between(text, i, ord("\t"), ord("\r")) | _equal(text, i, " ")
    return letters, digits, white


@jit
def _unicode_masks(text, i, end, kind, kinds):
    """The same for any characters of text[i : min(i + 64, end)]; and where a pre-token starts
    because a white character of several bytes comes before text.

    kind  of text[i - 1]
    """
    letters = digits = white = starts = _ZERO
    for k in range(min(BLOCK, end - i)):
        bit = _ONE << np.uint64(k)
        byte = text[i + k]
        if byte & 0xC0 != 0x80:  # the first byte of a character
            kind = _kind(text, i + k, kinds)
            if kind == WHITE and byte >= 0x80:
                following = i + k + _length(byte)
                if following < end and _kind(text, following, kinds) != WHITE:
                    starts |= bit
        letters |= bit * np.uint64(kind == LETTER)
        digits |= bit * np.uint64(kind == DIGIT)
        white |= bit * np.uint64(kind == WHITE)
    return letters, digits, white, starts


@inline
def _contractions(text, i, apostrophes):
    """Which apostrophes among text[i : i + 64] begin 's 't 'd 'm, and which 're 've 'll."""
    short = _equal(text, i + 1, "s") | _equal(text, i + 1, "t")
    short |= _equal(text, i + 1, "d") | _equal(text, i + 1, "m")
    long = (_equal(text, i + 1, "r") | _equal(text, i + 1, "v")) & _equal(text, i + 2, "e")
    long |= _equal(text, i + 1, "l") & _equal(text, i + 2, "l")
    return apostrophes & short, apostrophes & long


@inline
def _equal(text, i, character):
    """The mask of text[i : i + 64] == character."""
    return bytes_between(text, i, ord(character), ord(character))


@inline
def _last_kind(letters, digits, white):
    """The kind of byte 63."""
    kind = LETTER * np.int64(letters >> _LAST) + DIGIT * np.int64(digits >> _LAST)
    return kind + WHITE * np.int64(white >> _LAST)


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
    return np.int64(kinds[code])


@inline
def _low(text, i):
    """The six bits of a code point in a continuation byte."""
    return text[i] & 0x3F


@inline
def _length(byte):
    """The bytes of a character that begins with `byte`, which is not ASCII."""
    return 2 + np.int64(byte >= 0xE0) + np.int64(byte >= 0xF0)
