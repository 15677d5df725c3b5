"""Texts to tokens on disk, and from there to the batches that training reads.

    write_tokens(documents(["book.txt", "tales.jsonl"]), tokenizer, Path("train.tokens"))
    tokens = read_tokens(Path("train.tokens"))
    ids, targets = batch(tokens, B=4, T=256, seed=0, position=17)  # what step 17 learns from

A token file is written once, whole or not at all, and read as memory: the system loads the pages
that are asked for, and a file may be larger than the memory. All numbers are little-endian:

    offset  0   "minigpt" and the byte 1, the version
            8   u64: the vocabulary's size, which every id is below
           16   u64: the number of ids
           24   u64: the bytes of the text in UTF-8
           32   the ids: u16 where the vocabulary has at most 65536, else u32

**The shuffle.** A batch is a function of the seed and of its number, so that a run that goes on
needs to keep one number and no list. The tokens are taken as a ring: the last is the end of a
text, after which the first text may well begin. An epoch cuts the ring, from an offset of its
own, into N // T windows of T tokens, and each is read with the token after it, the last target:

    a b c d e f g h i j k ■
    ─── ─────── ─────── ───     N = 12, T = 4, offset 2: the windows c d e f, g h i j, k ■ a b

Which comes when is told by a permutation of the windows' numbers that is computed, not stored
(`permuted`): of any window of any epoch, at once, and with no memory however many there are.
"""

from __future__ import annotations

import json
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .checkpoint.atomic import replacing
from .checkpoint.files import map_file
from .errors import CheckpointError, InputError, shown
from .kernels.layout import IGNORED
from .sampler import is_integer
from .tokenizer import GPTTokenizer

LARGEST_TEXT = 1 << 31  # bytes of a text file, which is held in memory
LARGEST_LINE = 1 << 26  # bytes of a line of JSON

_PIECE = 1 << 20  # characters that are tokenised at once
_MAGIC = b"minigpt\x01"
_HEADER = struct.Struct("<8s3Q")
_ROUNDS = 6  # of `permuted`

Progress = Callable[[int, int], None]  # (bytes of text read, tokens written)


# ---- texts ----


def documents(sources: Sequence[str]) -> Iterator[str]:
    """The documents in `sources`, one after the other; text comes as it is.

    sources  names of files. `name.jsonl` holds a document a line, a JSON object's field "text";
             empty lines are passed over. Any other file is a document, and `-` is standard input.
             A byte order mark at the beginning of a file is no part of it.

    That all files are there is seen at once, before the first is read. Raises InputError, with the
    file, and the line where there is one to blame: for a file that is absent or cannot be read,
    for what is not UTF-8 or too long, and for a line that is no such object.
    """
    for source in sources:
        if source != "-":
            _require_file(source)
    return _documents(sources)


def _documents(sources: Sequence[str]) -> Iterator[str]:
    for source in sources:
        if source == "-":
            yield _whole_text(_stdin(), "standard input")
        elif holds_objects(source):
            for where, value in objects(source):
                yield checked_text(value.get("text"), '"text"', where)
        else:
            with _open(source) as file:
                yield _whole_text(file, source)


def holds_objects(source: str) -> bool:
    """Whether a file's name says that each of its lines is a JSON object."""
    return Path(source).suffix.lower() == ".jsonl"


