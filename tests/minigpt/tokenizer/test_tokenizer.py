"""GPTTokenizer: OpenAI's ids, exact round trips, added tokens, and linear time."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pickle import dumps, loads
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_vocabulary import toy_vocab, vocab, write_toy

from minigpt.errors import InputError
from minigpt.tokenizer.bpe import byte_symbols
from minigpt.tokenizer.tokenizer import GPTTokenizer

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "tokenizer_ids.json"
SYMBOLS = byte_symbols()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> GPTTokenizer:
    return GPTTokenizer.from_pretrained(write_toy(tmp_path_factory.mktemp("toy")))


# ---- ids ----


def test_ids_equal_those_of_tiktoken(gpt2: GPTTokenizer) -> None:
    """Texts of all kinds; make_tokenizer_golden.py wrote the ids."""
    for row in json.loads(GOLDEN.read_text(encoding="ascii")):
        assert gpt2.encode(row["text"]) == row["ids"], row["text"]
        assert gpt2.decode(row["ids"]) == row["text"]


def test_vocabulary_of_gpt2(gpt2: GPTTokenizer) -> None:
    assert (gpt2.vocab_size, gpt2.eos_token_id) == (50257, 50256)


def test_the_worked_example_of_bpe(toy: GPTTokenizer) -> None:
    vocab = toy_vocab()
    assert toy.encode("low lower") == [vocab["low"], vocab["Ġlow"], vocab["er"]]


def test_return_tensors(toy: GPTTokenizer) -> None:
    ids = toy.encode("low", return_tensors="np")
    assert ids.dtype == np.int64
    assert ids.tolist() == [toy.encode("low")]
    assert toy.encode("", return_tensors="np").shape == (1, 0)
    with pytest.raises(InputError, match="return_tensors 'pt': must be one of np"):
        toy.encode("low", return_tensors="pt")  # type: ignore[call-overload]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_decode_undoes_encode(gpt2: GPTTokenizer, text: str) -> None:
    assert gpt2.decode(gpt2.encode(text)) == text


def test_decode_takes_all_iterables(toy: GPTTokenizer) -> None:
    low = toy_vocab()["low"]
    for ids in ([low], (low,), np.array([low]), np.array([low], np.uint16), [np.int32(low)]):
        assert toy.decode(ids) == toy.decode(iter(ids)) == "low"
    assert toy.decode(i for i in (low, low)) == toy.decode(range(low, low + 1)) * 2
    assert toy.decode({"a": low, "b": low}.values()) == "lowlow"
    assert toy.decode([]) == toy.decode(np.array([], dtype=np.int64)) == ""


@pytest.mark.parametrize(
    "ids",
    [
        [-1],
        [-(10**30)],
        [1.0],
        ["a"],
        [True],
        "abc",
        b"abc",
        {1, 2},
        {1: 2},
        None,
        5,
        [[1]],
        [[1], [1, 2]],
        [None],
        [None, 10**30],
    ],
    ids=str,
)
def test_wrong_ids_raise_input_error(toy: GPTTokenizer, ids: Any) -> None:
    with pytest.raises(InputError, match=r"^ids: ") as caught:
        toy.decode(ids)
    assert "\n" not in str(caught.value)
    if isinstance(ids, list):
        with pytest.raises(InputError):
            toy.stream_decoder().push(ids[0])


@pytest.mark.parametrize("beyond", [261, 2**31, 2**63, 2**64 - 1, 2**64, 10**30])
def test_ids_beyond_the_tokenizer_have_no_text(toy: GPTTokenizer, beyond: int) -> None:
    """As in transformers; a model with a padded vocabulary generates them."""
    low = toy_vocab()["low"]
    assert toy.decode([low, beyond, low]) == toy.decode(iter([low, beyond, low])) == "lowlow"
    if beyond < 2**64:
        assert toy.decode(np.array([low, beyond, low], np.uint64)) == "lowlow"
    assert toy.stream_decoder().push(beyond) == ""


@pytest.mark.parametrize("flag", ["False", "", 1, 0, None])
def test_flags_are_true_or_false(toy: GPTTokenizer, flag: Any) -> None:
    for call in (
        lambda: toy.encode("low", allow_special=flag),
        lambda: toy.decode([0], skip_special_tokens=flag),
        lambda: toy.stream_decoder(skip_special_tokens=flag),
    ):
        with pytest.raises(InputError, match=r"_special.* .*: must be True or False"):
            call()


@pytest.mark.parametrize("folder", [None, True, 5, "", b"folder"])
def test_a_wrong_folder_is_an_input_error(toy: GPTTokenizer, folder: Any) -> None:
    with pytest.raises(InputError, match=r"^folder .*: must be the path of a folder"):
        toy.save_pretrained(folder)


@pytest.mark.parametrize("text", [b"bytes", None, 5, ["a"]])
def test_text_must_be_str(toy: GPTTokenizer, text: Any) -> None:
    with pytest.raises(InputError, match=r"^text: .*; must be a str"):
        toy.encode(text)


def test_lone_surrogates_are_named(toy: GPTTokenizer) -> None:
    with pytest.raises(InputError, match=r"text: has '\\udc80', a lone surrogate, at 2"):
        toy.encode("ab\udc80")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda t: loads(dumps(t))])
def test_copies_and_pickles(toy: GPTTokenizer, copied: Callable[[Any], GPTTokenizer]) -> None:
    toy.encode("a memo of pre-tokens")
    other = copied(toy)
    assert other is not toy
    assert other.encode("low<|endoftext|>", allow_special=True) == [257, 260]
    assert (other.vocab_size, other.eos_token_id, other.decode([257])) == (261, 260, "low")
    assert len(dumps(toy)) < 20_000


def test_the_class_is_imported_from_the_package_without_numba() -> None:
    program = (
        "import sys, minigpt.tokenizer\n"
        "assert 'minigpt.tokenizer.tokenizer' not in sys.modules\n"
        "from minigpt.tokenizer import GPTTokenizer, StreamDecoder\n"
        "from minigpt.tokenizer.tokenizer import GPTTokenizer as other\n"
        "print(GPTTokenizer is other, 'numba' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["True", "False"]


# ---- streams ----


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50256)), st.booleans())
def test_stream_equals_decode(gpt2: GPTTokenizer, ids: list[int], skip: bool) -> None:
    """Random ids, most of which are not UTF-8."""
    stream = gpt2.stream_decoder(skip_special_tokens=skip)
    assert "".join(map(stream.push, ids)) + stream.flush() == gpt2.decode(ids, skip)


@given(ids=st.lists(st.integers(0xC0, 0xFF) | st.integers(0x80, 0xBF)))
def test_stream_equals_decode_on_bytes(toy: GPTTokenizer, ids: list[int]) -> None:
    """Lead and continuation bytes in any order: characters break off everywhere."""
    stream = toy.stream_decoder()
    assert "".join(map(stream.push, ids)) + stream.flush() == toy.decode(ids)


def test_stream_returns_whole_characters_only(toy: GPTTokenizer) -> None:
    stream = toy.stream_decoder()
    assert [stream.push(i) for i in toy.encode("é😀a")] == ["", "é", "", "", "", "😀", "a"]
    stream.push(toy.encode("😀")[0])
    assert [stream.flush(), stream.flush()] == ["\ufffd", ""]
    assert stream.push(toy.encode("a")[0]) == "a"


def test_bytes_that_are_not_utf8_become_replacement_characters(toy: GPTTokenizer) -> None:
    ids = toy_vocab()
    assert toy.decode([ids[SYMBOLS[0xFF]], ids["a"], ids[SYMBOLS[0xC3]]]) == "\ufffda\ufffd"


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


def test_the_longest_added_token_matches(tmp_path: Path) -> None:
    added = {"<x>": 261, "<x><y>": 262, "löw er": 263}
    tokenizer = GPTTokenizer.from_pretrained(write_toy(tmp_path, added_tokens=added))
    assert tokenizer.vocab_size == 264
    assert tokenizer.encode("<x><y><x>löw er") == [262, 261, 263]
    assert tokenizer.decode([262, 261, 263]) == "<x><y><x>löw er"


def test_names_of_special_tokens(tmp_path: Path) -> None:
    """special_tokens_map's eos wins, as in transformers; a name may be an object."""
    write_toy(
        tmp_path,
        added_tokens={"<end>": 261, "<pad>": 262, "<user>": 263},
        special_tokens_map={"eos_token": "<pad>", "pad_token": {"content": "<pad>"}},
        tokenizer_config={"eos_token": "<end>", "additional_special_tokens": ["<user>", "<none>"]},
    )
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token_id == 262
    assert tokenizer.vocab_size == 265  # <none> has got the next free id
    assert tokenizer.encode("<end><pad><user>", allow_special=True)[-2:] == [262, 263]
    assert not {262, 263} & set(tokenizer.encode("<end><pad><user>"))
    assert tokenizer.decode([262, 263, 264, 260]) == ""


