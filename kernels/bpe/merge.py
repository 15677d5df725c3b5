"""Byte-pair encoding, compiled: from UTF-8 bytes to ids. minigpt/bpe.py tells the algorithm.

Most words of a text have stood in it before. `seen` holds, by a hash of its bytes, where a word
last stood in the text, and where its ids are: four numbers, however long it is. Words of one hash
drive each other out, and are then merged again; that is all that a crafted text can bring about.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..jit import entry, inline, jit
from .pretokenize import pretoken_end

LONGEST = 1024  # bytes of a word that is merged here: the time grows with their square
NO_PAIR = -1
NO_RANK = np.iinfo(np.int32).max


class Tables(NamedTuple):
    """What a vocabulary says, and Unicode.

    kinds     uint8 [CODE_POINTS], see splitting.py
    byte_ids  int32 [256], the ids of single bytes
    pairs     int64 [2^k], a hash table, at most half full, of neighbours that are joined:
              left << 32 | right, or NO_PAIR in an empty slot
    ranks     int32 [2^k], the rank of the pair in the slot; NO_RANK in an empty one
    joined    int32 [R], rank → the id of the two joined
    """

    kinds: np.ndarray
    byte_ids: np.ndarray
    pairs: np.ndarray
    ranks: np.ndarray
    joined: np.ndarray


@entry
def enter_pairs(tables, pairs):
    """Enter `pairs`, int64 [R], by rank and each once, into tables that hold none."""
    for rank in range(pairs.size):
        slot = _slot(tables, pairs[rank])
        tables.pairs[slot] = pairs[rank]
        tables.ranks[slot] = rank


@entry
def encode_pretokens(ids, count, text, start, tables, seen, work):
    """Encode the words of text[start:], up to one that is longer than LONGEST, or to the end.

    ids    int32 [N], of which `count` are there; those of the words follow
    text   uint8 [N], UTF-8 without flaw
    seen   int64 [2^k, 4], zero before the first call for a text: first byte and end of a word,
           first and end of its ids
    work   int32 [2, LONGEST], working memory

    returns  where it stopped, the end of the word there, and the new count of ids
    """
    end = start
    while start < text.size and end - start <= LONGEST:
        end = pretoken_end(text, start, tables.kinds)
        if end - start <= LONGEST:
            slot = _hash(text, start, end) & (len(seen) - 1)
            if _same(text, start, end, seen[slot, 0], seen[slot, 1]):
                n = _copy(ids, count, seen[slot, 2], seen[slot, 3])
            else:
                n = _merge(ids, count, text, start, end, tables, work)
                seen[slot, 0], seen[slot, 1] = start, end
                seen[slot, 2], seen[slot, 3] = count, count + n
            start = end
            count += n
    return start, end, count


@jit
def _hash(text, start, end):
    """FNV-1a (Fowler, Noll, Vo) of text[start:end], its high bits folded into the low ones."""
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
    """ids[first:end] once more, from ids[count] on; returns how many."""
    for i in range(end - first):
        ids[count + i] = ids[first + i]
    return end - first


@jit
def _merge(ids, count, text, start, end, tables, work):
    """The ids of the word text[start:end], from ids[count] on; returns how many.

    Each round merges every place where the pair of lowest rank stands, from left to right.
    ranks[i] is that of symbols[i] and symbols[i + 1].
    """
    symbols, ranks = work[0], work[1]
    n = end - start
    for i in range(n):
        symbols[i] = tables.byte_ids[text[start + i]]
    for i in range(n - 1):
        ranks[i] = _rank(tables, symbols[i], symbols[i + 1])
    ranks[n - 1] = NO_RANK
    lowest = _lowest(ranks, n)
    while lowest != NO_RANK:
        n = _round(symbols, ranks, n, lowest, tables)
        lowest = _lowest(ranks, n)
    for i in range(n):
        ids[count + i] = symbols[i]
    return n


@jit
def _round(symbols, ranks, n, lowest, tables):
    """Merges the pairs of rank `lowest`; what is left moves up. Returns how many that is."""
    i, kept, beside = 0, 0, False
    while i < n:
        merged = ranks[i] == lowest
        symbols[kept] = tables.joined[lowest] if merged else symbols[i]
        if kept > 0 and (merged or beside):  # else the two were neighbours before
            ranks[kept - 1] = _rank(tables, symbols[kept - 1], symbols[kept])
        ranks[kept] = ranks[i]
        i += 2 if merged else 1
        kept += 1
        beside = merged
    ranks[kept - 1] = NO_RANK
    return kept


@jit
def _lowest(ranks, n):
    lowest = NO_RANK
    for i in range(n):
        lowest = min(lowest, ranks[i])
    return lowest


@inline
def _rank(tables, left, right):
    """The rank of two neighbours; NO_RANK where they are not joined."""
    return tables.ranks[_slot(tables, np.int64(left) << 32 | np.int64(right))]


@inline
def _slot(tables, pair):
    """Where `pair` is in the table, or would be: multiplicative hashing, linear probing."""
    last = tables.pairs.size - 1
    slot = (pair * 0x1E3779B97F4A7C15) >> 32 & last
    while tables.pairs[slot] != pair and tables.pairs[slot] != NO_PAIR:
        slot = (slot + 1) & last
    return slot
