"""Added and special tokens, from all the files that may describe them.

- Added tokens come from `tokenizer.json`, `added_tokens.json` and `tokenizer_config.json`; where
  two describe the same token, the later of these wins. Two ids of one token, or two tokens of one
  id, are an error.
- Special tokens are the added tokens marked `special`, those that `special_tokens_map.json` and
  `tokenizer_config.json` name, and `<|endoftext|>`. Where the two files contradict each other,
  `special_tokens_map.json` wins; it is not read beside an `added_tokens_decoder`.
- Tokens that are named but have no id yet get the next free ids, in the order of transformers'
  GPT2Tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any, NamedTuple

from ..errors import TokenizerError
from .json_fields import Objects, field
from .token_ids import TokenIds
from .vocabulary import END_OF_TEXT, AddedToken

_MAP, _CONFIG = "special_tokens_map.json", "tokenizer_config.json"
# In the order of their ids.
_ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# GPT2Tokenizer has `<|endoftext|>` in these roles, unless a file names another token. It is the
# class of a folder that names none.
_DEFAULT_ROLES = ("bos_token", "eos_token", "unk_token")
_DEFAULT_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")


class NamedToken(NamedTuple):
    """A special token that is named by its text.

    role     "eos_token" and the like, or "extra_special_tokens"
    content  its text
    entry    the object in the file that describes it, with flags; {} where there is none
    where    the file; None for a default of GPT2Tokenizer
    """

    role: str
    content: str
    entry: dict[str, Any]
    where: Path | None


def named_tokens(objects: Objects, folder: Path) -> list[NamedToken]:
    """The special tokens that are named, in the order in which transformers gives them ids.

    Raises TokenizerError for one that is no text.
    """
    config = objects[_CONFIG]
    roles: dict[str, NamedToken] = {}
    if config.get("tokenizer_class") in _DEFAULT_CLASSES:
        roles = {role: NamedToken(role, END_OF_TEXT, {}, None) for role in _DEFAULT_ROLES}
    extra: list[NamedToken] = []
    for name in (_CONFIG,) if config.get("added_tokens_decoder") else (_CONFIG, _MAP):
        roles |= _roles(objects[name], folder / name)
        extra += _extra(objects[name], folder / name, bool(extra))
    in_order = [roles.pop(role) for role in _ROLES if role in roles]
    return [*in_order, *roles.values(), *extra]


def _roles(data: dict[str, Any], where: Path) -> dict[str, NamedToken]:
    """{role: token} of the keys such as "eos_token", and of "extra_special_tokens" by role."""
    named = {
        role: value
        for role, value in data.items()
        if (role in _ROLES and value is not None)
        or (role.endswith("_token") and isinstance(value, str | dict))
    }
    extra = data.get("extra_special_tokens")
    if isinstance(extra, dict):
        named |= extra
    tokens = [_named(role, value, where) for role, value in named.items()]
    return {token.role: token for token in tokens if token.content}


def _extra(data: dict[str, Any], where: Path, known: bool) -> list[NamedToken]:
    """The tokens without a role: "extra_special_tokens", or "additional_special_tokens", its older
    name, unless some are `known`."""
    name = "extra_special_tokens"
    if isinstance(data.get(name), dict) or not data.get(name):
        name = "additional_special_tokens"
    values = field(data, name, list, where) or []
    if known and name == "additional_special_tokens":
        return []
    tokens = [_named(name, value, where) for value in values]
    return [token for token in tokens if token.content]


def _named(role: str, value: object, where: Path) -> NamedToken:
    entry = value if isinstance(value, dict) else {}
    content = entry.get("content") if entry else value
    if not isinstance(content, str):
        raise TokenizerError(f"{where}: {role} is {brief(value)}: it must be a text")
    return NamedToken(role, content, entry, where)


def stored_tokens(
    objects: Objects, ids: TokenIds, named: list[NamedToken], folder: Path
) -> dict[str, AddedToken]:
    """{content: AddedToken} of the added tokens that have an id in a file; `ids` gets them, too."""
    special = {token.content for token in named}
    added: dict[str, AddedToken] = {}
    for where, entry, token_id in _stored_entries(objects, special, folder):
        if not isinstance(entry, dict):
            raise TokenizerError(f"{where}: added token {brief(entry)} must be an object")
        content = field(entry, "content", str, where) or ""
        ids.add({content: token_id}, where)
        added[content] = _added_token(content, token_id, entry, where)
    return added


def _stored_entries(
    objects: Objects, special: set[str], folder: Path
) -> Iterator[tuple[Path, object, Any]]:
    """Yield (file, description, id) of every added token; the later of two for a token wins."""
    where = folder / "tokenizer.json"
    for entry in field(objects[where.name], "added_tokens", list, where) or []:
        yield where, entry, entry.get("id") if isinstance(entry, dict) else None

    where = folder / "added_tokens.json"
    for content, token_id in objects[where.name].items():
        yield where, {"content": content, "special": content in special}, token_id

    where = folder / _CONFIG
    decoder = field(objects[_CONFIG], "added_tokens_decoder", dict, where) or {}
    for key, entry in decoder.items():
        yield where, entry, int(key) if re.fullmatch("[0-9]{1,9}", key) else key


def add_named_tokens(named: list[NamedToken], ids: TokenIds, added: dict[str, AddedToken]) -> None:
    """Mark `named` and `<|endoftext|>` as special in `added`; give those an id that have none.

    The defaults of GPT2Tokenizer get an id only beside a token that a file names and that has none:
    a vocabulary with an id for each name is complete.
    """
    if any(token.where and token.content not in ids.of for token in named):
        for token in named:
            if token.content not in ids.of:
                ids.add_next(token.content)
    stored = set(added)
    by_default = [token for token in named if token.where is None]
    by_files = [token for token in named if token.where is not None]  # whose flags win
    for token in (NamedToken("eos_token", END_OF_TEXT, {}, None), *by_default, *by_files):
        content = token.content
        if content in stored:
            added[content] = replace(added[content], special=True)
        elif content in ids.of:
            entry = {**token.entry, "special": True}
            added[content] = _added_token(content, ids.of[content], entry, token.where)


def end_of_text_id(named: list[NamedToken], ids: TokenIds) -> int | None:
    """The id of the token named "eos_token", else of `<|endoftext|>`; None where it has none."""
    ends = [token.content for token in named if token.role == "eos_token"]
    return ids.of.get(ends[0] if ends else END_OF_TEXT)


def _added_token(
    content: str, token_id: int, entry: dict[str, Any], where: Path | None
) -> AddedToken:
    """The added token that the object `entry` in the file `where` describes."""
    special = field(entry, "special", bool, where) or False
    normalized = field(entry, "normalized", bool, where)
    return AddedToken(
        content,
        token_id,
        special=special,
        single_word=field(entry, "single_word", bool, where) or False,
        lstrip=field(entry, "lstrip", bool, where) or False,
        rstrip=field(entry, "rstrip", bool, where) or False,
        normalized=not special if normalized is None else normalized,
    )
