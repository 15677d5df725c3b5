"""The tokenizer's files, read and checked, and written back.

Which files win:

- `tokenizer.json`, where there is one; else `vocab.json` and `merges.txt`; else the same two
  under OpenAI's names, `encoder.json` and `vocab.bpe`.
- Added tokens come from `tokenizer.json`, `added_tokens.json` and `tokenizer_config.json`; where
  two describe the same token, the last of these wins. Two ids for a token, or two tokens for an
  id, are an error.
- Special are the added tokens marked so, the names in `special_tokens_map.json` and
  `tokenizer_config.json` that have an id, and `<|endoftext|>`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any, TypeVar

from ..checkpoint import write_file
from ..checkpoint.files import read_small_file
from ..checkpoint.strict_json import parse_json_object
from ..errors import SourceError, TokenizerError
from .bpe import Merges, byte_symbols
from .disk_cache import load_or_build

if TYPE_CHECKING:
    from ..checkpoint.gguf import GGUF

END_OF_TEXT = "<|endoftext|>"
LARGEST_FILE = 64 << 20  # bytes; GPT-2's files have one million, the largest we know of 20

_FORMS = (  # of vocabulary and merges, the one that wins first
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
)
_SIDE_FILES = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json")
_FILE_NAMES = ("tokenizer.json", "vocab.json", "merges.txt", *_SIDE_FILES)
# {a file's name: the name it is saved under}
SAVED_AS = {
    **{name: name for name in _FILE_NAMES},
    "encoder.json": "vocab.json",
    "vocab.bpe": "merges.txt",
}

# What a tokenizer.json may say so that its ids are those of GPT-2's algorithm. None: it may be
# absent or null.
_ACCEPTED: dict[str, tuple[object, ...]] = {
    "model.type": (None, "BPE"),
    "model.dropout": (None, 0),
    "model.continuing_subword_prefix": (None, ""),
    "model.end_of_word_suffix": (None, ""),
    "model.ignore_merges": (None, False),
    "normalizer": (None,),
    "pre_tokenizer.type": ("ByteLevel",),
    "pre_tokenizer.use_regex": (None, True),
    "pre_tokenizer.add_prefix_space": (False, True),
    "post_processor.type": (None, "ByteLevel"),
    "decoder.type": (None, "ByteLevel"),
}
_SPECIAL_ROLES = [f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
_KIND_NAMES = {dict: "an object", list: "a list", bool: "true or false", str: "a text"}

Kind = TypeVar("Kind")
Objects = defaultdict[str, dict[str, Any]]  # file name → what it says; empty where it is absent


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
    """What the files say, checked. Ids run from 0 to `len(tokens) - 1`, each once.

    tokens            id → token: an added one as its text, another in the symbols of bytes
    byte_ids          the id of each of the 256 single bytes
    merges            see `bpe.Merges`
    added             the added tokens, by content
    eos_id            the id of the token that ends a text, None where there is none
    add_prefix_space  a text that starts without a space is read as if it had one
    files             name → content of the files read, to be written back as they were
    """

    tokens: list[str]
    byte_ids: list[int]
    merges: Merges
    added: dict[str, AddedToken]
    eos_id: int | None
    add_prefix_space: bool
    files: dict[str, bytes]


def read_vocabulary(source: Path | GGUF) -> Vocabulary:
    """The vocabulary in the tokenizer files of a folder, or in a GGUF file or its parsed header.

    Raises TokenizerError, naming the file, for one that is missing, damaged, too large, or of
    another kind than GPT-2's.
    """
    folder = source if isinstance(source, Path) else source.file.path
    form, files = _read_files(source)
    tokens, byte_ids, ranks, joined, added, eos_id, add_prefix_space = load_or_build(
        "vocabularies", __file__, files, lambda: _parse(folder, form, files)
    )
    return Vocabulary(
        tokens=tokens,
        byte_ids=byte_ids,
        merges=Merges(ranks, joined),
        added={content: AddedToken(content, *rest) for content, *rest in added},
        eos_id=eos_id,
        add_prefix_space=add_prefix_space,
        files={SAVED_AS[name]: data for name, data in files.items()},
    )


def _parse(folder: Path, form: tuple[str, ...], files: dict[str, bytes]) -> tuple[Any, ...]:
    """What `files` say, checked: the fields of a Vocabulary in plain lists, tuples and dicts."""
    vocab_path, merges_path = folder / form[0], folder / form[-1]
    objects: Objects = defaultdict(dict)
    for name, data in files.items():
        if name.endswith(".json"):
            objects[name] = parse_json_object(data, str(folder / name), TokenizerError)

    if form == ("tokenizer.json",):
        model = _gpt2_model(objects["tokenizer.json"], vocab_path)
        ids = _field(model, "vocab", dict, vocab_path) or {}
        pairs = _pairs_of_json(model.get("merges"), merges_path)
    else:
        ids = objects[vocab_path.name]
        pairs = _pairs_of_text(files[merges_path.name], merges_path)
    tokens: dict[int, str] = {}
    _enter(ids, tokens, vocab_path)
    byte_ids = _byte_ids(ids, vocab_path)
    merges = _merges(pairs, ids, merges_path)

    added = _added_tokens(objects, ids, tokens, folder)
    specials = [("eos_token", END_OF_TEXT), *_special_names(objects, folder)]
    for _, content in specials:
        if content in ids:
            token = added.get(content, AddedToken(content, ids[content]))
            added[content] = replace(token, special=True)
    _check_whole(tokens, vocab_path)
    _check_reached(len(tokens), byte_ids, merges, added, merges_path)
    return (
        [tokens[token_id] for token_id in range(len(tokens))],
        byte_ids,
        merges.ranks,
        merges.joined,
        [astuple(token) for token in added.values()],
        ids.get(dict(specials)["eos_token"]),  # a dict keeps the last
        _prefix_space(objects, folder),
    )


def tokenizer_files(source: Path | GGUF) -> dict[str, bytes]:
    """name → content of the tokenizer files of a model source, under the names they are saved as.

    They are not checked. A GGUF file gives those that say what it says. Raises SourceError.
    """
    if not isinstance(source, Path) or source.is_file():
        from ..checkpoint.gguf_gpt2 import gguf_tokenizer

        return gguf_tokenizer(source)
    files: dict[str, bytes] = {}
    for name, saved_as in SAVED_AS.items():
        if saved_as not in files and (source / name).is_file():
            files[saved_as] = read_small_file(source / name, LARGEST_FILE, SourceError)
    return files


def write_vocabulary(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes the files that `vocabulary` was read from into `folder`, byte for byte.

    OpenAI's file names become Hugging Face's. Each file is replaced whole or not at all.
    Raises SourceError where the folder cannot be written, and TokenizerError, one of these, where
    it holds other tokenizer files that would mix with these.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TokenizerError(f"{folder}: cannot be written: {error.strerror}") from None
    foreign = _names_in(folder).intersection(_FILE_NAMES) - vocabulary.files.keys()
    if foreign:
        raise TokenizerError(
            f"{folder}: holds {min(foreign)} of another tokenizer: save into a fresh folder"
        )
    for name, data in vocabulary.files.items():
        write_file(folder / name, data)


# ---- forms of the files ----


def _names_in(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise TokenizerError(f"{folder}: cannot be read: {error.strerror}") from None


def _read_files(source: Path | GGUF) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """The form that wins, and the content of its files and the side files there, by name.

    For a GGUF file, of the files that would say what it says.
    """
    if not isinstance(source, Path) or source.is_file():
        files = tokenizer_files(source)
        if not files:
            path = source if isinstance(source, Path) else source.file.path
            raise TokenizerError(f"{path}: holds no tokenizer; read one from a folder")
        return ("vocab.json", "merges.txt"), files
    folder = source
    present = _names_in(folder)
    form = next((form for form in _FORMS if form[0] in present), None)
    if form is None:
        raise TokenizerError(
            f"{folder}: holds no tokenizer: tokenizer.json, or vocab.json and merges.txt, "
            "must be there"
        )
    if form[-1] not in present:
        raise TokenizerError(f"{folder}: holds {form[0]}, but no {form[-1]}")
    names = [*form, *(name for name in _SIDE_FILES if name in present)]
    return form, {
        name: read_small_file(folder / name, LARGEST_FILE, TokenizerError) for name in names
    }


def _gpt2_model(data: dict[str, Any], where: Path) -> dict[str, Any]:
    """The "model" of a tokenizer.json. Refuses one that is not of GPT-2's kind."""
    for name, accepted in _ACCEPTED.items():
        section, _, key = name.rpartition(".")
        place = _field(data, section, dict, where) or {} if section else data
        value = place.get(key)
        if value not in accepted:
            raise TokenizerError(
                f"{where}: {name} is {brief(value)}, which is no tokenizer of GPT-2's kind: "
                f"it must be {' or '.join(map(json.dumps, accepted))}"
            )
    return _field(data, "model", dict, where) or {}