@pytest.mark.parametrize(
    ("flags", "text", "parts"),
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
    toy: GPTTokenizer, tmp_path: Path, flags: dict[str, bool], text: str, parts: list[str | int]
) -> None:
    decoder = {"261": {"content": "<m>", **flags}}
    write_toy(tmp_path, tokenizer_config={"added_tokens_decoder": decoder})
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    expected = [i for p in parts for i in ([p] if isinstance(p, int) else toy.encode(p))]
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


# ---- time ----


@pytest.mark.parametrize("unit", ["a", "ab", "x1", " ", "\n", " \n", "!", "😀", "é", "'s", "q z"])
def test_time_is_nearly_linear(gpt2: GPTTokenizer, unit: str) -> None:
    """50 thousand units take 0.1 to 0.2 seconds; quadratic time would be minutes."""
    text = unit * 50_000
    began = time.process_time()
    ids = gpt2.encode(text)
    assert time.process_time() - began < 10
    assert gpt2.decode(ids) == text


def test_time_of_a_long_random_pretoken(gpt2: GPTTokenizer) -> None:
    text = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=100_000))
    began = time.process_time()
    assert gpt2.decode(gpt2.encode(text)) == text
    assert time.process_time() - began < 10


def test_time_of_white_space_around_stripping_tokens(tmp_path: Path) -> None:
    decoder = {"261": {"content": "<m>", "lstrip": True, "rstrip": True}}
    write_toy(tmp_path, tokenizer_config={"added_tokens_decoder": decoder})
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    began = time.process_time()
    assert tokenizer.encode((" " * 1000 + "<m>") * 100 + " " * 100_000 + "x")[:100] == [261] * 100
    assert time.process_time() - began < 10
