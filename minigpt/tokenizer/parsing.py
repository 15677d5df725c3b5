"""Tokenizer files, parsed and checked: the contents of the files become a Vocabulary.

- Added tokens come from `tokenizer.json`, `added_tokens.json` and `tokenizer_config.json`; where
  two describe the same token, the later of these wins. Two ids of one token, or two tokens of one
  id, are an error.
- Special tokens are the added tokens marked `special`, those that `special_tokens_map.json` and
  `tokenizer_config.json` name and that have an id, and `<|endoftext|>`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any, TypeAlias, TypeVar

from ..checkpoint.strict_json import parse_json_object
from ..errors import TokenizerError
from .bpe import Merges, byte_symbols
from .vocabulary import END_OF_TEXT, AddedToken, Vocabulary

# The values in a tokenizer.json with which its ids are those of GPT-2's algorithm. None stands for
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
# {file name: its JSON object}, {} for a file that is absent
Objects: TypeAlias = defaultdict[str, dict[str, Any]]


def parse_files(folder: Path, form: tuple[str, ...], files: dict[str, bytes]) -> Vocabulary:
    """The vocabulary that `files` describe.

    folder  where they are, for messages
    form    name of the file with the vocabulary, and of that with the merges: the same or another
    files   {name: content}

    Raises TokenizerError, naming the file, for what is damaged or not of GPT-2's kind.
    """
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
    _add_tokens(ids, tokens, vocab_path)
    byte_ids = _byte_ids(ids, vocab_path)
    merges = _merges(pairs, ids, merges_path)

    added = _added_tokens(objects, ids, tokens, folder)
    specials = [("eos_token", END_OF_TEXT), *_special_names(objects, folder)]
    for _, content in specials:
        if content in ids:
            token = added.get(content, AddedToken(content, ids[content]))
            added[content] = replace(token, special=True)
    _check_ids_and_texts(tokens, vocab_path)
    _check_complete(len(tokens), byte_ids, merges, added, merges_path)
    return Vocabulary(
        tokens=[tokens[token_id] for token_id in range(len(tokens))],
        byte_ids=byte_ids,
        merges=merges,
        added=added,
        eos_id=ids.get(dict(specials)["eos_token"]),  # of several, a dict holds the last
        add_prefix_space=_add_prefix_space(objects, folder),
        files=files,
    )


# ---- tokenizer.json and tokenizer_config.json ----


def _gpt2_model(data: dict[str, Any], where: Path) -> dict[str, Any]:
    """The "model" of a tokenizer.json; raises TokenizerError unless it is of GPT-2's kind."""
    for name, accepted in _ACCEPTED.items():
        section, _, key = name.rpartition(".")
        parent = _field(data, section, dict, where) or {} if section else data
        value = parent.get(key)
        if value not in accepted:
            raise TokenizerError(
                f"{where}: {name} is {brief(value)}, which is no tokenizer of GPT-2's kind: "
                f"it must be {' or '.join(map(json.dumps, accepted))}"
            )
    return _field(data, "model", dict, where) or {}


def _add_prefix_space(objects: Objects, folder: Path) -> bool:
    """`add_prefix_space` of tokenizer_config.json, else of tokenizer.json, else False.

    Raises TokenizerError for `add_bos_token`: `encode` adds no token that is not in the text.
    """
    config, where = objects["tokenizer_config.json"], folder / "tokenizer_config.json"
    if _field(config, "add_bos_token", bool, where):
        raise TokenizerError(f"{where}: add_bos_token is true, which is not GPT-2's: set it false")
    value = _field(config, "add_prefix_space", bool, where)
    if value is None:
        value = objects["tokenizer.json"].get("pre_tokenizer", {}).get("add_prefix_space", False)
    return bool(value)


