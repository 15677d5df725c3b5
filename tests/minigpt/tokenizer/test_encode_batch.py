"""encode_batch gives the ids of encode, text for text, in Python and compiled, for any threads."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import GPTTokenizer, InputError
from minigpt.tokenizer import compiled, tokenizer

TEXTS = st.lists(
    st.lists(
        st.sampled_from(
            ["<|endoftext|>", " the", "'s", " ", "\n", "cat", "é", "中", "\u3000", "7", "!"]
        )
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    ).map("".join),
    max_size=8,
)


@pytest.fixture(scope="module")
def subject() -> GPTTokenizer:
    return GPTTokenizer.from_pretrained()


@pytest.fixture(params=["in Python", "compiled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "compiled":
        monkeypatch.setattr(tokenizer, "COMPILED_FROM", -1)
        monkeypatch.setattr(tokenizer, "SHORT", -1)
        monkeypatch.setattr(compiled, "_MIN_BYTES", 1)  # a thread for a text
    return request.param


def test_ids_equal_those_of_encode(subject: GPTTokenizer, way: str) -> None:
    plain = GPTTokenizer.from_pretrained()

    @settings(max_examples=100, deadline=None)
    @given(TEXTS, st.booleans(), st.integers(1, 4))
    def check(texts: list[str], special: bool, threads: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizer, "COMPILED_FROM", 1 << 60)
            expected = [plain.encode(text, allow_special=special) for text in texts]
        batch = subject.encode_batch(texts, allow_special=special, threads=threads)
        assert batch == expected
        arrays = subject.encode_batch(texts, "np", special, threads)
        assert [ids.tolist() for ids in arrays] == expected
        assert {ids.dtype for ids in arrays} <= {np.dtype(np.int64)}
        assert {ids.ndim for ids in arrays} <= {1}

    check()


def test_any_iterable_and_no_text_at_all(subject: GPTTokenizer, way: str) -> None:
    assert subject.encode_batch(iter(["a", ""])) == [subject.encode("a"), []]
    assert subject.encode_batch([]) == []
    assert subject.encode_batch([], "np") == []


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("abc", {}, "texts: str; must be a list of str"),
        (7, {}, "texts: int; must be a list of str"),
        (["a", b"b"], {}, "texts: bytes; must be a str"),
        (["a", "b\ud800"], {}, "lone surrogate"),
        (["a"], {"threads": 0}, "threads 0: must be an integer from 1"),
        (["a"], {"return_tensors": "pt"}, "must be one of np"),
        (["a"], {"allow_special": 1}, "must be True or False"),
    ],
)
def test_wrong_arguments(
    subject: GPTTokenizer, way: str, texts: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        subject.encode_batch(texts, **options)


def test_a_tokenizer_that_encoded_is_pickled_without_its_memo(
    subject: GPTTokenizer, way: str
) -> None:
    subject.encode_batch(["Once upon a time", " there was"])
    again = pickle.loads(pickle.dumps(subject))
    assert again.encode_batch([" there was"]) == subject.encode_batch([" there was"])
