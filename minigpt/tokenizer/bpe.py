"""Byte-level byte-pair encoding (BPE), GPT-2's way from text to tokens.

For "low lower" and a toy vocabulary of the 256 bytes and these merges:

    l o       rank 0
    lo w      rank 1
    e r       rank 2
    Ġ low     rank 3

1. The text is split into pre-tokens, each with the space before it:  "low", " lower"
2. A pre-token becomes its UTF-8 bytes, one symbol a byte (Ġ is the space):  Ġ l o w e r
3. The adjacent pair of lowest rank is merged, again and again:
       Ġ lo w e r  →  Ġ low e r  →  Ġ low er  →  Ġlow er
4. Each remaining symbol is a token, and the vocabulary has its id.

As every byte is a symbol, any text can be encoded, and there is no "unknown" token. Merges never
cross the boundary of a pre-token. Decoding concatenates the bytes of the tokens.

The merges are those of Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with
Subword Units" (ACL 2016); bytes and pre-tokens are those of Radford et al., "Language Models are
Unsupervised Multitask Learners" (2019), section 2.2: the GPT-2 paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from heapq import heappop, heappush
from itertools import count
from typing import Any

# GPT-2's pre-tokens: the suffix of an English contraction; letters, digits, or other characters,
# each with at most one space before; white space. Of a run of white space, the last space belongs
# to the pre-token after it.
_PRETOKEN = r"'s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[{N}]+| ?[^\s{L}{N}]+|\s+(?!\S)|\s+"
_ASCII_PRETOKEN = re.compile(_PRETOKEN.format(L="a-zA-Z", N="0-9"), re.ASCII)

# Entries of the memo: about 15 MB. English prose of 3 MB has 40 thousand distinct pre-tokens.
MEMO_SIZE = 1 << 16
MEMO_MAX_LENGTH = 32  # characters of a pre-token in it: longer ones are rare, and could fill memory

_NO_SYMBOL = -1  # in `merge`: a symbol that was merged into the one on its left


def byte_symbols() -> list[str]:
    """The 256 characters that stand for bytes in vocabulary files: `symbols[b]` for byte b.

    A byte that is a printable character of Latin-1 stands for itself; the others (space, control
    characters, …) are mapped in order to the characters from U+0100 on: space is "Ġ", newline "Ċ".
    So no token in a JSON file or a line of text contains white space.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = count(0x100)
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def pretokenize(text: str) -> list[str]:
    """The pre-tokens of `text`; concatenated, they are the text."""
    return (_ASCII_PRETOKEN if text.isascii() else _unicode_pretoken()).findall(text)


@cache
def _unicode_pretoken() -> Any:
    # The module `regex` knows Unicode's classes, but takes as long to load as a page to encode.
    import regex

    return regex.compile(_PRETOKEN.format(L=r"\p{L}", N=r"\p{N}"))


# A pre-token always ends before white space that follows another character: only its first
# character may be a space before others, and no alternative looks ahead beyond its own end.
BOUNDARY = re.compile(r"(?<=\S)[ \n]")


def chunks(text: str, size: int, boundary: re.Pattern[str] = BOUNDARY) -> Iterator[str]:
    """Yield `text` in chunks of whole pre-tokens: `size` characters, up to the next boundary."""
    start = 0
    while start < len(text):
        cut = boundary.search(text, start + size)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


_BYTE_OF = {symbol: byte for byte, symbol in enumerate(byte_symbols())}


@lru_cache(maxsize=1 << 16)  # more than the tokens of a vocabulary
def token_bytes(token: str) -> bytes:
    """The bytes of a token in byte symbols; those of its UTF-8 if it has another character."""
    try:
        return bytes(map(_BYTE_OF.__getitem__, token))
    except KeyError:
        return token.encode("utf-8")


@dataclass(frozen=True)
class Merges:
    """The merges of a vocabulary, over ids.

    ranks   {left << 32 | right: rank}, for the ids of two adjacent symbols; the lowest rank is
            merged first. An int as key takes half the time and memory of a pair
    merged  rank → id of the symbol that the two become
    """

    ranks: dict[int, int]
    merged: list[int]


def merge(symbols: list[int], merges: Merges) -> list[int]:
    """Merge adjacent symbols, the pair of lowest rank first, until no pair has a merge.

    symbols  the ids of single bytes

    Returns the ids of the tokens. A round merges all occurrences of the pair of lowest rank, from
    left to right, as GPT-2's encoder does (Sennrich et al. 2016, algorithm 1, applied). Rather than
    searching the symbols in each round, a dict holds the positions at which each rank was found,
    and a heap its ranks: n symbols take O(n log n) time in the worst case.
    """
    n = len(symbols)
    # A circular linked list; symbols[n], a _NO_SYMBOL, lies between the last symbol and the first.
    symbols = [*symbols, _NO_SYMBOL]
    left = [n, *range(n)]
    right = [*range(1, n + 1), 0]
    positions: dict[int, list[int]] = {}  # rank → positions of the left symbol of the pair
    heap: list[int] = []  # the ranks in `positions`

    def rank_at(i: int) -> int | None:
        # With _NO_SYMBOL, -1, on either side the key is negative, which no merge has.
        return merges.ranks.get(symbols[i] << 32 | symbols[right[i]])

    def push(i: int) -> None:
        rank = rank_at(i)
        if rank is None:
            return
        if rank not in positions:
            positions[rank] = []
            heappush(heap, rank)
        positions[rank].append(i)

    for i in range(n):
        push(i)
    while heap:
        rank = heappop(heap)
        for i in sorted(positions.pop(rank)):
            if rank_at(i) != rank:
                continue  # one of the pair was merged since
            j = right[i]
            symbols[i], symbols[j] = merges.merged[rank], _NO_SYMBOL
            right[i] = right[j]
            left[right[i]] = i
            push(left[i])
            push(i)
    return [symbol for symbol in symbols if symbol != _NO_SYMBOL]


class PretokenIds(dict[str, list[int]]):
    """A memo {pre-token: its ids} that merges what it does not hold yet: prose is mostly look-ups.

    Bounded: pre-tokens longer than MEMO_MAX_LENGTH are not stored, and a full memo is cleared.
    """

    def __init__(self, byte_ids: list[int], merges: Merges) -> None:
        super().__init__()
        self._byte_ids = byte_ids
        self._merges = merges

    def __missing__(self, pretoken: str) -> list[int]:
        ids = merge([self._byte_ids[b] for b in pretoken.encode("utf-8")], self._merges)
        if len(pretoken) <= MEMO_MAX_LENGTH:
            if len(self) >= MEMO_SIZE:
                self.clear()
            self[pretoken] = ids
        return ids
