"""Text to token ids and back: GPT-2's byte-level byte-pair encoding.

How it works, for "low lower" and a toy vocabulary of the 256 bytes and these merges:

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

The files, and which one wins:

- `tokenizer.json`, where there is one; else `vocab.json` and `merges.txt`; else the same two
  under OpenAI's names, `encoder.json` and `vocab.bpe`.
- Added tokens come from `tokenizer.json`, `added_tokens.json` and `tokenizer_config.json`; where
  two describe the same token, the last of these wins. Two ids for a token, or two tokens for an
  id, are an error.
- Special are the added tokens marked so, the names in `special_tokens_map.json` and
  `tokenizer_config.json` that have an id, and `<|endoftext|>`.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import regex

from .bpe import WORD, Merges, WordIds, byte_symbols
from .checkpoint import resolve, write_file
from .checkpoint.files import read_small_file
from .checkpoint.strict_json import parse_json_object
from .errors import InputError, TokenizerError

END_OF_TEXT = "<|endoftext|>"
LARGEST_FILE = 64 << 20  # bytes; GPT-2's files have one million, the largest we know of 20


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text as it stands, before the split into words.

    content      its text
    id           its id
    special      a control sign: read only on request, and skipped when decoding
    single_word  found only where no letter, digit or underscore touches it
    lstrip       takes the white space before it along
    rstrip       takes the white space after it along
    """

    content: str
    id: int
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """What the files say, checked. Ids run from 0 to `len(token_bytes) - 1`, each once.

    token_bytes       the bytes of every id
    byte_ids          the id of each of the 256 single bytes
    merges            see `bpe.Merges`
    added             the added tokens, by content
    eos               content of the token that ends a text
    add_prefix_space  a text that starts without a space is read as if it had one
    files             name → content of the files read, to be written back as they were
    """

    token_bytes: list[bytes]
    byte_ids: list[int]
    merges: Merges
    added: dict[str, AddedToken]
    eos: str
    add_prefix_space: bool
    files: dict[str, bytes]


