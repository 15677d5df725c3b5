"""The pre-tokens that have been merged, and their ids: most of a text's were merged before.

The memo is a hash table of buckets, each of two entries in one cache line. A new entry pushes the
first of its bucket into the place of the second, which is forgotten and merged again when it next
occurs: a text made of collisions is encoded slower, but not wrong. An entry is four words of 64
bits. One that holds its ids:

    bytes 0 … 7 of the pre-token, zeros behind them
    bytes 8 … 14, and the number of bytes in the last of eight
    ids 0 and 1, 32 bits each
    id 2, and the number of ids

So the usual pre-token costs one access to memory, and is compared as two integers. One of more than
15 bytes, or of more than 3 ids, has a record elsewhere:

    bytes 0 … 7, or a hash of more than 15 bytes
    bytes 8 … 14 and their number, or the number alone; and the bit _RECORD
    the offset of the record
    0

A record is all bytes, in words, zeros behind them; the number of ids; and the ids. When there is no
room for another record, everything is forgotten.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit import inline, jit
from ..simd import folded_product, load_word, prefetch_word

MAX_KEY = 15  # bytes of a pre-token whose entry holds its ids
MAX_INLINE = 3  # ids in an entry; as many are written, whatever their number

_ENTRY, _BUCKET = np.uint64(4), np.uint64(8)  # words
_KEY_MASKS = np.array(  # the bytes of a pre-token of each length, in two words
    [[(1 << 8 * min(n, 8)) - 1, (1 << 8 * max(n - 8, 0)) - 1] for n in range(MAX_KEY + 1)],
    np.uint64,
)
_ZERO, _ONE, _TWO, _THREE, _HIGH, _TOP_BYTE = (np.uint64(n) for n in (0, 1, 2, 3, 32, 56))
_LOW_HALF = np.uint64(0xFFFFFFFF)
_RECORD = np.uint64(1 << 63)
_LONG = np.uint64(0xFF << 56)  # in the key of a pre-token that no entry can hold
_MIX_A, _MIX_B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)


class Memo(NamedTuple):
    """Pre-tokens and their ids. One thread uses it at a time.

    entries  uint64 [2^k · 8], zero at first, beginning with a cache line
    records  uint64 [R], R at least that of a pre-token of MAX_SHORT bytes
    used     int64 [1], the number of words of `records` that are written
    """

    entries: np.ndarray
    records: np.ndarray
    used: np.ndarray


class Key(NamedTuple):
    """Where a pre-token is in the memo: the first two words of its entry, uint64, and the offset of
    its bucket."""

    first: np.uint64
    second: np.uint64
    bucket: np.uint64


@inline
def key_of(entries, text, start, size):
    """The key of text[start : start + size]; of more than MAX_KEY bytes, one that finds nothing."""
    row = np.uint64(min(size, MAX_KEY))
    first = load_word(text, start) & _KEY_MASKS[row, 0]
    second = load_word(text, start + 8) & _KEY_MASKS[row, 1] | row << _TOP_BYTE
    if size > MAX_KEY:
        second = np.uint64(size) | _LONG
    key = Key(first, second, _bucket(entries, first, second))
    prefetch_word(entries, key.bucket)
    return key


@inline
def size_of(second):
    """The bytes of a pre-token, from the second word of its key."""
    return np.int64(second & ~_LONG if second >= _LONG else second >> _TOP_BYTE)


@inline
def find(entries, key):
    """(entry, whether it is there): the offset of the entry with a key."""
    entry = key.bucket
    # Without a branch: which of the two it is cannot be predicted.
    other = (entries[entry] != key.first) | (entries[entry + _ONE] != key.second)
    entry += _ENTRY * np.uint64(other)
    return entry, (entries[entry] == key.first) & (entries[entry + _ONE] == key.second)


@inline
def append_inline(ids, count, entries, entry):
    """Write the ids of an entry at ids[count : count + MAX_INLINE]; returns their number."""
    low, high = entries[entry + _TWO], entries[entry + _THREE]
    ids[count] = low & _LOW_HALF
    ids[count + _ONE] = low >> _HIGH
    ids[count + _TWO] = high & _LOW_HALF
    return high >> _HIGH


@jit
def record_key(entries, text, start, size, key):
    """The key of a pre-token that has a record, from that of `key_of`."""
    if size <= MAX_KEY:
        return Key(key.first, key.second | _RECORD, key.bucket)
    first, second = _MIX_A, np.uint64(size) | _RECORD
    for i in range(0, size, 8):
        first = folded_product(first ^ _word(text, start + i, size - i), _MIX_B)
    return Key(first, second, _bucket(entries, first, second))


@jit
def append_record(ids, count, memo, text, start, size, key):
    """Write the ids of text[start : start + size] at ids[count] if a record has them; returns their
    number, 0 if none has."""
    entry, there = find(memo.entries, key)
    number = np.int64(0)
    if there:
        offset = np.int64(memo.entries[entry + _TWO])
        i = 0
        while i < size and memo.records[offset] == _word(text, start + i, size - i):
            i += 8
            offset += 1
        if i >= size:
            number = np.int64(memo.records[offset])
            for k in range(number):
                ids[count + k] = memo.records[offset + 1 + k]
    return number


@jit
def remember(memo, ids, count, number, key):
    """Keep up to MAX_INLINE ids, ids[count : count + number], in the entry with a key."""
    low, high = np.uint64(ids[count]), np.uint64(number) << _HIGH
    if number > 1:
        low |= np.uint64(ids[count + 1]) << _HIGH
    if number > 2:
        high |= np.uint64(ids[count + 2])
    _insert(memo.entries, key, low, high)


@jit
def remember_record(memo, ids, count, number, text, start, size, key):
    """Keep ids[count : count + number] and the pre-token text[start : start + size] in a record."""
    offset = memo.used[0]
    if offset + (size + 7) // 8 + 1 + number > memo.records.size:
        for i in range(memo.entries.size):
            memo.entries[np.uint64(i)] = _ZERO
        offset = 0
    _insert(memo.entries, key, np.uint64(offset), _ZERO)
    for i in range(0, size, 8):
        memo.records[offset] = _word(text, start + i, size - i)
        offset += 1
    memo.records[offset] = number
    for i in range(number):
        memo.records[offset + 1 + i] = ids[count + i]
    memo.used[0] = offset + 1 + number


@inline
def _word(text, start, size):
    """The next eight of `size` bytes as a word, zeros behind the last."""
    return load_word(text, start) & _KEY_MASKS[min(size, 8), 0]


@inline
def _bucket(entries, first, second):
    """The offset of the bucket for an entry's first two words."""
    mixed = folded_product(first ^ _MIX_A, second ^ _MIX_B)
    return mixed & (np.uint64(entries.size) - _BUCKET)


@inline
def _insert(entries, key, third, fourth):
    """Write an entry as the first of its bucket; the former first becomes the second."""
    entry = key.bucket
    for _ in range(4):
        entries[entry + _ENTRY] = entries[entry]
        entry += _ONE
    entry -= _ENTRY
    entries[entry], entries[entry + _ONE] = key.first, key.second
    entries[entry + _TWO], entries[entry + _THREE] = third, fourth
