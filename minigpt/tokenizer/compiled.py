"""bpe.py, compiled: the same ids, faster, for texts long enough to repay loading the machine code.

kernels/bpe/ finds the pre-tokens, looks them up in a memo, and merges those that it does not hold.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from ..kernels.bpe.encode import CHUNK, KEY_SIZE, encode_texts
from ..kernels.bpe.memo import MAX_INLINE, Memo
from ..kernels.bpe.merge import (
    MAX_SHORT,
    NO_PAIR,
    NO_RANK,
    Tables,
    insert_pairs,
    room_for,
)
from ..kernels.bpe.pretokenize import CODE_POINTS, DIGIT, LETTER, READ_AHEAD, WHITE
from ..kernels.layout import aligned_zeros
from ..kernels.threads import call, start_thread
from .bpe import Merges

# A memo takes 8 MiB: its entries, of 32 bytes, and records for pre-tokens that fit in none.
MEMO_ENTRIES = 1 << 17
RECORD_WORDS = 1 << 19

_MIN_BYTES = 1 << 18  # of texts for each thread
_BLOCK = 64  # texts of a batch begin at multiples of it, which is fastest
_TAIL = 1 << 13  # bytes at the end of a long text that are copied
# Where a text can be cut, as at bpe.BOUNDARY; its last white space is not the last of the text.
_BOUNDARY = re.compile(rb"(?<=[!-~])[ \n]")

Ids = npt.NDArray[np.int64]


class CompiledBPE:
    """A vocabulary for the compiled code: for GPT-2's some 4 MiB, made in a tenth of a second.

    Its memo outlives a call. Threads may encode at the same time: each takes a memo that no other
    uses, or a new one, and gives it back.
    """

    def __init__(self, byte_ids: list[int], merges: Merges) -> None:
        """byte_ids and merges are checked, as those of a `Vocabulary` are."""
        self._tables = _make_tables(byte_ids, merges)
        self._memos: list[Memo] = []

    def encode(self, text: str) -> Ids:
        """The ids of `text`, int64 [T]. Raises UnicodeEncodeError for a lone surrogate."""
        data = _utf8(text)
        cut = _last_boundary(data)
        ids = np.empty(data.size + MAX_INLINE, np.int64)  # at most one a byte
        count = self._encode(ids, data, [0], [cut])[0] if cut else 0
        tail = np.zeros(data.size - cut + READ_AHEAD, np.uint8)
        tail[:-READ_AHEAD] = data[cut:]
        count += self._encode(ids[count:], tail, [0], [data.size - cut])[0]
        ids.resize(count, refcheck=False)
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[Ids]:
        """The ids of each text, int64 [T_i]: parts of a few arrays."""
        if not texts:
            return []
        groups = _groups([text.encode("utf-8") for text in texts], threads)
        if len(groups) == 1 or not encode_texts.signatures:  # type: ignore[attr-defined]
            return [ids for group in groups for ids in self._encode_group(group)]
        outcomes: list[SimpleQueue[list[Ids] | BaseException]] = []
        for group in groups[1:]:
            outcomes.append(SimpleQueue())
            self._start(group, outcomes[-1])
        batch = self._encode_group(groups[0])
        for outcome in outcomes:
            ids = outcome.get()
            if isinstance(ids, BaseException):
                raise ids
            batch += ids
        return batch

    def _start(self, group: list[bytes], outcome: SimpleQueue[list[Ids] | BaseException]) -> None:
        """Encode a group in a thread, or here where the system starts no more."""

        def work() -> None:
            try:
                outcome.put(self._encode_group(group))
            except BaseException as error:
                outcome.put(error)

        try:
            start_thread(work)
        except RuntimeError:
            work()

    def _encode_group(self, group: list[bytes]) -> list[Ids]:
        """The ids of each text of a group, given in UTF-8, by this thread."""
        sizes = np.array([len(data) for data in group], np.int64)
        # A zero follows each text.
        padding = [bytes(_BLOCK - len(data) % _BLOCK) for data in group]
        parts = [part for pair in zip(group, padding, strict=True) for part in pair]
        # A bytearray: a read-only array would be another type, for which Numba compiles once more.
        text = np.frombuffer(bytearray().join([*parts, bytes(READ_AHEAD)]), np.uint8)
        starts = np.cumsum([0, *(size // _BLOCK * _BLOCK + _BLOCK for size in sizes[:-1].tolist())])
        ids = np.empty(int(sizes.sum()) + MAX_INLINE, np.int64)
        ends = self._encode(ids, text, starts, sizes)
        ids.resize(ends[-1], refcheck=False)
        return [ids[start:end] for start, end in pairwise([0, *ends])]

    def _encode(self, ids: Ids, text: npt.NDArray[np.uint8], starts: Any, sizes: Any) -> list[int]:
        """Call the kernel; returns the `ends` that it gives."""
        starts, sizes = np.asarray(starts, np.int64), np.asarray(sizes, np.int64)
        ends = np.empty(starts.size, np.int64)
        boundaries = np.empty(int(sizes.max()) // 64 + 1, np.uint64)
        keys = np.empty(CHUNK * KEY_SIZE, np.uint64)
        workspace = np.empty((2, MAX_SHORT), np.int32)
        room = np.zeros(1, np.int64)
        try:
            memo = self._memos.pop()
        except IndexError:
            memo = _new_memo()
        while True:
            call(
                *(encode_texts, ids, ends, text, starts, sizes),
                *(self._tables, memo, boundaries, keys, workspace, room),
            )
            if not room[0]:
                break
            room = np.zeros(room_for(int(room[0])), np.int64)
        self._memos.append(memo)
        counts: list[int] = ends.tolist()
        return counts


def _new_memo() -> Memo:
    entries = aligned_zeros(4 * MEMO_ENTRIES, np.uint64)
    return Memo(entries, np.empty(RECORD_WORDS, np.uint64), np.zeros(1, np.int64))


def _groups(texts: list[bytes], threads: int) -> list[list[bytes]]:
    """The texts in order, in at most `threads` groups of about the same number of bytes."""
    total = sum(map(len, texts))
    share = max(-(-total // threads), _MIN_BYTES)
    groups: list[list[bytes]] = [[]]
    size = 0
    for text in texts:
        if size >= share:
            groups.append([])
            size = 0
        groups[-1].append(text)
        size += len(text)
    return groups


def _utf8(text: str) -> npt.NDArray[np.uint8]:
    """The bytes of a text in UTF-8, read-only, for as long as the text lives.

    Python keeps them with a long text, as if it had been ASCII: they are converted once, and copied
    never.
    """
    if len(text) < _TAIL:
        return np.frombuffer(text.encode("utf-8"), np.uint8)
    size = ctypes.c_ssize_t()
    address = _as_utf8(text, ctypes.byref(size))
    data: Any = (ctypes.c_char * size.value).from_address(address)
    return np.frombuffer(data, np.uint8)


_as_utf8 = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.POINTER(ctypes.c_ssize_t))(
    ("PyUnicode_AsUTF8AndSize", ctypes.pythonapi)
)


def _last_boundary(data: npt.NDArray[np.uint8]) -> int:
    """A boundary of pre-tokens near the end of a long text, from which on the kernel needs a copy
    with room to read ahead; 0 where none is found, or the text is short."""
    first = data.size - _TAIL
    if first <= 0:
        return 0
    *_, last = [0, *(m.start() for m in _BOUNDARY.finditer(data[first:-READ_AHEAD].tobytes()))]
    return first + last if last else 0


def _make_tables(byte_ids: list[int], merges: Merges) -> Tables:
    slots = 1 << (2 * len(merges.merged)).bit_length()
    tables = Tables(
        kinds=character_kinds(),
        byte_ids=np.array(byte_ids, np.int32),
        byte_ranks=np.empty(256 * 256, np.int32),
        pairs=np.tile(np.array([NO_PAIR, NO_RANK], np.int64), slots),
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