class GPTTokenizer:
    """Text ⇄ ids. Made by `from_pretrained`; unchanging afterwards, so threads may share it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._word_ids = WordIds(vocabulary.byte_ids, vocabulary.merges)
        added = vocabulary.added.values()
        self._special_ids = frozenset(token.id for token in added if token.special)
        self._any_added = _any_of(token.content for token in added)
        self._plain_added = _any_of(token.content for token in added if not token.special)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str]) -> GPTTokenizer:
        """Reads the tokenizer of a model source: a folder, or a hub id.

        Raises SourceError where there is no such source, and TokenizerError where its tokenizer
        files are missing, damaged, or of another kind than GPT-2's.
        """
        return cls(read_vocabulary(resolve(source)))

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included. A model's may be padded beyond it."""
        return len(self._vocabulary.token_bytes)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text, None where the vocabulary has none."""
        eos = self._vocabulary.added.get(self._vocabulary.eos)
        return None if eos is None else eos.id

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
        ids: list[int] = []
        for piece in self._split_at_added(text, allow_special):
            if isinstance(piece, AddedToken):
                ids.append(piece.id)
                continue
            if self._vocabulary.add_prefix_space and not piece.startswith(" "):
                piece = " " + piece
            ids.extend(chain.from_iterable(map(self._word_ids.__getitem__, WORD.findall(piece))))
        return ids if return_tensors is None else np.array([ids], dtype=np.int64)

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
        folder = Path(folder)
        files = self._vocabulary.files
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in _FILE_NAMES:
                if name not in files and (folder / name).exists():
                    raise TokenizerError(
                        f"{folder}: holds {name} of another tokenizer: save into a fresh folder"
                    )
        except OSError as error:
            raise TokenizerError(f"{folder}: cannot be written: {error.strerror}") from None
        for name, content in files.items():
            write_file(folder / name, content)

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
                while start > done and _SPACE.match(text, start - 1):
                    start -= 1
            if token.rstrip:
                while _SPACE.match(text, at):
                    at += 1
            if done < start:
                yield text[done:start]
            yield token
            done = at
        if done < len(text):
            yield text[done:]

    def _bytes_of(self, ids: Iterable[int] | np.ndarray, skip_special: bool) -> bytes:
        known = _check_ids(ids, self.vocab_size)
        if skip_special:
            known = [i for i in known if i not in self._special_ids]
        return b"".join(map(self._vocabulary.token_bytes.__getitem__, known))


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
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


# ---- arguments ----

_SPACE = regex.compile(r"\s")
_LETTER = regex.compile(r"\w")  # or digit, or underscore


def _touches_word(text: str, start: int, stop: int) -> bool:
    before = start > 0 and _LETTER.match(text, start - 1)
    return bool(before or _LETTER.match(text, stop))


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


# ---- files ----

_SETS = (  # vocabulary and merges, the set that wins first; tokenizer.json holds both
    ("tokenizer.json", "tokenizer.json"),
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
)
_SIDE_FILES = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
_FILE_NAMES = {*chain.from_iterable(_SETS), *_SIDE_FILES}
_HUGGING_FACE_NAME = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}

_SPECIAL_ROLES = [f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]


def read_vocabulary(folder: Path) -> Vocabulary:
    """The tokenizer files in `folder`, read and checked.

    Raises TokenizerError, naming the file, for one that is missing, damaged, too large, or of
    another kind than GPT-2's.
    """
    vocab_path, merges_path = _find_files(folder)
    sides = [folder / name for name in _SIDE_FILES if (folder / name).exists()]
    files = {
        path.name: read_small_file(path, LARGEST_FILE, TokenizerError)
        for path in dict.fromkeys((vocab_path, merges_path, *sides))
    }
    parsed = {
        name: parse_json_object(content, str(folder / name), TokenizerError)
        for name, content in files.items()
        if name.endswith(".json")
    }
    if vocab_path == merges_path:
        _check_kind(parsed["tokenizer.json"], vocab_path)
        model = _object(parsed["tokenizer.json"], "model", vocab_path)
        ids, pairs = model.get("vocab"), _pairs_of_json(model.get("merges"), merges_path)
    else:
        ids, pairs = parsed[vocab_path.name], _pairs_of_lines(files[merges_path.name], merges_path)

    ids = _checked_ids(ids, vocab_path)
    byte_ids = _byte_ids(ids, vocab_path)
    added, eos = _added_tokens(parsed, ids, folder)
    merges = _merges(pairs, ids, merges_path)
    _check_reached(ids, merges, added, merges_path)
    return Vocabulary(
        token_bytes=_token_bytes(ids, added, vocab_path),
        byte_ids=byte_ids,
        merges=merges,
        added=added,
        eos=eos,
        add_prefix_space=_prefix_space(parsed, folder),
        files={_HUGGING_FACE_NAME.get(name, name): content for name, content in files.items()},
    )


def _find_files(folder: Path) -> tuple[Path, Path]:
    for vocab_name, merges_name in _SETS:
        if (folder / vocab_name).exists():
            if not (folder / merges_name).exists():
                raise TokenizerError(f"{folder}: holds {vocab_name}, but no {merges_name}")
            return folder / vocab_name, folder / merges_name
    raise TokenizerError(
        f"{folder}: holds no tokenizer: tokenizer.json, or vocab.json and merges.txt, must be there"
    )


def _check_kind(data: dict[str, Any], where: Path) -> None:
    """Refuses a tokenizer.json whose ids would not be those of GPT-2's algorithm."""
    model = _object(data, "model", where)
    before = _object(data, "pre_tokenizer", where)
    wanted: tuple[tuple[str, object, tuple[object, ...]], ...] = (
        ("model.type", model.get("type", "BPE"), ("BPE",)),
        ("model.dropout", model.get("dropout"), (None, 0)),
        ("model.continuing_subword_prefix", model.get("continuing_subword_prefix"), (None, "")),
        ("model.end_of_word_suffix", model.get("end_of_word_suffix"), (None, "")),
        ("model.ignore_merges", model.get("ignore_merges", False), (False,)),
        ("normalizer", data.get("normalizer"), (None,)),
        ("pre_tokenizer.type", before.get("type"), ("ByteLevel",)),
        ("pre_tokenizer.use_regex", before.get("use_regex", True), (True,)),
        ("pre_tokenizer.add_prefix_space", before.get("add_prefix_space"), (False, True)),
        ("post_processor.type", _object(data, "post_processor", where).get("type"),
         (None, "ByteLevel")),
        ("decoder.type", _object(data, "decoder", where).get("type"), (None, "ByteLevel")),
    )  # fmt: skip
    for name, value, accepted in wanted:
        if value not in accepted:
            raise TokenizerError(
                f"{where}: {name} is {reprlib.repr(value)}, which is no tokenizer of GPT-2's "
                f"kind: it must be {' or '.join(map(json.dumps, accepted))}"
            )


def _prefix_space(parsed: dict[str, dict[str, Any]], folder: Path) -> bool:
    """`add_prefix_space` of tokenizer_config.json, else of tokenizer.json, else False.

    Refuses `add_bos_token`: `encode` adds no token that is not in the text.
    """
    config, where = parsed.get("tokenizer_config.json", {}), folder / "tokenizer_config.json"
    if _flag(config, "add_bos_token", where):
        raise TokenizerError(f"{where}: add_bos_token is true, which is not GPT-2's: set it false")
    if config.get("add_prefix_space") is not None:
        return _flag(config, "add_prefix_space", where)
    before = parsed.get("tokenizer.json", {}).get("pre_tokenizer", {})
    return bool(before.get("add_prefix_space", False))


