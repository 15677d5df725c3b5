"""The merges of byte-pair encoding, from the bytes of a pre-token to its ids.

Each round merges all occurrences of the pair with the lowest rank, from left to right, as
minigpt/tokenizer/bpe.py explains. A short pre-token is searched for it in every round, which is
fastest; of a long one a heap holds the pairs, so that n bytes take O(n log n) time at most.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit import entry, inline, jit

MAX_SHORT = 256  # bytes of a pre-token that is searched
NO_PAIR = -1
NO_RANK = np.iinfo(np.int32).max
_ONE, _TWO, _HALF = np.uint64(1), np.uint64(2), np.uint64(32)
_ROOM_PER_BYTE = 9  # elements
_NO_SYMBOL = -1  # a symbol that was merged into the one on its left; it is in no pair


class Tables(NamedTuple):
    """A vocabulary and Unicode's character kinds, for compiled code.

    kinds       uint8 [CODE_POINTS], see pretokenize.py
    byte_ids    int32 [256], the ids of single bytes
    byte_ranks  int32 [256 · 256], the ranks of pairs of bytes; NO_RANK where they do not merge
    pairs       int64 [2^k · 2], a hash table, at most half full, of the pairs of ids that merge:
                left << 32 | right and the rank; NO_PAIR and NO_RANK in an empty slot
    merged      int32 [R], the id that the pair of each rank merges to
    """

    kinds: np.ndarray
    byte_ids: np.ndarray
    byte_ranks: np.ndarray
    pairs: np.ndarray
    merged: np.ndarray


@entry
def insert_pairs(tables, pairs):
    """Insert `pairs`, int64 [R], distinct and in the order of their ranks, into tables whose
    `pairs` are empty; then fill `byte_ranks`."""
    for rank in range(pairs.size):
        slot = _slot(tables.pairs, pairs[rank])
        tables.pairs[slot], tables.pairs[slot + _ONE] = pairs[rank], rank
    for a in range(256):
        for b in range(256):
            tables.byte_ranks[a << 8 | b] = _rank(tables, tables.byte_ids[a], tables.byte_ids[b])


@jit
def merge_short(ids, count, text, start, end, tables, workspace):
    """Append the ids of a pre-token of up to MAX_SHORT bytes, text[start:end], at ids[count].

    ids        int64 [N], with room for one id a byte
    workspace  int32 [2, MAX_SHORT]

    Returns their number. ranks[i] is the rank of the pair (symbols[i], symbols[i + 1]).
    """
    symbols, ranks = workspace[0], workspace[1]
    n = end - start
    for i in range(n):
        symbols[i] = tables.byte_ids[text[start + i]]
    for i in range(n - 1):
        ranks[i] = tables.byte_ranks[np.int64(text[start + i]) << 8 | text[start + i + 1]]
    ranks[n - 1] = NO_RANK
    lowest = _lowest(ranks, n)
    while lowest != NO_RANK:
        n = _merge_round(symbols, ranks, n, lowest, tables)
        lowest = _lowest(ranks, n)
    for i in range(n):
        ids[count + i] = symbols[i]
    return n


@jit
def _merge_round(symbols, ranks, n, lowest, tables):
    """Merge the pairs of rank `lowest` among n symbols, in place; returns the number left."""
    i, left, after_merge = 0, 0, False
    while i < n:
        merge = ranks[i] == lowest
        symbols[left] = tables.merged[lowest] if merge else symbols[i]
        if left > 0 and (merge or after_merge):  # otherwise the pair and its rank are unchanged
            ranks[left - 1] = _rank(tables, symbols[left - 1], symbols[left])
        ranks[left] = ranks[i]
        i += 2 if merge else 1
        left += 1
        after_merge = merge
    ranks[left - 1] = NO_RANK
    return left


@jit
def _lowest(ranks, n):
    """The lowest of the first n ranks."""
    lowest = NO_RANK
    for i in range(n):
        lowest = min(lowest, ranks[i])
    return lowest


# ---- long pre-tokens -------------------------------------------------------------------------


def room_for(size: int) -> int:
    """The elements of `room` for pre-tokens of up to `size` bytes."""
    return 1 + _ROOM_PER_BYTE * (size + 1)


@jit
def merge_long(ids, count, text, start, end, tables, room):
    """`merge_short` for any length, with a heap of all pairs, as rank << 32 | position of the left
    symbol.

    room  int64 [room_for(n)]; a pre-token of more than n bytes has no ids, and room[0] becomes its
          bytes if it is the longest

    right[i] and left[i] are the positions of the neighbours of the symbol at i. A pair in the heap
    may have been merged since; it is skipped when it comes.
    """
    n = end - start
    if room.size < 1 + _ROOM_PER_BYTE * (n + 1):
        room[0] = max(room[0], n)
        return 0
    size = n + 1
    symbols, right, left = room[1 : 1 + size], room[1 + size :], room[1 + 2 * size :]
    # n pairs at first, and two more from each merge
    heap, pairs = room[1 + 3 * size :], room[1 + 6 * size :]
    for i in range(size):
        right[i], left[i] = i + 1, i - 1
    left[0], symbols[n] = n, _NO_SYMBOL  # so that both ends have the neighbour symbols[n]
    size = 0
    for i in range(n):
        symbols[i] = tables.byte_ids[text[start + i]]
    for i in range(n - 1):
        size = _push_pair(heap, size, symbols, i, i + 1, tables)
    while size > 0:
        rank, found = heap[0] >> 32, 0
        while size > 0 and heap[0] >> 32 == rank:
            pairs[found] = heap[0] & 0xFFFFFFFF
            found += 1
            size = _pop(heap, size)
        for k in range(found):
            i = pairs[k]
            j = right[i]
            if _rank(tables, symbols[i], symbols[j]) == rank:
                symbols[i], symbols[j] = tables.merged[rank], _NO_SYMBOL
                right[i] = right[j]
                left[right[i]] = i
                size = _push_pair(heap, size, symbols, left[i], i, tables)
                size = _push_pair(heap, size, symbols, i, right[i], tables)
    number = 0
    for i in range(n):
        if symbols[i] != _NO_SYMBOL:
            ids[count + number] = symbols[i]
            number += 1
    return number


@jit
def _push_pair(heap, size, symbols, i, j, tables):
    """Push the pair of the symbols at i and j if it merges; returns the size of the heap."""
    rank = np.int64(_rank(tables, symbols[i], symbols[j]))
    if rank == NO_RANK:
        return size
    item, at = rank << 32 | i, size
    while at > 0 and heap[(at - 1) >> 1] > item:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = item
    return size + 1


@jit
def _pop(heap, size):
    """Remove heap[0], the lowest; returns the size of the heap."""
    size -= 1
    item, at, child = heap[size], 0, 1
    while child < size:
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= item:
            break
        heap[at] = heap[child]
        at, child = child, 2 * child + 1
    heap[at] = item
    return size


# ---- pairs -----------------------------------------------------------------------------------


@inline
def _rank(tables, left, right):
    """The rank of a pair; NO_RANK if it does not merge."""
    slot = _slot(tables.pairs, np.int64(left) << 32 | np.int64(right))
    return np.int32(tables.pairs[slot + _ONE])


@inline
def _slot(pairs, pair):
    """The offset of `pair` in the hash table, or of the empty slot for it: linear probing."""
    last = np.uint64(pairs.size - 2)
    slot = np.uint64(pair * 0x1E3779B97F4A7C15) >> _HALF & last
    while pairs[slot] != pair and pairs[slot] != NO_PAIR:
        slot = slot + _TWO & last
    return slot
