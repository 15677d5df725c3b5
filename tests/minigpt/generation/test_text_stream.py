"""TextStream and StopFilter: pieces of text, stop strings, and why a text ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from counter import EOS, Counter, V
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.errors import InputError
from minigpt.generation.text_stream import StopFilter, TextStream


class Tokens:
    """A tokenizer for 10 tokens; token 3 is half a character, which 4 completes; 9 is special."""

    table: Sequence[str] = ["zero", "one", " two", "", "é", "END", "!", "", " eight", "<eos>"]

    def __init__(self, rest: str = "", vocab_size: int = V) -> None:
        self.rest = rest
        self.vocab_size = vocab_size

    def stream_decoder(self) -> Tokens:
        return self

    def push(self, token_id: int) -> str:
        return "" if token_id == EOS else self.table[token_id]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        (token_id,) = ids
        if token_id == EOS:
            return "" if skip_special_tokens else self.table[EOS]
        return self.table[token_id] or "\ufffd"

    def flush(self) -> str:
        return self.rest


def text_of(ids: list[int], rest: str = "", **options: object) -> TextStream:
    return TextStream(Counter(), Tokens(rest), ids, **options)


def test_text_comes_token_by_token() -> None:
    text = text_of([0], max_new_tokens=4)
    assert list(text) == ["one", " two", "", "é", ""]
    assert text.ids == [1, 2, 3, 4]
    assert text.reason == "length"


def test_only_ids_that_the_tokenizer_knows_are_generated() -> None:
    model = Counter(flat=True)
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 1, "eos_token_id": None}
    text = TextStream(model, Tokens(vocab_size=2), [0], **options)
    assert "".join(text).count("e") == 12  # of zero and one
    assert set(text.ids) == {0, 1}


def test_an_empty_prompt_begins_after_the_start_token() -> None:
    text = text_of([], max_new_tokens=2)
    assert "".join(text) == "zeroone"
    assert text.ids == [0, 1]


def test_end_of_text_has_no_text() -> None:
    text = text_of([7])
    assert "".join(text) == " eight"
    assert (text.ids, text.reason) == ([8, 9], "eos")


def test_an_end_that_is_no_special_token_has_its_text() -> None:
    text = text_of([0], eos_token_id=[2, 7])
    assert "".join(text) == "one two"
    assert (text.ids, text.reason) == ([1, 2], "eos")


def test_an_end_beyond_the_tokenizer_ends_the_text() -> None:
    text = TextStream(Counter(), Tokens(vocab_size=9), [6], stop="x")
    assert "".join(text) == " eight"
    assert (text.ids, text.reason) == ([7, 8, 9], "eos")


@pytest.mark.parametrize(
    ("stop", "expected", "ids"),
    [
        ("<eos>", " eight", [8, 9]),
        ("eos>", " eight", [8, 9]),
        ("<e", " eight", [8, 9]),
        ("ht<eo", " eig", [8, 9]),
        ("t<eos>ze", " eigh", [8, 9, 0]),
    ],
)
def test_the_text_of_a_special_token_is_part_of_a_stop_string(
    stop: str, expected: str, ids: list[int]
) -> None:
    text = text_of([7], stop=stop, eos_token_id=None)
    assert "".join(text) == expected
    assert (text.ids, text.reason) == (ids, "stop")


def test_a_special_token_has_no_text_after_stop_strings_that_do_not_come() -> None:
    text = text_of([7], stop=["<eos>?", "zzz"], eos_token_id=None, max_new_tokens=3)
    assert "".join(text) == " eightzero"
    assert text.reason == "length"


def test_a_full_context_is_the_reason() -> None:
    text = text_of([0] * 14, eos_token_id=None)
    assert "".join(text) == "one two"
    assert text.reason == "context"


@pytest.mark.parametrize(
    ("stop", "expected", "ids"),
    [
        ("two", "one ", [1, 2]),
        (["e t"], "on", [1, 2]),
        (["éEN", "w"], "one t", [1, 2]),
        (["éEN"], "one two", [1, 2, 3, 4, 5]),
        (["zzz", "one"], "", [1]),
    ],
)
def test_stop_strings_end_the_text_before_them(stop: object, expected: str, ids: list) -> None:
    text = text_of([0], stop=stop)
    assert "".join(text) == expected
    assert (text.ids, text.reason) == (ids, "stop")


def test_a_beginning_of_a_stop_string_is_passed_on_in_the_end() -> None:
    text = text_of([0], stop=["two more"], max_new_tokens=2)
    assert list(text) == ["one", " ", "two"]
    assert text.reason == "length"


def test_a_stop_string_is_found_in_the_very_last_chunk() -> None:
    text = text_of([0], rest="\ufffd.", stop=["\ufffd"], max_new_tokens=1)
    assert "".join(text) == "one"
    assert text.reason == "stop"


def test_nothing_follows_a_stop_string() -> None:
    assert "".join(text_of([0], rest="\ufffd", stop=["two"])) == "one "


def test_closing_the_text_stops_the_work() -> None:
    model = Counter()
    text = TextStream(model, Tokens(), [0])
    next(text)
    text.close()
    assert list(text) == []
    assert len(model.fed) == 1
    assert text.reason is None


@pytest.mark.parametrize("stop", ["", [""], [1], ["a", None], None, 3, {"a"}])
def test_wrong_stop_strings_are_errors(stop: object) -> None:
    with pytest.raises(InputError, match=r"^stop"):
        text_of([0], stop=stop)


@settings(max_examples=300)
@given(
    st.text("ab", max_size=24),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    st.lists(st.integers(0, 24), max_size=8),
)
def test_the_text_does_not_depend_on_how_it_is_cut_into_chunks(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    stop_filter = StopFilter(stops)
    edges = [0, *sorted(cuts), len(text)]
    passed_on = ""
    for start, end in pairwise(edges):
        if stop_filter.found:
            break
        passed_on += stop_filter.push(text[start:end])
        # text that was passed on can never be taken back
        assert text.startswith(passed_on)
    if not stop_filter.found:
        passed_on += stop_filter.flush()
    starts = [text.find(stop) for stop in stops if stop in text]
    assert passed_on == text[: min(starts, default=None)]
    assert stop_filter.found == bool(starts)


def test_a_text_stream_takes_a_model_and_a_tokenizer() -> None:
    with pytest.raises(InputError, match=r"^model None: must be a GPTModel"):
        TextStream(None, Tokens(), [0])
    with pytest.raises(InputError, match=r"^tokenizer 'x': must be a GPTTokenizer"):
        TextStream(Counter(), "x", [0])