def _pairs_of_lines(content: bytes, where: Path) -> list[tuple[str, str]]:
    """The merges of a merges.txt: lines `left right`, after one that may tell the version."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as flaw:
        raise TokenizerError(f"{where}: is not UTF-8 text (byte {flaw.start})") from None
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    if lines == [""]:
        raise TokenizerError(f"{where}: is empty: it must hold the merges, one a line")
    first = 1 if lines[0].startswith("#version") else 0
    pairs = [tuple(line.split(" ")) for line in lines[first:]]
    for number, pair in enumerate(pairs, start=first + 1):
        if len(pair) != 2:
            raise TokenizerError(
                f"{where}: line {number} is {reprlib.repr(' '.join(pair))}: "
                "a merge is two symbols with one space between"
            )
    return pairs  # type: ignore[return-value]  # each has two parts, as was just checked


def _pairs_of_json(merges: object, where: Path) -> list[tuple[str, str]]:
    """The merges of a tokenizer.json: each `"left right"` or `["left", "right"]`."""
    if not isinstance(merges, list):
        raise TokenizerError(f"{where}: model.merges must be a list")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for pair in pairs:
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(part, str) for part in pair)
        ):
            raise TokenizerError(
                f"{where}: a merge is {reprlib.repr(pair)}: it must be two symbols"
            )
    return [(left, right) for left, right in pairs]


def _checked_ids(ids: object, where: Path) -> dict[str, int]:
    if not isinstance(ids, dict):
        raise TokenizerError(f"{where}: the vocabulary must be an object of tokens and their ids")
    for token, token_id in ids.items():
        _checked(token, token_id, where)
    return ids


def _checked(token: object, token_id: object, where: Path) -> tuple[str, int]:
    if not isinstance(token, str) or not token:
        raise TokenizerError(f"{where}: token {reprlib.repr(token)} must be a text, not empty")
    if type(token_id) is not int or token_id < 0:
        raise TokenizerError(
            f"{where}: token {reprlib.repr(token)} has the id {reprlib.repr(token_id)}: "
            "it must be an integer from 0 on"
        )
    return token, token_id


def _merges(pairs: list[tuple[str, str]], ids: dict[str, int], where: Path) -> Merges:
    merges: Merges = {}
    for rank, (left, right) in enumerate(pairs):
        # An empty part would let a merge give itself back, for ever.
        joined = left + right
        if not (left and right and left in ids and right in ids and joined in ids):
            raise TokenizerError(
                f"{where}: merge {reprlib.repr(left)} {reprlib.repr(right)} does not fit the "
                "vocabulary, which must hold both parts and the two joined"
            )
        merges[ids[left], ids[right]] = (rank, ids[joined])
    if len(merges) != len(pairs):
        raise TokenizerError(f"{where}: {len(pairs) - len(merges)} merges are there twice")
    return merges


def _check_reached(
    ids: dict[str, int], merges: Merges, added: dict[str, AddedToken], where: Path
) -> None:
    """Notices merges cut short, which would give wrong ids in silence.

    A few tokens that no merge makes are common: padding, signs written by hand.
    """
    reached = {joined for _, joined in merges.values()}
    unreached = sum(
        len(token) > 1 and token not in added and token_id not in reached
        for token, token_id in ids.items()
    )
    if 10 * unreached > len(ids):
        raise TokenizerError(
            f"{where}: {unreached} of {len(ids)} tokens are made by no merge: it must be cut short"
        )


def _encode(token: str, byte_of: dict[str, int], where: Path) -> bytes:
    """The bytes of a token: in the symbols of `byte_of`, or, as added tokens are, in plain text."""
    try:
        return bytes(map(byte_of.__getitem__, token))
    except KeyError:
        pass
    try:
        return token.encode("utf-8")
    except UnicodeEncodeError:
        raise TokenizerError(
            f"{where}: token {token[:40]!a} holds a lone surrogate, which is no character"
        ) from None


def _byte_ids(ids: dict[str, int], where: Path) -> list[int]:
    for byte, symbol in enumerate(byte_symbols()):
        if symbol not in ids:
            raise TokenizerError(
                f"{where}: lacks {symbol!r}, the symbol of byte {byte}: "
                "a byte-level vocabulary must hold all 256"
            )
    return [ids[symbol] for symbol in byte_symbols()]


def _token_bytes(ids: dict[str, int], added: dict[str, AddedToken], where: Path) -> list[bytes]:
    """The bytes of each id. Checks that the ids are 0 to n - 1, each once."""
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    all_ids = ids | {token.content: token.id for token in added.values()}
    table: list[bytes | None] = [None] * len(all_ids)
    for token, token_id in all_ids.items():
        if token_id >= len(table) or table[token_id] is not None:
            raise TokenizerError(
                f"{where}: token {reprlib.repr(token)} has the id {reprlib.repr(token_id)}: "
                f"the ids of {len(table)} tokens must be 0 to {len(table) - 1}, each once"
            )
        table[token_id] = _encode(token, {} if token in added else byte_of, where)
    return table  # type: ignore[return-value]  # as many ids as places, none twice: none is left


# ---- added and special tokens ----


def _added_tokens(
    parsed: dict[str, dict[str, Any]], ids: dict[str, int], folder: Path
) -> tuple[dict[str, AddedToken], str]:
    """The added tokens by content, special ones of the vocabulary included, and the name of eos."""
    ids = dict(ids)
    contents = {token_id: token for token, token_id in ids.items()}
    added: dict[str, AddedToken] = {}
    for token, where in _added_entries(parsed, folder):
        if ids.setdefault(token.content, token.id) != token.id:
            raise TokenizerError(
                f"{where}: added token {reprlib.repr(token.content)} has the id {token.id}, "
                f"but elsewhere {ids[token.content]}"
            )
        if contents.setdefault(token.id, token.content) != token.content:
            raise TokenizerError(
                f"{where}: added token {reprlib.repr(token.content)} has the id {token.id}, "
                f"which is that of {reprlib.repr(contents[token.id])}"
            )
        added[token.content] = token

    eos = END_OF_TEXT
    specials = {END_OF_TEXT}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for role, content in _special_names(parsed.get(name, {}), folder / name):
            specials.add(content)
            eos = content if role == "eos_token" else eos
    for content in specials & ids.keys():
        token = added.get(content, AddedToken(content, ids[content]))
        added[content] = replace(token, special=True)
    return added, eos


def _added_entries(
    parsed: dict[str, dict[str, Any]], folder: Path
) -> Iterator[tuple[AddedToken, Path]]:
    """Every description of an added token and its file; of two for a token, the later wins."""
    where = folder / "tokenizer.json"
    for entry in _list(parsed.get("tokenizer.json", {}), "added_tokens", where):
        yield (
            _added_token(entry, entry.get("id") if isinstance(entry, dict) else None, where),
            where,
        )

    where = folder / "added_tokens.json"
    for content, token_id in parsed.get("added_tokens.json", {}).items():
        yield _added_token({"content": content}, token_id, where), where

    where = folder / "tokenizer_config.json"
    config = parsed.get("tokenizer_config.json", {})
    for key, entry in _object(config, "added_tokens_decoder", where).items():
        token_id = int(key) if regex.fullmatch("[0-9]{1,9}", key) else key
        yield _added_token(entry, token_id, where), where


def _added_token(entry: object, token_id: object, where: Path) -> AddedToken:
    if not isinstance(entry, dict):
        raise TokenizerError(f"{where}: added token {reprlib.repr(entry)} must be an object")
    content, checked_id = _checked(entry.get("content"), token_id, where)
    return AddedToken(
        content,
        checked_id,
        special=_flag(entry, "special", where),
        single_word=_flag(entry, "single_word", where),
        lstrip=_flag(entry, "lstrip", where),
        rstrip=_flag(entry, "rstrip", where),
    )


def _special_names(data: dict[str, Any], where: Path) -> Iterator[tuple[str, str]]:
    """(role, content) of the special tokens that a special_tokens_map or tokenizer_config names."""
    named = [(role, data[role]) for role in _SPECIAL_ROLES if data.get(role) is not None]
    more = "additional_special_tokens"
    for role, value in (*named, *((more, value) for value in _list(data, more, where))):
        content = value.get("content") if isinstance(value, dict) else value
        if not isinstance(content, str):
            raise TokenizerError(f"{where}: {role} is {reprlib.repr(value)}: it must be a text")
        yield role, content


def _object(data: dict[str, Any], name: str, where: Path) -> dict[str, Any]:
    value = data.get(name)
    if value is not None and not isinstance(value, dict):
        raise TokenizerError(f"{where}: {name} is {reprlib.repr(value)}: it must be an object")
    return value or {}


def _list(data: dict[str, Any], name: str, where: Path) -> list[Any]:
    value = data.get(name)
    if value is not None and not isinstance(value, list):
        raise TokenizerError(f"{where}: {name} is {reprlib.repr(value)}: it must be a list")
    return value or []


def _flag(data: dict[str, Any], name: str, where: Path) -> bool:
    value = data.get(name, False)
    if not isinstance(value, bool):
        raise TokenizerError(f"{where}: {name} is {reprlib.repr(value)}: it must be true or false")
    return value
