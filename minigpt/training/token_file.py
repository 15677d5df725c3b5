"""Token files: the ids of texts on disk.

    write_tokens(documents(["book.txt", "tales.jsonl"]), tokenizer, Path("train.tokens"))
    tokens = read_tokens(Path("train.tokens"))

A token file is memory-mapped: the system loads the pages that are read, and a file may be larger
than the memory. All integers are little-endian:

    offset  0   "minigpt" and the byte 1, the version
            8   u64: the vocabulary's size, an upper bound of every id
           16   u64: the number of ids
           24   u64: the bytes of the text in UTF-8
           32   the ids: u16 for a vocabulary of at most 65536 tokens, else u32
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

_CHUNK = 1 << 20  # characters, at least, that are tokenized at once
_MAGIC = b"minigpt\x01"
_HEADER = struct.Struct("<8s3Q")

Progress = Callable[[int, int], None]  # (bytes of text read, tokens written)


class Header(NamedTuple):
    """The header of a token file.

    vocab_size  every id is below it
    tokens      the number of ids, end-of-text tokens included
    text_bytes  the length of the texts in UTF-8
    """

    vocab_size: int
    tokens: int
    text_bytes: int


def write_tokens(
    documents: Iterable[str],
    tokenizer: GPTTokenizer,
    file: Path,
    progress: Progress | None = None,
    allow_special: bool = False,
    end: int | None = None,
    what: str = "the texts",
) -> Header:
    """Write the ids of `documents` as a token file, each followed by the end-of-text token.

    progress       called with (bytes of text read, tokens written) after each chunk
    allow_special  as in `GPTTokenizer.encode`
    end            the end-of-text token. Default: the tokenizer's
    what           the documents, in error messages

    Empty documents are left out. Memory holds one document, and the ids of a chunk of it
    or of several short ones. The
    file is written whole or not at all. Raises InputError if there is no text, or no end-of-text
    token, CheckpointError if the file cannot be written.
    """
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise InputError(
            "the tokenizer has no <|endoftext|>, which must separate the texts; take a tokenizer "
            "that has one"
        )
    all_ids = max(tokenizer.vocab_size, end + 1)
    dtype = _id_dtype(all_ids)
    tokens = text_bytes = largest = 0
    with replacing(file) as output:
        output.write(bytes(_HEADER.size))
        for ids, chunk_bytes in _tokenized(documents, tokenizer, end, allow_special):
            output.write(ids.astype(dtype).tobytes())
            tokens += len(ids)
            largest = max(largest, int(ids.max(initial=0)))
            text_bytes += chunk_bytes
            if progress:
                progress(text_bytes, tokens)
        if not tokens:
            raise InputError(f"{what} are empty; give at least one with a character")
        # A model has rows for the stored tokens: the other ids count if they occur.
        sizes = (tokenizer.stored_vocab_size, all_ids)
        vocab_size = next(size for size in sizes if size > largest and _id_dtype(size) == dtype)
        header = Header(vocab_size, tokens, text_bytes)
        output.seek(0)
        output.write(_HEADER.pack(_MAGIC, *header))
    return header


def _tokenized(
    documents: Iterable[str], tokenizer: GPTTokenizer, end: int, allow_special: bool
) -> Iterator[tuple[np.ndarray, int]]:
    """(ids, bytes in UTF-8) of each chunk of the documents; ids int64 [n]."""
    for batch in _batches(documents, tokenizer, allow_special):
        encoded = tokenizer.encode_batch([chunk for chunk, _ in batch], "np", allow_special)
        for (chunk, ends), ids in zip(batch, encoded, strict=True):
            yield ids, len(chunk.encode("utf-8"))
            if ends:
                yield np.array([end]), 0


def _batches(
    documents: Iterable[str], tokenizer: GPTTokenizer, allow_special: bool
) -> Iterator[list[tuple[str, bool]]]:
    """Chunks of the documents, with whether each ends its document, in batches of some _CHUNK
    characters."""
    batch: list[tuple[str, bool]] = []
    characters = 0
    for document in filter(None, documents):
        rest = len(document)
        for chunk in tokenizer.chunks(document, _CHUNK, allow_special):
            rest -= len(chunk)
            batch.append((chunk, rest == 0))
            characters += len(chunk)
            if characters >= _CHUNK:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


def read_tokens(file: Path, vocab_size: int | None = None) -> np.ndarray:
    """The ids in a token file: uint16 or uint32 [N], a read-only view of the file.

    vocab_size  the vocabulary of the model that will read them; default: any

    Every id is below the vocabulary's size: compiled code does not check again. Raises
    CheckpointError for another kind of file, for one that is damaged or cut short, and for a
    vocabulary of more than `vocab_size` tokens.
    """
    data = memoryview(map_file(file))
    header = _checked_header(data, file)
    if vocab_size is not None and header.vocab_size > vocab_size:
        raise CheckpointError(f"{file}: holds ids beyond the model's {vocab_size}")
    ids = np.frombuffer(data, _id_dtype(header.vocab_size), header.tokens, _HEADER.size)
    ids.flags.writeable = False
    if len(ids) and int(ids.max()) >= header.vocab_size:
        at = int(ids.argmax())
        raise CheckpointError(
            f"{file}: id {ids[at]} at {at} is not below {header.vocab_size}, the vocabulary's "
            "size; it is damaged: write it again"
        )
    return ids


def _checked_header(data: memoryview, file: Path) -> Header:
    if len(data) < _HEADER.size or data[: len(_MAGIC)] != _MAGIC:
        raise CheckpointError(f"{file}: is no token file of this version; write it anew")
    header = Header(*_HEADER.unpack_from(data)[1:])
    if not 1 <= header.vocab_size <= 1 << 32:
        raise CheckpointError(
            f"{file}: has a vocabulary of {header.vocab_size}; it is damaged: write it again"
        )
    expected = _HEADER.size + header.tokens * _id_dtype(header.vocab_size).itemsize
    if len(data) != expected:
        raise CheckpointError(
            f"{file}: has {len(data)} bytes, and {expected} by its header; "
            "it is cut short or damaged: write it again"
        )
    return header


def _id_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")