def _field(data: dict[str, Any], name: str, kind: type[Kind], where: Path) -> Kind | None:
    """`data[name]`, which must be of `kind`; None where it is absent or null."""
    value = data.get(name)
    if value is not None and not isinstance(value, kind):
        raise TokenizerError(f"{where}: {name} is {brief(value)}: it must be {_KIND_NAMES[kind]}")
    return value


# ---- tokens and merges ----


def _add_tokens(ids: dict[str, Any], tokens: dict[int, str], where: Path) -> None:
    """Add the tokens of `ids`, {token: id}, to `tokens`, {id: token}.

    Raises TokenizerError for an empty token, and for an id that is not an integer from 0 on or that
    another token has.
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
    """byte → id; raises TokenizerError for a vocabulary that lacks one of the 256."""
    for byte, symbol in enumerate(byte_symbols()):
        if symbol not in ids:
            raise TokenizerError(
                f"{where}: lacks {symbol!r}, the symbol of byte {byte}: "
                "a byte-level vocabulary must hold all 256"
            )
    return [ids[symbol] for symbol in byte_symbols()]


def _check_ids_and_texts(tokens: dict[int, str], where: Path) -> None:
    """Raises TokenizerError unless the ids are 0 to n - 1, and all tokens can be encoded."""
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
    """Yield the merges of a merges.txt: lines `left right`, after an optional version line."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{where}: is not UTF-8 text (byte {error.start})") from None
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
    """Yield the merges of a tokenizer.json: each is `"left right"` or `["left", "right"]`."""
    if not isinstance(merges, list):
        raise TokenizerError(f"{where}: model.merges must be a list")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
            raise TokenizerError(f"{where}: a merge is {brief(merge)}: it must be two symbols")
        yield pair


def _merges(pairs: Iterator[list[str]], ids: dict[str, int], where: Path) -> Merges:
    """The merges over ids. Neither symbol is empty, as no token is, so every merge shortens."""
    ranks: dict[int, int] = {}
    merged: list[int] = []
    for rank, (left, right) in enumerate(pairs):
        try:
            ranks[ids[left] << 32 | ids[right]] = rank
            merged.append(ids[left + right])
        except KeyError:
            raise TokenizerError(
                f"{where}: merge {brief(left)} {brief(right)} does not fit the "
                "vocabulary, which must hold both symbols and the merged one"
            ) from None
    if len(ranks) != len(merged):
        raise TokenizerError(f"{where}: {len(merged) - len(ranks)} merges are there twice")
    return Merges(ranks, merged)


def _check_complete(
    count: int, byte_ids: list[int], merges: Merges, added: dict[str, AddedToken], where: Path
) -> None:
    """Raises TokenizerError for truncated merges, which would give wrong ids silently.

    They are truncated if no merge makes more than a tenth of the `count` tokens. A few such tokens
    are common: padding, for instance.
    """
    added_ids = [token.id for token in added.values()]
    unmade = count - len({*byte_ids, *merges.merged, *added_ids})
    plain = count - len(added)
    if 10 * unmade > plain:
        raise TokenizerError(
            f"{where}: {unmade} of {plain} tokens are made by no merge: it must be cut short"
        )


# ---- added and special tokens ----


def _added_tokens(
    objects: Objects, ids: dict[str, int], tokens: dict[int, str], folder: Path
) -> dict[str, AddedToken]:
    """The added tokens, {content: AddedToken}; adds them to `ids` and `tokens`, too."""
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
        _add_tokens({content: token_id}, tokens, where)
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
    """Yield (file, description, id) of every added token; the later of two for a token wins."""
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
    """Yield (role, content) of every special token that is named by role, in the files' order."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        data, where, more = objects[name], folder / name, "additional_special_tokens"
        named = [(role, data[role]) for role in _SPECIAL_ROLES if data.get(role) is not None]
        named += [(more, value) for value in _field(data, more, list, where) or []]
        for role, value in named:
            content = value.get("content") if isinstance(value, dict) else value
            if not isinstance(content, str):
                raise TokenizerError(f"{where}: {role} is {brief(value)}: it must be a text")
            yield role, content