def _prefix_space(objects: Objects, folder: Path) -> bool:
    """`add_prefix_space` of tokenizer_config.json, else of tokenizer.json, else False.

    Refuses `add_bos_token`: `encode` adds no token that is not in the text.
    """
    config, where = objects["tokenizer_config.json"], folder / "tokenizer_config.json"
    if _field(config, "add_bos_token", bool, where):
        raise TokenizerError(f"{where}: add_bos_token is true, which is not GPT-2's: set it false")
    chosen = _field(config, "add_prefix_space", bool, where)
    if chosen is None:
        chosen = objects["tokenizer.json"].get("pre_tokenizer", {}).get("add_prefix_space", False)
    return bool(chosen)


def _field(data: dict[str, Any], name: str, kind: type[Kind], where: Path) -> Kind | None:
    """`data[name]`, which must be of `kind`; None where it is absent or null."""
    value = data.get(name)
    if value is not None and not isinstance(value, kind):
        raise TokenizerError(f"{where}: {name} is {brief(value)}: it must be {_KIND_NAMES[kind]}")
    return value


# ---- tokens and merges ----


def _enter(ids: dict[str, Any], tokens: dict[int, str], where: Path) -> None:
    """Enters the tokens of `ids`, token → id, into `tokens`, id → token.

    Checks that no token is empty, and that each id is a number that no other token has.
    """
    for token, token_id in ids.items():
        if not token:
            raise TokenizerError(f"{where}: token '' must be a text, not empty")
        if type(token_id) is not int or token_id < 0:
            raise TokenizerError(
                f"{where}: token {brief(token)} has the id {brief(token_id)}: "
                "it must be an integer from 0 on"
            )
        if tokens.setdefault(token_id, token) != token:
            raise TokenizerError(
                f"{where}: token {brief(token)} has the id {brief(token_id)}, which is that of "
                f"{brief(tokens[token_id])}: each token must have its own"
            )


