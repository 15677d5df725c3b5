"""bpe.py, compiled: the same ids, faster, for texts long enough to repay loading the machine code.

kernels/bpe/pretokenize.py finds the pre-tokens, kernels/bpe/merge.py merges them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import regex

from ..kernels.bpe.merge import (
    MAX_PRETOKEN,
    NO_PAIR,
    NO_RANK,
    Tables,
    encode_pretokens,
    insert_pairs,
)
from ..kernels.bpe.pretokenize import CODE_POINTS, DIGIT, LETTER, WHITE
from ..kernels.threads import call
from .bpe import Merges, merge

MAX_MEMO = 1 << 15  # entries of the memo of pre-tokens of a text: 1 MiB


def make_tables(byte_ids: list[int], merges: Merges) -> Tables:
    """A vocabulary for the compiled code: for GPT-2's some 3 MiB, made in a tenth of a second.

    byte_ids, merges  checked, as those of a `Vocabulary` are
    """
    slots = 1 << (2 * len(merges.merged)).bit_length()
    tables = Tables(
        kinds=character_kinds(),
        byte_ids=np.array(byte_ids, np.int32),
        pairs=np.full(slots, NO_PAIR, np.int64),
        ranks=np.full(slots, NO_RANK, np.int32),
        merged=np.array(merges.merged, np.int32),
    )
    pairs = np.fromiter(merges.ranks, np.int64)
    ranks = np.fromiter(merges.ranks.values(), np.int64)
    call(insert_pairs, tables, pairs[np.argsort(ranks)])
    return tables


@cache
def character_kinds() -> np.ndarray:
    """The kind of each character for pre-tokenization, uint8 [CODE_POINTS].

    From the module regex and its version of Unicode, which bpe.py splits by.
    """
    characters = np.arange(CODE_POINTS, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    kinds = np.zeros(CODE_POINTS, np.uint8)
    for kind, pattern in ((LETTER, r"\p{L}+"), (DIGIT, r"\p{N}+"), (WHITE, r"\s+")):
        for run in regex.finditer(pattern, characters):
            kinds[run.start() : run.end()] = kind
    return kinds


def encode(text: str, tables: Tables, merges: Merges) -> np.ndarray:
    """The ids of `text`, int32 [T].

    tables  made of `merges` by `make_tables`

    Pre-tokens longer than MAX_PRETOKEN bytes, which no language has, are left to `bpe.merge`, whose
    time is nearly linear in their length. Raises UnicodeEncodeError for a lone surrogate.
    """
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    ids = np.empty(data.size, np.int32)  # at most one a byte
    memo = np.zeros((min(MAX_MEMO, 1 << data.size.bit_length()), 4), np.int64)
    workspace = np.empty((2, MAX_PRETOKEN), np.int32)
    start = count = 0
    while start < data.size:
        start, end, count = call(encode_pretokens, ids, count, data, start, tables, memo, workspace)
        long_ids = merge(tables.byte_ids[data[start:end]].tolist(), merges)  # none at the end
        ids[count : count + len(long_ids)] = long_ids
        start, count = end, count + len(long_ids)
    return ids[:count]
