"""Training of a vocabulary: the merges equal those of a naive algorithm and of tokenizers."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.errors import InputError, MinigptWarning
from minigpt.tokenizer import training as tokenizer_training
from minigpt.tokenizer.bpe import byte_symbols, chunks, pretokenize, token_bytes
from minigpt.tokenizer.files import read_vocabulary
from minigpt.tokenizer.tokenizer import GPTTokenizer
from minigpt.tokenizer.training import (
    MIN_VOCAB_SIZE,
    byte_tokens,
    count_pretokens,
    learn_merges,
    train_tokenizer,
)

GOLDEN = Path(__file__).parents[2] / "golden"
TEXTS = st.lists(st.text(st.sampled_from("aaabbc  .\né"), max_size=40), max_size=6)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "trained_tokenizer.json").read_text("ascii"))
    return found


@pytest.fixture(scope="module")
def trained(golden: dict[str, Any]) -> GPTTokenizer:
    return train_tokenizer(golden["texts"], golden["vocab_size"])


def naive_merges(texts: list[str], number: int) -> list[tuple[str, str]]:
    """A naive algorithm: count every pair again for each merge."""
    symbols = byte_symbols()
    split = [[symbols[b] for b in word.encode()] for text in texts for word in pretokenize(text)]
    tokens = sorted(symbols)
    merges: list[tuple[str, str]] = []
    while len(merges) < number:
        counts = Counter(pair for word in split for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], *map(tokens.index, pair)), default=None)
        if best is None or counts[best] < 2:
            break
        merges.append(best)
        tokens.append("".join(best))
        for i, word in enumerate(split):
            split[i] = []
            for symbol in word:
                split[i].append(symbol)
                # what was just merged is longer than best's left part: it cannot join again
                if tuple(split[i][-2:]) == best:
                    split[i][-2:] = ["".join(best)]
    return merges


# ---- merges ----


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(0, 30))
def test_merges_equal_those_of_the_naive_algorithm(texts: list[str], number: int) -> None:
    """With few letters, ties, runs of one letter and too few pairs are common."""
    merges = learn_merges(count_pretokens(texts), number)
    assert merges == naive_merges(texts, number)
    assert len({left + right for left, right in merges}) == len(merges)


def test_merges_equal_those_of_the_tokenizers_library(
    golden: dict[str, Any], trained: GPTTokenizer
) -> None:
    """Pre-tokens of all kinds; most of the 143 merges tie with others."""
    counts = count_pretokens(golden["texts"])
    merges = learn_merges(counts, golden["vocab_size"] - MIN_VOCAB_SIZE)
    assert [" ".join(merge) for merge in merges] == golden["merges"]


def test_worked_example_of_the_module() -> None:
    merges = learn_merges({"low": 5, "lower": 2, "newest": 6}, 3)
    assert merges == [("w", "e"), ("l", "o"), ("e", "we")]


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False))
def test_the_order_of_texts_does_not_matter(texts: list[str], chance: random.Random) -> None:
    expected = learn_merges(count_pretokens(texts), 30)
    chance.shuffle(texts)
    assert learn_merges(count_pretokens(texts), 30) == expected


# ---- long texts ----


@settings(max_examples=200)
@given(st.text(st.sampled_from("ab1! \n\t\u00a0\u3000\x1c\u200b'sé")), st.integers(1, 9))
def test_chunks_do_not_change_the_pretokens(text: str, length: int) -> None:
    pretokens = [pretoken for chunk in chunks(text, length) for pretoken in pretokenize(chunk)]
    assert pretokens == pretokenize(text)


def test_a_long_text_is_cut_into_chunks() -> None:
    text = "word and " * 250_000
    found = list(chunks(text, 1 << 20))
    assert "".join(found) == text
    assert len(found) == 3


def test_rare_pretokens_are_dropped_where_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer_training, "MAX_PRETOKENS", 10)
    texts = ["often", *(f"rare{chr(97 + i)} often" for i in range(26))]
    counts = count_pretokens(iter(texts))
    assert counts[" often"] == 26
    assert len(counts) <= 10


def test_a_very_long_pretoken_takes_seconds_at_most() -> None:
    """100,000 letters, random and all equal: merged as one pre-token they would take minutes."""
    chance = random.Random(0)
    run = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=100_000))
    start = time.perf_counter()
    train_tokenizer([run, "a" * 100_000], 1000)
    assert time.perf_counter() - start < 15


def test_progress_counts_the_merges() -> None:
    seen: list[tuple[int, int]] = []
    train_tokenizer(["to and fro, " * 3], MIN_VOCAB_SIZE + 2, lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]


# ---- the tokenizer ----


def test_ids_equal_those_of_the_tokenizers_library(
    golden: dict[str, Any], trained: GPTTokenizer
) -> None:
    """Texts of all kinds; that library encodes <|endoftext|> as the token."""
    rows = json.loads((GOLDEN / "tokenizer_ids.json").read_text(encoding="ascii"))
    for row, ids in zip(rows, golden["ids"], strict=True):
        assert trained.encode(row["text"], allow_special=True) == ids, row["text"]


def test_files_are_those_that_the_tokenizers_library_has_read(
    golden: dict[str, Any], trained: GPTTokenizer, tmp_path: Path
) -> None:
    trained.save_pretrained(tmp_path)
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()
    }
    assert digests == golden["files"]


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json and merges.txt"])
def test_saved_files_read_as_the_same_vocabulary(
    trained: GPTTokenizer, tmp_path: Path, form: str
) -> None:
    trained.save_pretrained(tmp_path)
    if form != "tokenizer.json":
        (tmp_path / "tokenizer.json").unlink()
    read = read_vocabulary(tmp_path)
    for field in fields(read):
        if field.name != "files":
            assert getattr(trained._vocabulary, field.name) == getattr(read, field.name)


def test_ids_are_bytes_then_merges_then_the_end_of_text(
    golden: dict[str, Any], trained: GPTTokenizer
) -> None:
    tokens = trained._vocabulary.tokens
    assert tokens[:256] == byte_tokens()
    assert tokens[256:-1] == [merge.replace(" ", "") for merge in golden["merges"]]
    assert tokens[-1] == "<|endoftext|>"
    assert trained.eos_token_id == trained.vocab_size - 1 == golden["vocab_size"] - 1
    assert len(set(map(token_bytes, tokens))) == len(tokens)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_decode_undoes_encode(trained: GPTTokenizer, text: str) -> None:
    assert trained.decode(trained.encode(text)) == text


@pytest.mark.parametrize("texts", [[], [""], ["", "a"]])
def test_a_vocabulary_of_bytes_needs_no_text(texts: list[str], tmp_path: Path) -> None:
    train_tokenizer(texts, MIN_VOCAB_SIZE).save_pretrained(tmp_path)
    tokenizer = GPTTokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size == 257
    assert tokenizer.decode(tokenizer.encode("so é")) == "so é"


# ---- errors ----


@pytest.mark.parametrize("size", [256, 0, -1, 0x110001, 300.0, "300", None, True])
def test_wrong_vocab_sizes(size: Any) -> None:
    with pytest.raises(InputError, match=r"^vocab_size .*: must be an integer from 257 to 1114112"):
        train_tokenizer(["text"], size)


def test_vocab_size_may_be_a_numpy_integer() -> None:
    assert train_tokenizer([], np.int64(257)).vocab_size == 257  # type: ignore[arg-type]


@pytest.mark.parametrize(("texts", "most"), [([], 257), (["abc"], 257), (["ab ab ab"], 259)])
def test_too_little_text_is_an_error_with_the_size_it_gives(texts: list[str], most: int) -> None:
    with pytest.raises(InputError, match=f"vocab_size 300: more than .* make {most} tokens"):
        train_tokenizer(texts, 300)
    assert train_tokenizer(texts, most).vocab_size == most


@pytest.mark.parametrize("text", [None, b"bytes", 1])
def test_texts_must_be_str(text: Any) -> None:
    with pytest.raises(InputError, match=r"^texts\[1\]: .*; must be a str"):
        train_tokenizer(["text", text], 300)


@pytest.mark.parametrize("texts", [None, 5])
def test_texts_must_be_several(texts: Any) -> None:
    with pytest.raises(InputError, match=r"^texts .*: must be several texts"):
        train_tokenizer(texts, 300)


def test_progress_must_be_a_function() -> None:
    with pytest.raises(InputError, match=r"^progress 5: must be a function or None"):
        train_tokenizer(["text"], 257, progress=5)  # type: ignore[arg-type]


def test_a_str_is_not_a_list_of_texts() -> None:
    with pytest.raises(InputError, match=r"^texts: a str"):
        train_tokenizer("a text", 300)


def test_lone_surrogates_are_named() -> None:
    with pytest.raises(InputError, match=r"^texts\[0\]: has '\\udc80', a lone surrogate, at 2"):
        train_tokenizer(["ab\udc80"], 300)


MARKED = "the cat<|endoftext|>the hat<|endoftext|>\n" * 3


def test_the_letters_of_the_end_of_text_token_are_no_words() -> None:
    size = MIN_VOCAB_SIZE + 4
    with pytest.warns(MinigptWarning, match=r"hold <\|endoftext\|> and are cut there") as caught:
        found = train_tokenizer([MARKED, MARKED], size)
    assert len(caught) == 1
    cut = train_tokenizer(["the cat", "the hat"] * 6, size)
    assert found.vocabulary.tokens == cut.vocabulary.tokens
    assert train_tokenizer([MARKED] * 2, size, allow_special=True).vocabulary == found.vocabulary


def test_too_few_pairs_without_these_letters() -> None:
    """Where the cut was not asked for, the command still gives what the texts give."""
    with pytest.warns(MinigptWarning) as caught:
        tokenizer = train_tokenizer([MARKED], 300)
    assert "make " + str(tokenizer.vocab_size) + " tokens" in str(caught[1].message)
    with pytest.raises(InputError, match="ask for no more, or give more text"):
        train_tokenizer([MARKED], 300, allow_special=True)
