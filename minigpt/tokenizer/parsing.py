"""Tokenizer files, parsed and checked: the contents of the files become a Vocabulary.

tokenizer_json.py accepts the forms of tokenizer.json that mean GPT-2's algorithm, special_tokens.py
collects added and special tokens from all files. A vocabulary that was learned from few texts may
lack bytes, which `encode` then refuses; one that is damaged is refused here.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as brief

from ..checkpoint.strict_json import parse_json_object
from ..errors import TokenizerError
from .bpe import Merges, byte_symbols
from .json_fields import Objects, field
from .special_tokens import add_named_tokens, end_of_text_id, named_tokens, stored_tokens
from .token_ids import TokenIds
from .tokenizer_json import gpt2_model, prefixes_space
from .vocabulary import NO_ID, AddedToken, Vocabulary

_NOT_IN_UTF8 = (0xC0, 0xC1, *range(0xF5, 0x100))  # bytes that occur in no text
_CONTROL = re.compile(r"<.+>|\[.+\]", re.DOTALL)  # the usual form of a control token


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

    ids = TokenIds()
    if form[0] == form[-1]:
        objects["tokenizer.json"] = objects[form[0]]
        model = gpt2_model(objects["tokenizer.json"], vocab_path)
        ids.add(field(model, "vocab", dict, vocab_path) or {}, vocab_path)
        pairs = _pairs_of_json(model.get("merges"), merges_path)
    else:
        ids.add(objects[vocab_path.name], vocab_path)
        pairs = _pairs_of_text(files[merges_path.name], merges_path)
    byte_ids = [ids.of.get(symbol, NO_ID) for symbol in byte_symbols()]
    merges = _merges(pairs, ids.of, merges_path)

    named = named_tokens(objects, folder)
    added = stored_tokens(objects, ids, named, folder)
    ids.check(vocab_path)
    stored_size = len(ids.of)
    add_named_tokens(named, ids, added)
    tokens = ids.in_order(vocab_path)
    unmade = _unmade(tokens, byte_ids, merges, added)
    _check_bytes(byte_ids, merges, tokens, unmade, vocab_path)
    _check_complete(unmade, len(tokens) - len(added), merges_path)
    return Vocabulary(
        tokens=tokens,
        byte_ids=byte_ids,
        merges=merges,
        added=added,
        stored_size=stored_size,
        eos_id=end_of_text_id(named, ids),
        add_prefix_space=_add_prefix_space(objects, folder),
        files=files,
    )


def _add_prefix_space(objects: Objects, folder: Path) -> bool:
    """`add_prefix_space` of tokenizer_config.json, else of tokenizer.json, else False.

    Raises TokenizerError for `add_bos_token`: `encode` adds no token that is not in the text.
    """
    config, where = objects["tokenizer_config.json"], folder / "tokenizer_config.json"
    if field(config, "add_bos_token", bool, where):
        raise TokenizerError(f"{where}: add_bos_token is true, which is not GPT-2's: set it false")
    value = field(config, "add_prefix_space", bool, where)
    if value is None:
        return prefixes_space(objects["tokenizer.json"], folder / "tokenizer.json")
    return value


# ---- merges ----


def _pairs_of_text(content: bytes, where: Path) -> Iterator[list[str]]:
    """Yield the merges of a merges.txt: lines `left right`, after an optional version line."""
    try:
        text = content.removeprefix(BOM_UTF8).decode("utf-8")
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


def _unmade(
    tokens: list[str], byte_ids: list[int], merges: Merges, added: dict[str, AddedToken]
) -> list[str]:
    """The tokens that are no byte, no added token, and made by no merge.

    A few are common: padding, for instance. Tokens such as `<pad>` or `[UNK]` are left out.
    """
    made = {*byte_ids, *merges.merged, *(token.id for token in added.values())}
    unmade = [token for token_id, token in enumerate(tokens) if token_id not in made]
    return [token for token in unmade if not _CONTROL.fullmatch(token)]


def _check_bytes(
    byte_ids: list[int], merges: Merges, tokens: list[str], unmade: list[str], where: Path
) -> None:
    """Raises TokenizerError for a vocabulary that lacks bytes, unless it may be byte-level and
    whole, but learned from texts that did not have these bytes.

    It is not if it merges other symbols than those of bytes. It is damaged if it has a byte that no
    text has, so that it began with all 256, and another token in place of one that is missing.
    """
    if NO_ID not in byte_ids:
        return
    missing = byte_ids.index(NO_ID)
    problem = f"{where}: lacks {byte_symbols()[missing]!r}, the symbol of byte {missing}"
    if max(byte_ids) == NO_ID:
        raise TokenizerError(f"{problem}, and those of all others: it is not byte-level")
    made = {*byte_ids, *merges.merged}
    parts = {token_id for pair in merges.ranks for token_id in (pair >> 32, pair & 0xFFFFFFFF)}
    if not parts <= made:
        raise TokenizerError(
            f"{problem}, and merges {brief(tokens[min(parts - made)])}, the symbol of no byte: it "
            "is damaged, or not byte-level"
        )
    if unmade and any(byte_ids[byte] != NO_ID for byte in _NOT_IN_UTF8):
        raise TokenizerError(
            f"{problem}, and holds {brief(unmade[0])}, which no merge makes: it is damaged"
        )


def _check_complete(unmade: list[str], plain: int, where: Path) -> None:
    """Raises TokenizerError for truncated merges, which would give wrong ids silently.

    They are truncated if no merge makes more than a tenth of the `plain` tokens, the added ones not
    counted.
    """
    if 10 * len(unmade) > plain:
        raise TokenizerError(
            f"{where}: {len(unmade)} of {plain} tokens are made by no merge: it must be cut short"
        )
