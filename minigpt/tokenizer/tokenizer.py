"""Text to token ids and back, with GPT-2's vocabulary or one of its kind.

vocabulary.py reads the files, and bpe.py holds the algorithm with a worked example. Here the two
meet: added tokens are cut out of the text, the rest goes through `bpe`, and back. A tokenizer that
is given much text goes on with compiled_bpe.py, and finds the same ids.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Literal, overload

import numpy as np

from ..bundled import BUNDLED_MODEL
from ..checkpoint import resolve
from ..errors import InputError
from ..source import ModelSource
from .bpe import BORDER, PretokenIds, pieces, token_bytes, words
from .vocabulary import AddedToken, Vocabulary, read_vocabulary, write_vocabulary

# Characters after which compiled code is loaded: that takes as long as encoding about so many.
COMPILED_FROM = 1 << 18


class GPTTokenizer:
    """Text ⇄ ids. Made by `from_pretrained`; unchanging afterwards, so threads may share it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._word_ids = PretokenIds(vocabulary.byte_ids, vocabulary.merges)
        self._encoded = 0  # characters so far
        added = vocabulary.added.values()
        self._special_ids = frozenset(token.id for token in added if token.special)
        self._any_added = _any_of(token.content for token in added)
        self._plain_added = _any_of(token.content for token in added if not token.special)

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str] | ModelSource = BUNDLED_MODEL
    ) -> GPTTokenizer:
        """Reads the tokenizer of a model source: a folder, a GGUF file, or a hub id; by default of
        the model in the box.

        Raises SourceError where there is no such source, and TokenizerError where its tokenizer
        files are missing, damaged, or of another kind than GPT-2's.
        """
        files = source.files if isinstance(source, ModelSource) else resolve(source)
        return cls(read_vocabulary(files))

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included. A model's may be padded beyond it."""
        return len(self._vocabulary.tokens)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text, None where the vocabulary has none."""
        return self._vocabulary.eos_id

    @overload
    def encode(
        self, text: str, return_tensors: None = None, allow_special: bool = False
    ) -> list[int]: ...
    @overload
    def encode(
        self, text: str, return_tensors: Literal["np"], allow_special: bool = False
    ) -> np.ndarray: ...
    def encode(
        self, text: str, return_tensors: str | None = None, allow_special: bool = False
    ) -> list[int] | np.ndarray:
        """The ids of `text`: a list, or with `return_tensors="np"` an int64 array [1, T].

        Special tokens such as `<|endoftext|>` are plain text, safe for text of any origin,
        unless `allow_special`. Takes time nearly linear in the length of the text.

        Raises InputError for what is not a str, and for a lone surrogate, which is no character.
        """
        _check_text(text)
        if return_tensors not in (None, "np"):
            raise InputError(f"encode: return_tensors must be None or 'np', not {return_tensors!r}")
        self._encoded += len(text)
        pieces = map(self._piece_ids, self._split_at_added(text, allow_special))
        ids = np.concatenate([np.empty(0, np.int64), *pieces])
        return ids.tolist() if return_tensors is None else ids[np.newaxis]

    def pieces(self, text: str, size: int) -> Iterator[str]:
        """`text` in pieces whose ids, one after the other, are the ids of the text.

        Each has `size` characters and those up to the next space or newline: so a long text is
        encoded without all its ids in memory.
        """
        if self._plain_added is not None:  # white space may be within an added token
            return iter([text])
        border = _SPACE_BORDER if self._vocabulary.add_prefix_space else BORDER
        return pieces(text, size, border)

    def decode(self, ids: Iterable[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """The text of `ids`, a sequence or 1-D array; bytes that are not UTF-8 become U+FFFD.

        Raises InputError for ids that are not integers from 0 to `vocab_size - 1`.
        """
        return self._bytes_of(ids, skip_special_tokens).decode("utf-8", errors="replace")

    def stream_decoder(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """A decoder for ids that come one by one, which never shows half a character."""
        return StreamDecoder(self, skip_special_tokens)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files this tokenizer was read from into `folder`, byte for byte.

        OpenAI's file names become Hugging Face's. Each file is replaced whole or not at all.
        Raises SourceError where the folder cannot be written, or holds other tokenizer files
        that would mix with these.
        """
        write_vocabulary(self._vocabulary, Path(folder))

    def _split_at_added(self, text: str, allow_special: bool) -> Iterator[str | AddedToken]:
        """The added tokens in `text`, leftmost and then longest first, and the text between."""
        pattern = self._any_added if allow_special else self._plain_added
        done = at = 0
        while pattern is not None and (match := pattern.search(text, at)):
            token = self._vocabulary.added[match[0]]
            start, at = match.span()
            if token.single_word and _touches_word(text, start, at):
                continue
            if token.lstrip:
                while start > done and _matches(_SPACE, text, start - 1):
                    start -= 1
            if token.rstrip:
                while _matches(_SPACE, text, at):
                    at += 1
            if done < start:
                yield text[done:start]
            yield token
            done = at
        if done < len(text):
            yield text[done:]

    def _piece_ids(self, piece: str | AddedToken) -> list[int] | np.ndarray:
        if isinstance(piece, AddedToken):
            return [piece.id]
        if self._vocabulary.add_prefix_space and not piece.startswith(" "):
            piece = " " + piece
        if self._encoded > COMPILED_FROM:
            return self._encode_compiled(piece)
        return list(chain.from_iterable(map(self._word_ids.__getitem__, words(piece))))

    @cached_property
    def _encode_compiled(self) -> Callable[[str], np.ndarray]:
        """The same for words, compiled: here, as Numba is slow to load."""
        from .compiled import encode, make_tables

        merges = self._vocabulary.merges
        tables = make_tables(self._vocabulary.byte_ids, merges)
        return partial(encode, tables=tables, merges=merges)

    def _bytes_of(self, ids: Iterable[int] | np.ndarray, skip_special: bool) -> bytes:
        known = _check_ids(ids, self.vocab_size)
        if skip_special:
            known = [i for i in known if i not in self._special_ids]
        return b"".join(map(self._token_bytes, known))

    def _token_bytes(self, token_id: int) -> bytes:
        token = self._vocabulary.tokens[token_id]
        return token.encode("utf-8") if token in self._vocabulary.added else token_bytes(token)


