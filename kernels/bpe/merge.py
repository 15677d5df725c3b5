"""The merges of byte-pair encoding, from UTF-8 bytes to ids (see minigpt/tokenizer/bpe.py).

Most pre-tokens of a text occur in it many times. The memo is a hash table of those merged so far:
where one last occurred in the text and where its ids are, four integers whatever its length. A
pre-token overwrites another with the same hash, which is merged again when it next occurs: a text
made of collisions is encoded slower, but not wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit import entry, inline, jit
from .pretokenize import pretoken_end

MAX_PRETOKEN = 1024  # bytes; longer pre-tokens are left to Python: the time grows with the square
NO_PAIR = -1
NO_RANK = np.iinfo(np.int32).max


class Tables(NamedTuple):
    """A vocabulary and Unicode's character kinds, for compiled code.

    kinds     uint8 [CODE_POINTS], see pretokenize.py
    byte_ids  int32 [256], the ids of single bytes
    pairs     int64 [2^k], a hash table, at most half full, of the pairs of ids that merge:
              left << 32 | right, or NO_PAIR in an empty slot
    ranks     int32 [2^k], the rank of the pair in the slot; NO_RANK in an empty one
    merged    int32 [R], the id that the pair of each rank merges to
    """

    kinds: np.ndarray
    byte_ids: np.ndarray
    pairs: np.ndarray
    ranks: np.ndarray
    merged: np.ndarray


@entry
def insert_pairs(tables, pairs):
    """Insert `pairs`, int64 [R], distinct and in the order of their ranks, into empty tables."""
    for rank in range(pairs.size):
        slot = _slot(tables, pairs[rank])
        tables.pairs[slot] = pairs[rank]
        tables.ranks[slot] = rank


@entry
def encode_pretokens(ids, count, text, start, tables, memo, workspace):
    """Encode the pre-tokens of text[start:], up to the first longer than MAX_PRETOKEN.

    ids        int32 [N], of which the first `count` are written; new ids follow them
    text       uint8 [N], valid UTF-8
    memo       int64 [2^k, 4], zero before the first call for a text: start and end of a pre-token
               in the text, start and end of its ids
    workspace  int32 [2, MAX_PRETOKEN]

    Returns (start, end, count): the pre-token where it stopped, empty at the end of the text, and
    the new number of ids.
    """
    end = start
    while start < text.size and end - start <= MAX_PRETOKEN:
        end = pretoken_end(text, start, tables.kinds)
        if end - start <= MAX_PRETOKEN:
            slot = _hash(text, start, end) & (len(memo) - 1)
            if _same(text, start, end, memo[slot, 0], memo[slot, 1]):
                n = _copy(ids, count, memo[slot, 2], memo[slot, 3])
            else:
                n = _merge(ids, count, text, start, end, tables, workspace)
                memo[slot, 0], memo[slot, 1] = start, end
                memo[slot, 2], memo[slot, 3] = count, count + n
            start = end
            count += n
    return start, end, count


@jit
def _hash(text, start, end):
    """FNV-1a (Fowler, Noll, Vo) of text[start:end], with the high bits folded into the low ones."""
    h = 0x4BF29CE484222325
    for i in range(start, end):
        h = (h ^ text[i]) * 0x100000001B3
    return h ^ h >> 32


@jit
def _same(text, start, end, other_start, other_end):
    """Whether text[start:end] equals text[other_start:other_end]."""
    same = end - start == other_end - other_start
    i = 0
    while same and start + i < end:
        same = text[start + i] == text[other_start + i]
        i += 1
    return same


@jit
def _copy(ids, count, first, end):
    """Append ids[first:end] at ids[count]; returns their number."""
    for i in range(end - first):
        ids[count + i] = ids[first + i]
    return end - first


@jit
def _merge(ids, count, text, start, end, tables, workspace):
    """Append the ids of the pre-token text[start:end] at ids[count]; returns their number.

    Each round merges all occurrences of the pair with the lowest rank, from left to right. ranks[i]
    is the rank of the pair (symbols[i], symbols[i + 1]).
    """
    symbols, ranks = workspace[0], workspace[1]
    n = end - start
    for i in range(n):
        symbols[i] = tables.byte_ids[text[start + i]]
    for i in range(n - 1):
        ranks[i] = _rank(tables, symbols[i], symbols[i + 1])
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


@inline
def _rank(tables, left, right):
    """The rank of a pair; NO_RANK if it does not merge."""
    return tables.ranks[_slot(tables, np.int64(left) << 32 | np.int64(right))]


@inline
def _slot(tables, pair):
    """The slot of `pair` in the hash table, or the empty one for it: linear probing."""
    last = tables.pairs.size - 1
    slot = (pair * 0x1E3779B97F4A7C15) >> 32 & last
    while tables.pairs[slot] != pair and tables.pairs[slot] != NO_PAIR:
        slot = (slot + 1) & last
    return slot
