"""Byte-pair encoding of one word, and the alphabet and the split that go before it.

Nothing here knows about files: `tokenizer.py` reads the vocabulary and calls these.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count, pairwise

import regex

# (left id, right id) → (rank, id of the two joined); the lower the rank, the earlier it is merged
Merges = dict[tuple[int, int], tuple[int, int]]

# GPT-2's words: an English contraction's tail; letters, digits, or other signs, each with at most
# one space before; white space. A run of white space leaves its last space to the word after it.
WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

KEPT_WORDS = 1 << 16  # some 15 MB; English prose of 3 MB has 40 thousand distinct words
KEPT_LENGTH = 32  # characters; longer words are rare, and would let the text decide our memory

GONE = -1  # in `merge`: a symbol swallowed by the one on its left


def byte_symbols() -> list[str]:
    """The 256 characters that write bytes in vocabulary files: `symbols[b]` stands for byte b.

    A byte that prints as Latin-1 is written as itself, the others (space, control characters,
    ...) as the characters from U+0100 on, in order: a space is "Ġ", a newline "Ċ". So every
    token can be written in JSON and in lines of text without a space inside.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = count(0x100)
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def merge(symbols: list[int], merges: Merges) -> list[int]:
    """Joins neighbours until no pair of them is in `merges`, the lowest rank first.

    One round merges every place where the pair of lowest rank stands, from left to right, as
    GPT-2's own encoder does (Sennrich et al. 2016, algorithm 1, applied). Instead of searching
    the whole word in each round, it keeps for each rank the places where that pair was seen, and
    a heap of those ranks: n symbols take O(n log n) steps, whatever they are.
    """
    n = len(symbols)
    # A linked list over the positions. The extra entry, GONE, ends it on both sides: it is
    # symbols[n], right of the last symbol, and symbols[-1], left of the first.
    symbols = [*symbols, GONE]
    left = list(range(-1, n))
    right = list(range(1, n + 2))

    places: dict[int, list[int]] = {}
    for i, pair in enumerate(pairwise(symbols)):
        if pair in merges:
            places.setdefault(merges[pair][0], []).append(i)
    ranks = sorted(places)  # a sorted list is a heap

    while ranks:
        rank = heappop(ranks)
        for i in sorted(places.pop(rank)):
            j = right[i]
            found = merges.get((symbols[i], symbols[j]))
            if found is None or found[0] != rank:
                continue  # a neighbour was merged since this place was noted
            symbols[i], symbols[j] = found[1], GONE
            k = right[i] = right[j]
            left[k] = i
            for a, b in ((left[i], i), (i, k)):
                new = merges.get((symbols[a], symbols[b]))
                if new is None:
                    continue
                if new[0] not in places:
                    places[new[0]] = []
                    heappush(ranks, new[0])
                places[new[0]].append(a)
    return [symbol for symbol in symbols if symbol != GONE]


class WordIds(dict[str, list[int]]):
    """word → its ids: computed when first asked for, then kept, so that prose is mostly look-ups.

    Bounded: words longer than KEPT_LENGTH are not kept, and at KEPT_WORDS it starts afresh.
    """

    def __init__(self, byte_ids: list[int], merges: Merges) -> None:
        super().__init__()
        self._byte_ids = byte_ids
        self._merges = merges

    def __missing__(self, word: str) -> list[int]:
        ids = merge([self._byte_ids[b] for b in word.encode("utf-8")], self._merges)
        if len(word) <= KEPT_LENGTH:
            if len(self) >= KEPT_WORDS:
                self.clear()
            self[word] = ids
        return ids