def _byte_ids(ids: dict[str, int], where: Path) -> list[int]:
    for byte, symbol in enumerate(byte_symbols()):
        if symbol not in ids:
            raise TokenizerError(
                f"{where}: lacks {symbol!r}, the symbol of byte {byte}: "
                "a byte-level vocabulary must hold all 256"
            )
    return [ids[symbol] for symbol in byte_symbols()]


def _check_whole(tokens: dict[int, str], where: Path) -> None:
    """Checks that the ids are 0 to n - 1, and the tokens text."""
    last = max(tokens)
    if last != len(tokens) - 1:
        raise TokenizerError(
            f"{where}: token {brief(tokens[last])} has the id {brief(last)}: "
            f"the ids of {len(tokens)} tokens must be 0 to {len(tokens) - 1}"
        )
    try:
        "".join(tokens.values()).encode("utf-8")
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        token = next(token for token in tokens.values() if surrogate in token)
        raise TokenizerError(
            f"{where}: token {token[:40]!a} holds a lone surrogate, which is no character"
        ) from None


def _pairs_of_text(content: bytes, where: Path) -> Iterator[list[str]]:
    """The merges of a merges.txt: lines `left right`, after one that may tell the version."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as flaw:
        raise TokenizerError(f"{where}: is not UTF-8 text (byte {flaw.start})") from None
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    if lines == [""]:
        raise TokenizerError(f"{where}: is empty: it must hold the merges, one a line")
    first = 1 if lines[0].startswith("#version") else 0
    for number, line in enumerate(lines[first:], start=first + 1):
        pair = line.split(" ")
        if len(pair) != 2:
            raise TokenizerError(
                f"{where}: line {number} is {brief(line)}: "
                "a merge is two symbols with one space between"
            )
        yield pair


def _pairs_of_json(merges: object, where: Path) -> Iterator[list[str]]:
    """The merges of a tokenizer.json: each `"left right"` or `["left", "right"]`."""
    if not isinstance(merges, list):
        raise TokenizerError(f"{where}: model.merges must be a list")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
            raise TokenizerError(f"{where}: a merge is {brief(merge)}: it must be two symbols")
        yield pair


def _merges(pairs: Iterator[list[str]], ids: dict[str, int], where: Path) -> Merges:
    """The merges over ids. No part is empty, as no token is: none gives itself back for ever."""
    ranks: dict[int, int] = {}
    joined: list[int] = []
    for rank, (left, right) in enumerate(pairs):
        try:
            ranks[ids[left] << 32 | ids[right]] = rank
            joined.append(ids[left + right])
        except KeyError:
            raise TokenizerError(
                f"{where}: merge {brief(left)} {brief(right)} does not fit the "
                "vocabulary, which must hold both parts and the two joined"
            ) from None
    if len(ranks) != len(joined):
        raise TokenizerError(f"{where}: {len(joined) - len(ranks)} merges are there twice")
    return Merges(ranks, joined)


def _check_reached(
    count: int, byte_ids: list[int], merges: Merges, added: dict[str, AddedToken], where: Path
) -> None:
    """Notices merges cut short, which would give wrong ids in silence.

    A few of the `count` tokens that no merge makes are common: padding, signs written by hand.
    """
    added_ids = [token.id for token in added.values()]
    unreached = count - len({*byte_ids, *merges.joined, *added_ids})
    plain = count - len(added)
    if 10 * unreached > plain:
        raise TokenizerError(
            f"{where}: {unreached} of {plain} tokens are made by no merge: it must be cut short"
        )


# ---- added and special tokens ----


def _added_tokens(
    objects: Objects, ids: dict[str, int], tokens: dict[int, str], folder: Path
) -> dict[str, AddedToken]:
    """The added tokens by content, entered into `ids` and `tokens` beside the vocabulary's."""
    added: dict[str, AddedToken] = {}
    for name, entry, token_id in _added_entries(objects, folder):
        where = folder / name
        if not isinstance(entry, dict):
            raise TokenizerError(f"{where}: added token {brief(entry)} must be an object")
        content = _field(entry, "content", str, where) or ""
        if ids.setdefault(content, token_id) != token_id:
            raise TokenizerError(
                f"{where}: added token {brief(content)} has the id {brief(token_id)}, "
                f"but elsewhere {ids[content]}"
            )
        _enter({content: token_id}, tokens, where)
        added[content] = AddedToken(
            content,
            ids[content],
            special=_field(entry, "special", bool, where) or False,
            single_word=_field(entry, "single_word", bool, where) or False,
            lstrip=_field(entry, "lstrip", bool, where) or False,
            rstrip=_field(entry, "rstrip", bool, where) or False,
        )
    return added


