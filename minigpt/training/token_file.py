"""Token files: the ids of texts on disk.

    write_tokens(documents(["book.txt", "tales.jsonl"]), tokenizer, Path("train.tokens"))
    tokens = read_tokens(Path("train.tokens"))

A token file is written once, whole or not at all, and mapped into memory: the system loads the
pages that are read, and a file may be larger than the memory. All integers are little-endian:

    offset  0   "minigpt" and the byte 1, the version
            8   u64: the vocabulary's size, which every id is below
           16   u64: the number of ids
           24   u64: the bytes of the text in UTF-8
           32   the ids: u16 where the vocabulary has at most 65536, else u32
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..checkpoint.atomic import replacing
from ..checkpoint.files import map_file
from ..errors import CheckpointError, InputError
from ..tokenizer.tokenizer import GPTTokenizer

_PIECE = 1 << 20  # characters that are tokenised at once


_MAGIC = b"minigpt\x01"


_HEADER = struct.Struct("<8s3Q")


Progress = Callable[[int, int], None]  # (bytes of text read, tokens written)


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
