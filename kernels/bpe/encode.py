"""Texts to ids: pre-tokens, each looked up in the memo, or merged."""

from __future__ import annotations

import numpy as np

from ..jit import entry, jit
from ..simd import BLOCK, trailing_zeros
from .memo import (
    MAX_INLINE,
    MAX_KEY,
    Key,
    append_inline,
    append_record,
    find,
    key_of,
    record_key,
    remember,
    remember_record,
    size_of,
)
from .merge import MAX_SHORT, merge_long, merge_short
from .pretokenize import mark_boundaries

CHUNK = 1024  # bytes of a text whose keys are made before the first is looked up
KEY_SIZE = 4  # words of a key that is kept: of the Key, and the end of the pre-token
_ZERO, _ONE, _TWO, _THREE, _STEP = (np.uint64(n) for n in (0, 1, 2, 3, KEY_SIZE))


@entry
def encode_texts(ids, ends, text, starts, sizes, tables, memo, boundaries, keys, workspace, room):
    """Encode texts one after the other.

    ids         int64 [N + MAX_INLINE], where N is the bytes of all texts: their ids
    ends        int64 [D], becomes the offset in `ids` behind those of each text
    text        uint8, the bytes of the texts as `mark_boundaries` takes them
    starts      int64 [D], where each text begins
    sizes       int64 [D], its bytes
    boundaries  uint64, a bit for each byte of the longest text and one more
    keys        uint64 [CHUNK · KEY_SIZE]
    workspace   int32 [2, MAX_SHORT]
    room        int64 [room_for(n)] for pre-tokens of up to n bytes; room[0] becomes the bytes of
                the longest pre-token if it has no room, and then the ids are not to be used
    """
    room[0] = 0
    count = 0
    for i in range(starts.size):
        start, size = starts[i], sizes[i]
        mark_boundaries(boundaries, text, start, size, tables.kinds)
        first = start  # of the next pre-token
        for chunk in range(0, size + 1, CHUNK):
            words, first = _make_keys(
                keys, text, start, chunk, min(chunk + CHUNK, size + 1), first, boundaries, memo
            )
            count = _append_ids(ids, count, keys, words, text, tables, memo, workspace, room)
        ends[i] = count


@jit
def _make_keys(keys, text, start, begin, end, first, boundaries, memo):
    """Write the keys of the pre-tokens that end at offsets begin … end - 1 of the text at `start`.

    A look-up waits for memory. So the keys of a chunk are made, and what they will find is asked
    for, before the first is looked up.

    first  where the first of them begins

    Returns the number of words written, and where the next pre-token begins.
    """
    at = _ZERO
    for offset in range(begin, end, BLOCK):
        marks = boundaries[np.uint64(offset) // np.uint64(BLOCK)]
        while marks != _ZERO:
            last = start + offset + trailing_zeros(marks)
            marks &= marks - _ONE
            key = key_of(memo.entries, text, first, last - first)
            keys[at], keys[at + _ONE], keys[at + _TWO] = key.first, key.second, key.bucket
            keys[at + _THREE] = last
            at += _STEP
            first = last
    return at, first


@jit
def _append_ids(ids, count, keys, words, text, tables, memo, workspace, room):
    """Append the ids of the pre-tokens with these keys at ids[count]; returns the new count."""
    for at in range(_ZERO, words, _STEP):
        key = Key(keys[at], keys[at + _ONE], keys[at + _TWO])
        found, there = find(memo.entries, key)
        if there:
            count += np.int64(append_inline(ids, np.uint64(count), memo.entries, found))
        else:
            size = size_of(key.second)
            start = np.int64(keys[at + _THREE]) - size
            count += _append_other(
                ids, count, text, start, size, key, tables, memo, workspace, room
            )
    return count


@jit
def _append_other(ids, count, text, start, size, key, tables, memo, workspace, room):
    """Append the ids of a pre-token that no entry holds; returns their number."""
    if size > MAX_SHORT:
        return merge_long(ids, count, text, start, start + size, tables, room)
    in_record = record_key(memo.entries, text, start, size, key)
    number = append_record(ids, count, memo, text, start, size, in_record)
    if number == 0:
        number = merge_short(ids, count, text, start, start + size, tables, workspace)
        if size <= MAX_KEY and number <= MAX_INLINE:
            remember(memo, ids, count, number, key)
        else:
            remember_record(memo, ids, count, number, text, start, size, in_record)
    return number