def _added_entries(objects: Objects, folder: Path) -> Iterator[tuple[str, object, Any]]:
    """(file, description, id) of every added token; of two for a token, the later wins."""
    name = "tokenizer.json"
    for entry in _field(objects[name], "added_tokens", list, folder / name) or []:
        yield name, entry, entry.get("id") if isinstance(entry, dict) else None

    name = "added_tokens.json"
    for content, token_id in objects[name].items():
        yield name, {"content": content}, token_id

    name = "tokenizer_config.json"
    decoder = _field(objects[name], "added_tokens_decoder", dict, folder / name) or {}
    for key, entry in decoder.items():
        yield name, entry, int(key) if re.fullmatch("[0-9]{1,9}", key) else key


def _special_names(objects: Objects, folder: Path) -> Iterator[tuple[str, str]]:
    """(role, content) of every special token named by role, in the order of the files."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        data, where, more = objects[name], folder / name, "additional_special_tokens"
        named = [(role, data[role]) for role in _SPECIAL_ROLES if data.get(role) is not None]
        named += [(more, value) for value in _field(data, more, list, where) or []]
        for role, value in named:
            content = value.get("content") if isinstance(value, dict) else value
            if not isinstance(content, str):
                raise TokenizerError(f"{where}: {role} is {brief(value)}: it must be a text")
            yield role, content