def objects(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("name, line 7", the JSON object) of each line of a file that is not empty.

    Raises InputError, with the file and the line, as `documents` does.
    """
    with _open(source) as file:
        for where, line in _lines(file, source):
            yield where, _object(line, where)


def checked_text(value: Any, field: str, where: str) -> str:
    """The value of an object's field, which must be a text; raises InputError with `where`."""
    if not isinstance(value, str):
        raise InputError(f"{where}: must have a text as its {field}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as flaw:
        raise InputError(
            f"{where}: its {field} has {value[flaw.start]!a}, half of a character; "
            "such escapes must come in pairs"
        ) from None
    return value


def _require_file(source: str) -> None:
    """Raises InputError where there is no such file. A pipe, which opens only once, is one."""
    try:
        mode = Path(source).stat().st_mode
    except (OSError, ValueError) as flaw:  # ValueError: a zero byte in the name
        raise _unreadable(source, flaw) from None
    if stat.S_ISDIR(mode):
        raise InputError(f"{source}: is a folder; name the files in it")


def _open(source: str) -> BinaryIO:
    try:
        return Path(source).open("rb")
    except OSError as flaw:
        raise _unreadable(source, flaw) from None


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise InputError("standard input: is closed; name a file, or give a text there")
    return sys.stdin.buffer


def _unreadable(name: str, flaw: Exception) -> InputError:
    return InputError(f"{name}: cannot be read: {getattr(flaw, 'strerror', None) or flaw}")


def _whole_text(file: BinaryIO, name: str) -> str:
    try:
        data = file.read(LARGEST_TEXT + 1)
    except OSError as flaw:
        raise _unreadable(name, flaw) from None
    if len(data) > LARGEST_TEXT:
        raise InputError(
            f"{name}: longer than {LARGEST_TEXT} bytes, the most one document may have; "
            "cut it, or make each text of it a line of a .jsonl file"
        )
    return _decoded(data, name)


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[str, str]]:
    """("name, line 7", the line) of each line that is not empty."""
    number = 0
    while line := _next_line(file, name):
        number += 1
        where = f"{name}, line {number}"
        if len(line) > LARGEST_LINE:
            raise InputError(
                f"{where}: longer than {LARGEST_LINE} bytes, the most one may have; "
                "a .jsonl file holds one object a line"
            )
        if line.strip():
            yield where, _decoded(line, name, number)


def _next_line(file: BinaryIO, name: str) -> bytes:
    try:
        return file.readline(LARGEST_LINE + 1)
    except OSError as flaw:
        raise _unreadable(name, flaw) from None


def _decoded(data: bytes, name: str, line: int = 1) -> str:
    """`data`, which begins in this line of the file, without a byte order mark."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as flaw:
        line += data.count(b"\n", 0, flaw.start)
        raise InputError(
            f"{name}, line {line}: the byte {data[flaw.start]:#04x} is not UTF-8; "
            "save the text in UTF-8"
        ) from None
    return text.removeprefix("\ufeff") if line == 1 else text


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as flaw:
        raise InputError(f"{where}: is not JSON: {flaw.msg} (column {flaw.colno})") from None
    except (ValueError, RecursionError) as flaw:  # a number of 4300 digits; 1000 brackets
        raise InputError(f"{where}: is not JSON that can be read: {flaw}") from None
    if not isinstance(value, dict):
        raise InputError(f'{where}: must be a JSON object, such as {{"text": "Once…"}}')
    return value


# ---- the token file ----


class Header(NamedTuple):
    """What a token file says of itself.

    vocab_size  every id is below it
    tokens      how many there are, the ends of texts included
    text_bytes  the length in UTF-8 of the texts they were made of
    """

    vocab_size: int
    tokens: int
    text_bytes: int


def write_tokens(
    documents: Iterable[str],
    tokenizer: GPTTokenizer,
    file: Path,
    progress: Progress | None = None,
) -> None:
    """Writes the ids of `documents` as a token file, each followed by that of end-of-text.

    A document without text is left out. What is in memory is one document and the ids of a part
    of it. The file is written whole or not at all.

    progress  is told (bytes of text read, tokens written) again and again

    Raises InputError where there is no text at all, or the vocabulary has no end-of-text, and
    CheckpointError where the file cannot be written.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError("the tokenizer has no <|endoftext|>, which must come between texts")
    dtype = _id_dtype(tokenizer.vocab_size)
    tokens = text_bytes = 0
    with replacing(file) as output:
        output.write(bytes(_HEADER.size))
        for ids, read in _tokenised(documents, tokenizer, end):
            output.write(ids.astype(dtype).tobytes())
            tokens += len(ids)
            text_bytes += read
            if progress:
                progress(text_bytes, tokens)
        if not tokens:
            raise InputError("the texts are empty; give at least one with a character")
        output.seek(0)
        output.write(_HEADER.pack(_MAGIC, tokenizer.vocab_size, tokens, text_bytes))


def _tokenised(
    documents: Iterable[str], tokenizer: GPTTokenizer, end: int
) -> Iterator[tuple[np.ndarray, int]]:
    """The ids of pieces of the documents, int64 [n], and each piece's bytes in UTF-8."""
    for document in filter(None, documents):
        for piece in tokenizer.pieces(document, _PIECE):
            yield tokenizer.encode(piece, return_tensors="np")[0], len(piece.encode("utf-8"))
        yield np.array([end]), 0


def read_tokens(file: Path) -> np.ndarray:
    """The ids in a token file: uint16 or uint32 [N], read-only, a view of the file.

    Every id was seen to be below the header's vocab_size: compiled code does not look again.
    Raises CheckpointError where the file is none, damaged, or cut short.
    """
    header, data = _checked(file)
    ids = np.frombuffer(data, _id_dtype(header.vocab_size), header.tokens, _HEADER.size)
    ids.flags.writeable = False
    if len(ids) and int(ids.max()) >= header.vocab_size:
        at = int(ids.argmax())
        raise CheckpointError(
            f"{file}: id {ids[at]} at {at} is not below {header.vocab_size}, the vocabulary's "
            "size; it is damaged: write it again"
        )
    return ids


def read_header(file: Path) -> Header:
    """What a token file says of itself; raises CheckpointError as `read_tokens` does."""
    return _checked(file)[0]


def _checked(file: Path) -> tuple[Header, memoryview]:
    data = memoryview(map_file(file))
    if len(data) < _HEADER.size or data[: len(_MAGIC)] != _MAGIC:
        raise CheckpointError(f"{file}: is no token file of this version; write it anew")
    header = Header(*_HEADER.unpack_from(data)[1:])
    if not 1 <= header.vocab_size <= 1 << 32:
        raise CheckpointError(
            f"{file}: its vocabulary of {header.vocab_size} is none; it is damaged: write it again"
        )
    expected = _HEADER.size + header.tokens * _id_dtype(header.vocab_size).itemsize
    if len(data) != expected:
        raise CheckpointError(
            f"{file}: has {len(data)} bytes and its header tells of {expected}; "
            "it is cut short or damaged: write it again"
        )
    return header, data


def _id_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


# ---- batches ----


def batch(
    tokens: np.ndarray, B: int, T: int, seed: int, position: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the step number `position` of a training learns from: a function of its arguments.

    tokens    integers [N], N ≥ T + 1
    B, T      rows of a batch, and tokens of a row
    seed      of the order; from 0
    position  how many batches were taken before; from 0
    returns   ids and targets, int64 [B, T] each; targets[b, t] follows ids[b, t]

    The rows of all batches, in order, are the windows of the first epoch, those of the second,
    ...: each window once in an epoch, in an order and from an offset of its own, so that the
    N % T tokens left over are not always the same. An epoch has N // T windows, and a batch may
    well hold the end of one and the beginning of the next.

    Raises InputError for a wrong argument, and where there are too few tokens for one window.
    """
    _check_sizes(tokens, B, T)
    for name, number in (("seed", seed), ("position", position)):
        if not (is_integer(number) and number >= 0):
            raise InputError(f"{name} {shown(number)}: must be an integer from 0")
    starts = _starts(len(tokens), int(T), int(seed), int(position) * int(B), int(B))
    places = (starts[:, None] + np.arange(T + 1)) % len(tokens)
    rows = tokens[places].astype(np.int64)
    return rows[:, :-1].copy(), rows[:, 1:].copy()


def windows(tokens: np.ndarray, B: int, T: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All of `tokens` in order, each after the first a target once: for evaluation.

    tokens  integers [N], N ≥ 2
    B, T    rows of a batch at most, and tokens of a row
    yields  ids and targets, int64 [rows, T] each; targets[b, t] follows ids[b, t]. What is
            missing in the last row are ids 0 with the target IGNORED.

    Raises InputError for a wrong argument.
    """
    _check_sizes(tokens, B, T, least=2)
    for first in range(0, len(tokens) - 1, B * T):
        part = tokens[first : first + B * T + 1].astype(np.int64)
        rows = -(-(len(part) - 1) // T)
        ids = np.zeros((rows, T), np.int64)
        targets = np.full((rows, T), IGNORED, np.int64)
        ids.reshape(-1)[: len(part) - 1] = part[:-1]
        targets.reshape(-1)[: len(part) - 1] = part[1:]
        yield ids, targets


def _starts(N: int, T: int, seed: int, first: int, count: int) -> np.ndarray:
    """Where the windows first … first + count − 1 of all epochs begin: int64 [count]."""
    n = N // T
    starts = []
    while count:
        epoch, number = divmod(first, n)
        some = min(count, n - number)
        *keys, offset = np.random.SeedSequence([seed, epoch]).generate_state(_ROUNDS + 1, np.uint64)
        order = permuted(np.arange(number, number + some, dtype=np.uint64), n, keys)
        starts.append(order.astype(np.int64) * T + int(offset % np.uint64(T)))
        first, count = first + some, count - some
    return np.concatenate(starts)


def permuted(numbers: np.ndarray, n: int, keys: Sequence[np.uint64]) -> np.ndarray:
    """Where a permutation of 0 … n − 1 takes `numbers`, which are of these: uint64 [count].

    A Feistel network: a number is two halves of h bits, (left, right), and each key takes it to
    (right, left ^ f(right, key)), which can be undone, whatever f is: a permutation of the
    numbers below 4^h, the first such power that n does not exceed. One that comes out as n or
    more goes in again, until it is below n: the walk follows a cycle of the permutation, and
    ends at the latest where it began, so that no two numbers meet (Black and Rogaway, "Ciphers
    with Arbitrary Finite Domains", 2002). As 4^h is below 4 n, it takes four steps on average
    at most.
    """
    half = np.uint64(((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    result = numbers.copy()
    outside = np.full(len(numbers), True)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        result[outside] = left << half | right
        outside = result >= np.uint64(n)
    return result


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Each of the numbers, uint64, as another that every bit of it has changed.

    SplitMix64's: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
    """
    z = numbers
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _check_sizes(tokens: np.ndarray, B: int, T: int, least: int | None = None) -> None:
    """`least` is how many tokens there must be, by default a window's T + 1."""
    for name, number in (("B", B), ("T", T)):
        if not (is_integer(number) and number >= 1):
            raise InputError(f"{name} {shown(number)}: must be an integer from 1")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise InputError(
            f"tokens: {tokens.dtype} of shape {list(tokens.shape)}; must be integers [N]"
        )
    least = T + 1 if least is None else least
    if len(tokens) < least:
        raise InputError(
            f"tokens: {len(tokens)}; must be at least {least}: give more text, or a smaller T"
        )
