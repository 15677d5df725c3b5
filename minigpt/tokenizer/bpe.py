"""Byte-level byte-pair encoding: how GPT-2 turns text into tokens.

For "low lower" and a toy vocabulary of the 256 bytes and these merges:

    l o       rank 0
    lo w      rank 1
    e r       rank 2
    Ġ low     rank 3

1. The text is split into words, each with the space before it:  "low", " lower"
2. A word is its UTF-8 bytes, one symbol a byte (Ġ writes the space):  Ġ l o w e r
3. The pair of neighbours of lowest rank is joined, again and again:
       Ġ lo w e r  →  Ġ low e r  →  Ġ low er  →  Ġlow er
4. Each symbol left is a token, and the vocabulary gives its id.

As every byte is a symbol, any text can be written, and no "unknown" token is needed; as merges
never cross words, frequent words are one token. Decoding joins the tokens' bytes again.

The merges are Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword
Units" (ACL 2016); over bytes, with this split into words, they are Radford et al., "Language
Models are Unsupervised Multitask Learners" (2019), section 2.2: the GPT-2 paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from heapq import heappop, heappush
from itertools import count
from typing import Any

# GPT-2's words: an English contraction's tail; letters, digits, or other signs, each with at most
# one space before; white space. A run of white space leaves its last space to the word after it.
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[{N}]+| ?[^\s{L}{N}]+|\s+(?!\S)|\s+"
_ASCII_WORD = re.compile(_WORD.format(L="a-zA-Z", N="0-9"), re.ASCII)

KEPT_WORDS = 1 << 16  # some 15 MB; English prose of 3 MB has 40 thousand distinct words
KEPT_LENGTH = 32  # characters; longer words are rare, and would let the text decide our memory

GONE = -1  # in `merge`: no symbol, or one swallowed by that on its left


def byte_symbols() -> list[str]:
    """The 256 characters that write bytes in vocabulary files: `symbols[b]` stands for byte b.

    A byte that prints as Latin-1 is written as itself, the others (space, control characters,
    ...) as the characters from U+0100 on, in order: a space is "Ġ", a newline "Ċ". So every
    token can be written in JSON and in lines of text without a space inside.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = count(0x100)
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def words(text: str) -> list[str]:
    """The words of `text`, which put together are the text again."""
    return (_ASCII_WORD if text.isascii() else _unicode_word()).findall(text)


# Before white space that follows something else, a word always ends: only the first character of
# a word may be a space where others follow, and none of them looks further than to its own end.
BORDER = re.compile(r"(?<=\S)[ \n]")


def pieces(text: str, size: int, border: re.Pattern[str] = BORDER) -> Iterator[str]:
    """`text` in pieces of whole words: `size` characters each, and those up to the next border."""
    start = 0
    while start < len(text):
        cut = border.search(text, start + size)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


@cache
def _unicode_word() -> Any:
    # The module `regex` knows Unicode's classes, and takes as long to load as a page to encode.
    import regex

    return regex.compile(_WORD.format(L=r"\p{L}", N=r"\p{N}"))


_BYTE_OF = {symbol: byte for byte, symbol in enumerate(byte_symbols())}


@lru_cache(maxsize=1 << 16)  # a vocabulary's worth
def token_bytes(token: str) -> bytes:
    """The bytes that `token` writes in byte symbols; one with other characters is plain text."""
    try:
        return bytes(map(_BYTE_OF.__getitem__, token))
    except KeyError:
        return token.encode("utf-8")


@dataclass(frozen=True)
class Merges:
    """Which neighbours are joined, and in which order.

    ranks   `left << 32 | right`, the ids of two neighbours, → the rank of their merge: the
            lower, the earlier. One number takes half the time and memory of a pair.
    joined  rank → the id of the two joined
    """

    ranks: dict[int, int]
    joined: list[int]


def merge(symbols: list[int], merges: Merges) -> list[int]:
    """Joins neighbours until no two of them have a merge, the lowest rank first.

    One round merges every place where the pair of lowest rank stands, from left to right, as
    GPT-2's own encoder does (Sennrich et al. 2016, algorithm 1, applied). Instead of searching
    the whole word in each round, it keeps for each rank the places where that pair was seen, and
    a heap of those ranks: n symbols take O(n log n) steps, whatever they are.

    symbols  the ids of single bytes
    returns  the ids of tokens
    """
    n = len(symbols)
    # A ring over the positions: symbols[n], which is GONE, stands between the last and the first.
    symbols = [*symbols, GONE]
    left = [n, *range(n)]
    right = [*range(1, n + 1), 0]
    places: dict[int, list[int]] = {}  # rank → positions of the left symbol
    heap: list[int] = []  # the ranks in places

    def rank_at(i: int) -> int | None:
        # With GONE, -1, on either side this is negative, and no merge's.
        return merges.ranks.get(symbols[i] << 32 | symbols[right[i]])

    def note(i: int) -> None:
        rank = rank_at(i)
        if rank is None:
            return
        if rank not in places:
            places[rank] = []
            heappush(heap, rank)
        places[rank].append(i)

    for i in range(n):
        note(i)
    while heap:
        rank = heappop(heap)
        for i in sorted(places.pop(rank)):
            if rank_at(i) != rank:
                continue  # a neighbour was merged since this place was noted
            j = right[i]
            symbols[i], symbols[j] = merges.joined[rank], GONE
            right[i] = right[j]
            left[right[i]] = i
            note(left[i])
            note(i)
    return [symbol for symbol in symbols if symbol != GONE]


class PretokenIds(dict[str, list[int]]):
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
