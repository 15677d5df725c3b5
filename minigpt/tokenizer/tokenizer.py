"""GPTTokenizer: text to token ids and back, with a vocabulary of GPT-2's kind.

bpe.py has the algorithm with a worked example, files.py reads the vocabulary. Here added tokens are
cut out of the text, and what is between them is encoded by bpe.py; after COMPILED_FROM characters,
by compiled.py, which gives the same ids.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, compress
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import numpy.typing as npt

from ..arguments import (
    MAX_THREADS,
    checked_bool,
    checked_choice,
    checked_folder,
    checked_ids,
    checked_integer,
    checked_text,
    checked_threads,
)
from ..bundled import BUNDLED_MODEL
from ..checkpoint import resolve
from ..errors import InputError
from ..kernels.events import CompilerError
from ..source import ModelSource
from ..texts import documents
from .added_tokens import AddedTokens
from .bpe import BOUNDARY, PretokenIds, chunks, pretokenize, token_bytes
from .files import read_vocabulary, write_vocabulary
from .vocabulary import NO_ID, AddedToken, Vocabulary

if TYPE_CHECKING:
    from .compiled import CompiledBPE

# Characters after which compiled code is loaded, which takes as long as encoding about so many.
COMPILED_FROM = 1 << 18
# Characters up to which a call takes less time in Python, even then.
SHORT = 200

Ids = list[int] | npt.NDArray[np.int64]


class GPTTokenizer:
    """A byte-level BPE tokenizer: text to token ids and back.

        tokenizer = GPTTokenizer.from_pretrained("cerebras/Cerebras-GPT-111M")
        tokenizer.encode("Hello, world!")                        # [15496, 11, 995, 0]
        tokenizer.encode("Hello, world!", return_tensors="np")   # int64 [1, T], as GPTModel takes
        tokenizer.decode([15496, 11, 995, 0])                    # "Hello, world!"

    With GPT-2's vocabulary, ids equal those of OpenAI's tiktoken. Encoding does not depend on
    earlier calls, and threads may share a tokenizer.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Made of a checked vocabulary; users call `from_pretrained`."""
        self._vocabulary = vocabulary
        self._pretoken_ids = PretokenIds(vocabulary.byte_ids, vocabulary.merges)
        self._encoded = 0  # characters so far
        has_id = [token_id != NO_ID for token_id in vocabulary.byte_ids]
        self._known_bytes = None if all(has_id) else bytes(compress(range(256), has_id))
        added = vocabulary.added.values()
        special_ids = frozenset(token.id for token in added if token.special)
        # Indexed by skip_special_tokens.
        self._token_bytes = (
            _TokenBytes(vocabulary, frozenset()),
            _TokenBytes(vocabulary, special_ids),
        )
        self._added = AddedTokens(added)

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str] | ModelSource = BUNDLED_MODEL
    ) -> GPTTokenizer:
        """Load the tokenizer of a model source.

        source  a folder with tokenizer files, one of these files, a GGUF file, a hub id, or an
                opened ModelSource. Default: the bundled model

        Raises SourceError where there is no such source, and TokenizerError where its tokenizer
        files are missing, damaged, or of another kind than GPT-2's.
        """
        files = source.files if isinstance(source, ModelSource) else resolve(source, True)
        return cls(read_vocabulary(files))

    def __copy__(self) -> GPTTokenizer:
        return type(self)(self._vocabulary)

    def __deepcopy__(self, memo: object) -> GPTTokenizer:
        return self.__copy__()  # nothing changes a vocabulary

    def __reduce__(self) -> tuple[type[GPTTokenizer], tuple[Vocabulary]]:
        return type(self), (self._vocabulary,)  # without its memo and tables

    @property
    def vocabulary(self) -> Vocabulary:
        """The checked vocabulary, for the formats that store one."""
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included; a model's vocab_size may be padded beyond."""
        return len(self._vocabulary.tokens)

    @property
    def stored_vocab_size(self) -> int:
        """Number of token ids that the files give. Special tokens that they name without an id have
        the ids from here on, for which a model may have no rows."""
        return self._vocabulary.stored_size

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-text token, None if the vocabulary has none."""
        return self._vocabulary.eos_id

    @property
    def eos_token(self) -> str | None:
        """The text of the end-of-text token, None if the vocabulary has none."""
        eos_id = self.eos_token_id
        return None if eos_id is None else self._vocabulary.tokens[eos_id]

    @property
    def all_special_tokens(self) -> list[str]:
        """The texts of the special tokens, such as `<|endoftext|>`."""
        return [token.content for token in self._vocabulary.added.values() if token.special]

    def documents(self, files: Sequence[str], allow_special: bool) -> Iterator[str]:
        """`texts.documents` of files, to be encoded with `allow_special`.

        They are cut at end-of-text tokens if that is True; else a warning says that special tokens
        in them are plain text.
        """
        if allow_special:
            return documents(files, self.eos_token)
        return documents(files, None, self.all_special_tokens)

    @overload
    def encode(
        self, text: str, return_tensors: None = None, allow_special: bool = False
    ) -> list[int]: ...
    @overload
    def encode(
        self, text: str, return_tensors: Literal["np"], allow_special: bool = False
    ) -> npt.NDArray[np.int64]: ...
    def encode(
        self, text: str, return_tensors: Literal["np"] | None = None, allow_special: bool = False
    ) -> list[int] | npt.NDArray[np.int64]:
        """The token ids of a text.

        text            any str; no token is added before or after it
        return_tensors  None for a list[int], "np" for an int64 array [1, T]. Default: None
        allow_special   True to encode special tokens such as `<|endoftext|>` in the text as these
                        tokens. Default: False, they are plain text, which is safe for text of any
                        origin (Hugging Face's `split_special_tokens=True`)

        The time is nearly linear in the length of the text. Raises InputError for a text that is
        not a str, holds a lone surrogate, or has a character of whose bytes the vocabulary lacks
        one, and for other options.
        """
        if return_tensors is not None:
            checked_choice("return_tensors", return_tensors, ["np"])
        allow_special = checked_bool("allow_special", allow_special)
        ids = self._encoded_texts([text], allow_special, 1, "text")[0]
        if return_tensors is None:
            return ids if isinstance(ids, list) else ids.tolist()
        return np.asarray(ids, np.int64)[np.newaxis]

    @overload
    def encode_batch(
        self,
        texts: Iterable[str],
        return_tensors: None = None,
        allow_special: bool = False,
        threads: int | None = None,
    ) -> list[list[int]]: ...
    @overload
    def encode_batch(
        self,
        texts: Iterable[str],
        return_tensors: Literal["np"],
        allow_special: bool = False,
        threads: int | None = None,
    ) -> list[npt.NDArray[np.int64]]: ...
    def encode_batch(
        self,
        texts: Iterable[str],
        return_tensors: Literal["np"] | None = None,
        allow_special: bool = False,
        threads: int | None = None,
    ) -> list[list[int]] | list[npt.NDArray[np.int64]]:
        """The token ids of each of many texts, as `encode` gives them, in their order.

        texts           a list or any other iterable of str
        return_tensors  None for a list[int] for each text, "np" for an int64 array [T], which is
                        faster; the arrays may be parts of one. Default: None
        allow_special   as in `encode`
        threads         how many to use at most. Default: one for each processor. Few texts take one

        Raises InputError as `encode` does, for a `texts` that is a str, and for other options.
        """
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise InputError(f"texts: {type(texts).__name__}; must be a list of str", "texts")
        if return_tensors is not None:
            checked_choice("return_tensors", return_tensors, ["np"])
        allow_special = checked_bool("allow_special", allow_special)
        if threads is not None:
            threads = checked_integer("threads", threads, 1, MAX_THREADS)
        batch = self._encoded_texts(list(texts), allow_special, threads, "texts")
        if return_tensors is None:
            return [ids if isinstance(ids, list) else ids.tolist() for ids in batch]
        return [np.asarray(ids, np.int64) for ids in batch]

    def chunks(self, text: str, size: int, allow_special: bool = False) -> Iterator[str]:
        """Yield `text` in chunks whose ids, concatenated, are the ids of the text.

        size           characters of a chunk, to which those up to the next space or newline are
                       added
        allow_special  as the chunks will be encoded

        So a long text can be encoded without all its ids in memory.
        """
        if self._added.may_hold_space(allow_special):
            return iter([text])
        boundary = _SPACE_BOUNDARY if self._vocabulary.add_prefix_space else BOUNDARY
        return chunks(text, size, boundary)

    def decode(
        self, ids: Iterable[int] | npt.NDArray[np.integer], skip_special_tokens: bool = True
    ) -> str:
        """The text of token ids.

        ids                  of one text: a flat sequence, an integer array [T], or an iterator such
                             as `model.stream(…)`
        skip_special_tokens  True to leave special tokens such as `<|endoftext|>` out of the text.
                             Default: True

        Bytes that are not UTF-8 become U+FFFD. Ids from `vocab_size` on, which a model of a padded
        vocabulary may generate, have no text. Raises InputError for ids that are not integers from
        0 on.
        """
        skip_special_tokens = checked_bool("skip_special_tokens", skip_special_tokens)
        return self._bytes_of(ids, skip_special_tokens).decode("utf-8", errors="replace")

    def stream_decoder(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """A decoder for ids that come one at a time, which never returns part of a character."""
        return StreamDecoder(self, skip_special_tokens)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the files this tokenizer was read from into `folder`, byte for byte.

        OpenAI's file names become Hugging Face's. Each file is replaced atomically. Raises
        InputError for a `folder` that is not a path, and SourceError where the folder cannot be
        written, or holds files of another tokenizer beside which these would mean something else.
        """
        write_vocabulary(self._vocabulary, checked_folder(folder))

    def _encoded_texts(
        self, texts: list[str], allow_special: bool, threads: int | None, name: str
    ) -> list[Ids]:
        """The ids of each text; `name` is that of the argument, for errors."""
        for text in texts:
            if not isinstance(text, str):
                checked_text(name, text)
            self._encoded += len(text)
        try:
            if not (allow_special or self._added.any_plain):
                return self._encoded_segments(texts, threads)
            segments = [list(self._added.split(text, allow_special)) for text in texts]
            between = [s for each in segments for s in each if not isinstance(s, AddedToken)]
            encoded = iter(self._encoded_segments(between, threads))
            return [
                _concatenated(
                    [[s.id] if isinstance(s, AddedToken) else next(encoded) for s in each]
                )
                for each in segments
            ]
        except UnicodeEncodeError:
            for text in texts:
                checked_text(name, text)  # raises an InputError that says where
            raise

    def _encoded_segments(self, segments: list[str], threads: int | None) -> list[Ids]:
        """The ids of texts that hold no added tokens."""
        if self._vocabulary.add_prefix_space:
            segments = [s if s.startswith(" ") or not s else " " + s for s in segments]
        if self._known_bytes is not None:
            for segment in segments:
                _check_bytes(segment, self._known_bytes)
        characters = sum(map(len, segments))
        if self._encoded > COMPILED_FROM and characters > SHORT and self._compiled is not None:
            if len(segments) == 1:
                return [self._compiled.encode(segments[0])]
            return list(self._compiled.encode_batch(segments, threads or checked_threads(None)))
        return [
            list(chain.from_iterable(map(self._pretoken_ids.__getitem__, pretokenize(segment))))
            for segment in segments
        ]

    @cached_property
    def _compiled(self) -> CompiledBPE | None:
        """This vocabulary for compiled code; None where Numba compiles nothing.

        Imported here, as Numba is slow to load.
        """
        try:
            from ..kernels.jit import check_compiler
            from .compiled import CompiledBPE

            check_compiler()
        except CompilerError:
            return None
        return CompiledBPE(self._vocabulary.byte_ids, self._vocabulary.merges)

    def _bytes_of(
        self, ids: Iterable[int] | npt.NDArray[np.integer], skip_special_tokens: bool
    ) -> bytes:
        checked = checked_ids(ids, None)
        token_ids: list[int] = checked[checked < self.vocab_size].tolist()
        return b"".join(map(self._token_bytes[skip_special_tokens].__getitem__, token_ids))


class _TokenBytes(dict[int, bytes]):
    """A memo {id: the bytes of its token}."""

    def __init__(self, vocabulary: Vocabulary, skipped: frozenset[int]) -> None:
        """skipped  ids of no bytes"""
        super().__init__()
        self._vocabulary = vocabulary
        self._skipped = skipped

    def __missing__(self, token_id: int) -> bytes:
        token = self._vocabulary.tokens[token_id]
        if token_id in self._skipped:
            data = b""
        elif token in self._vocabulary.added:
            data = token.encode("utf-8")
        else:
            data = token_bytes(token)
        self[token_id] = data
        return data


class StreamDecoder:
    """Decodes ids that come one at a time; the texts it returns, concatenated, equal `decode`'s.

    Call `push` with each id and `flush` at the end. A character may take several tokens; its text
    is returned when its last byte has come.
    """

    def __init__(self, tokenizer: GPTTokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = checked_bool("skip_special_tokens", skip_special_tokens)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, possibly "". Raises InputError as `decode` does."""
        return self._utf8.decode(self._tokenizer._bytes_of([token_id], self._skip_special_tokens))

    def flush(self) -> str:
        """An incomplete character as U+FFFD, else ""; the decoder can then take another text."""
        return self._utf8.decode(b"", final=True)


def _concatenated(parts: list[Ids]) -> Ids:
    """The ids of a text, from those of its parts."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, list) for part in parts):
        return list(chain.from_iterable(parts))
    return np.concatenate([np.asarray(part, np.int64) for part in parts])


# Where a text can be cut that is encoded with add_prefix_space: a chunk that began with a newline
# would get a space before it.
_SPACE_BOUNDARY = re.compile(r"(?<=\S) ")


def _check_bytes(text: str, known: bytes) -> None:
    """Raises InputError for a character of `text` that has other bytes than the `known` ones."""
    if text.encode("utf-8").translate(None, known):
        character = next(c for c in text if c.encode("utf-8").translate(None, known))
        missing = character.encode("utf-8").translate(None, known)[0]
        raise InputError(
            f"text: has {character!r}, which this vocabulary cannot encode: it lacks the byte "
            f"{missing:#04x}; take a tokenizer that was trained on such texts"
        )
