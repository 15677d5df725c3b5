"""bpe.py, compiled: the same ids, for texts that are long enough to load the compiled code for.

kernels/splitting.py finds the words, and kernels/merging.py their ids.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import regex

from ..kernels.bpe.merge import LONGEST, NO_PAIR, NO_RANK, Tables, encode_pretokens, enter_pairs
from ..kernels.bpe.pretokenize import CODE_POINTS, DIGIT, LETTER, WHITE
from .bpe import Merges, merge

MOST_SEEN = 1 << 15  # words of a text that are remembered at a time: 1 MiB


def make_tables(byte_ids: list[int], merges: Merges) -> Tables:
    """The vocabulary as compiled code reads it, some 3 MiB for GPT-2's; takes a tenth of a second.

    byte_ids, merges  see vocabulary.py, by which they are checked
    """
    slots = 1 << (2 * len(merges.joined)).bit_length()
    tables = Tables(
        kinds=character_kinds(),
        byte_ids=np.array(byte_ids, np.int32),
        pairs=np.full(slots, NO_PAIR, np.int64),
        ranks=np.full(slots, NO_RANK, np.int32),
        joined=np.array(merges.joined, np.int32),
    )
    pairs = np.fromiter(merges.ranks, np.int64)
    ranks = np.fromiter(merges.ranks.values(), np.int64)
    enter_pairs(tables, pairs[np.argsort(ranks)])
    return tables


@cache
def character_kinds() -> np.ndarray:
    """The kind of each character for the split into words, uint8 [CODE_POINTS].

    Taken from the module regex and its version of Unicode, by which bpe.py splits.
    """
    characters = np.arange(CODE_POINTS, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    kinds = np.zeros(CODE_POINTS, np.uint8)
    for kind, pattern in ((LETTER, r"\p{L}+"), (DIGIT, r"\p{N}+"), (WHITE, r"\s+")):
        for run in regex.finditer(pattern, characters):
            kinds[run.start() : run.end()] = kind
    return kinds


def encode(text: str, tables: Tables, merges: Merges) -> np.ndarray:
    """The ids of `text`, int32 [T]; `tables` are those of `merges`.

    Words longer than LONGEST, which no language has, are left to `bpe.merge`: its time is nearly
    linear in their length. Raises UnicodeEncodeError for a lone surrogate.
    """
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    ids = np.empty(data.size, np.int32)  # a byte makes no more than one
    seen = np.zeros((min(MOST_SEEN, 1 << data.size.bit_length()), 4), np.int64)
    work = np.empty((2, LONGEST), np.int32)
    start = count = 0
    while start < data.size:
        start, end, count = encode_pretokens(ids, count, data, start, tables, seen, work)
        long_word = merge(tables.byte_ids[data[start:end]].tolist(), merges)  # none at the end
        ids[count : count + len(long_word)] = long_word
        start, count = end, count + len(long_word)
    return ids[:count]