class StreamDecoder:
    """Decodes ids as they come: `push` each, `flush` at the end; joined, they equal `decode`.

    A character may take several tokens: its first bytes are held back until the last has come.
    """

    def __init__(self, tokenizer: GPTTokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, perhaps none. Raises InputError as `decode` does."""
        return self._utf8.decode(self._tokenizer._bytes_of([token_id], self._skip_special))

    def flush(self) -> str:
        """What is still held back, as U+FFFD; the decoder is then ready for another text."""
        return self._utf8.decode(b"", final=True)


# Where a text may be cut that is encoded with add_prefix_space: that would put a space before a
# newline, and none before a space.
_SPACE_BORDER = re.compile(r"(?<=\S) ")

# ---- arguments ----

_SPACE = r"\s"
_LETTER = r"\w"  # or digit, or underscore


def _touches_word(text: str, start: int, stop: int) -> bool:
    before = start > 0 and _matches(_LETTER, text, start - 1)
    return before or _matches(_LETTER, text, stop)


def _matches(kind: str, text: str, at: int) -> bool:
    """Whether the character `text[at]` is there, and of a kind as Unicode and `regex` have it."""
    import regex  # here, as it is slow to load and few vocabularies need it

    return regex.match(kind, text, pos=at) is not None


def _any_of(contents: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern for the longest of `contents` at the leftmost place; None where there are none.

    Of the module `re`, which compiles and finds thousands of alternatives 15 times faster.
    """
    longest_first = sorted(contents, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise InputError(f"encode: text must be a str, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"encode: text[{error.start}] is {text[error.start]!a}, a lone surrogate: "
            "text must be made of characters"
        ) from None


def _check_ids(ids: Iterable[int] | np.ndarray, vocab_size: int) -> list[int]:
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError, TypeError):  # rows of unequal length; not numbers at all
        raise InputError("decode: ids must be a flat sequence of integers") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(
            "decode: ids must be a flat sequence of integers, "
            f"not {array.dtype} of shape {list(array.shape)}"
        )
    known: list[int] = array.tolist()
    for extreme in (min(known), max(known)) if known else ():
        if not 0 <= extreme < vocab_size:
            raise InputError(
                f"decode: id {extreme} is not in the vocabulary: ids are 0 to {vocab_size - 1}"
            )
    return known
