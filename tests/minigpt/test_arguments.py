"""Checks of arguments: what each accepts, and the one line it raises for everything else."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt import GPTModel, GPTTokenizer
from minigpt.arguments import (
    MAX_THREADS,
    as_float,
    check_callable,
    check_model,
    check_tokenizer,
    checked_batch,
    checked_bool,
    checked_choice,
    checked_count,
    checked_file_name,
    checked_file_names,
    checked_folder,
    checked_ids,
    checked_integer,
    checked_number,
    checked_prompts,
    checked_strings,
    checked_targets,
    checked_text,
    checked_threads,
    checked_token_ids,
    is_integer,
)
from minigpt.config import GPTConfig
from minigpt.errors import InputError, MinigptError, short_repr

ENDLESS = 10**5000  # Python refuses to print it
NOT_INTEGERS = [True, np.True_, 1.0, np.float32(1), math.nan, "1", b"1", None, [1], np.array([1])]
CONFIG = GPTConfig.from_dict(
    {"n_layer": 1, "n_head": 1, "n_embd": 1, "n_positions": 4, "vocab_size": 10}, "config"
)


def message(call: Callable[[], object]) -> str:
    """The message of the InputError that a call raises: one line of reasonable length."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 300
    return text


@pytest.mark.parametrize(
    "check",
    [
        lambda: checked_integer("option", 9, 1, 8),
        lambda: checked_number("option", math.nan, "from 0 to 1", 0, 1),
        lambda: checked_choice("option", "c", ["a", "b"]),
        lambda: checked_strings("option", [""]),
        lambda: checked_text("option", "\ud800"),
    ],
)
def test_an_error_carries_the_name_of_the_argument(check: Callable[[], object]) -> None:
    """The command line tells by it a wrong option from a bad file."""
    with pytest.raises(InputError) as caught:
        check()
    assert caught.value.argument == "option"
    assert pickle.loads(pickle.dumps(caught.value)).argument == "option"
    assert InputError("book.txt: is empty").argument is None


integers = st.integers() | st.builds(np.int64, st.integers(-(2**63), 2**63 - 1))


@given(integers, st.integers(-100, 100), st.none() | st.integers(-100, 2**70))
def test_an_integer_in_its_range_is_returned_as_an_int(value, minimum, maximum) -> None:
    if value >= minimum and (maximum is None or value <= maximum):
        found = checked_integer("n", value, minimum, maximum)
        assert type(found) is int
        assert found == value
    else:
        assert message(lambda: checked_integer("n", value, minimum, maximum)).startswith("n ")


@pytest.mark.parametrize(
    "value", [*NOT_INTEGERS, object(), {}, -ENDLESS], ids=lambda value: type(value).__name__
)
def test_nothing_else_is_an_integer(value: object) -> None:
    assert is_integer(value) == (type(value) is int)
    assert "must be an integer from 0 to 9" in message(lambda: checked_integer("n", value, 0, 9))


def test_the_message_of_an_integer() -> None:
    assert message(lambda: checked_integer("n", 12, 1, 9, "the context")) == (
        "n 12: must be an integer from 1 to 9, the context"
    )
    assert message(lambda: checked_integer("n", True, 1)) == "n True: must be an integer from 1"
    assert "too long to print" in message(lambda: checked_integer("n", ENDLESS, 1, 9))


@given(
    st.floats()
    | st.integers(-(10**400), 10**400)
    | st.builds(np.float32, st.floats(width=32))
    | st.builds(np.int8, st.integers(-128, 127))
)
def test_a_number_in_its_range_is_returned_as_a_float(value) -> None:
    inside = -1 <= value <= 100  # NaN is in no range
    if inside:
        found = checked_number("x", value, "from -1 to 100", -1, 100)
        assert type(found) is float
        assert found == value
    else:
        text = message(lambda: checked_number("x", value, "from -1 to 100", -1, 100))
        assert text.startswith("x ")
        assert text.endswith(": must be from -1 to 100")


@pytest.mark.parametrize("value", [True, np.True_, "1", b"1", None, [1.0], np.array([1.0]), 1j])
def test_nothing_else_is_a_number(value: object) -> None:
    assert math.isnan(as_float(value))
    message(lambda: checked_number("x", value, "a number", -sys.float_info.max, sys.float_info.max))


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, ENDLESS, -ENDLESS], ids=short_repr
)
def test_no_range_holds_a_number_that_is_not_finite(value: float) -> None:
    message(lambda: checked_number("x", value, "a number", -math.inf, math.inf))


def test_an_open_end_is_the_next_float() -> None:
    assert checked_number("x", 5e-324, "above 0", math.nextafter(0, 1), 1) == 5e-324
    message(lambda: checked_number("x", 0, "above 0", math.nextafter(0, 1), 1))


def test_a_choice_is_one_of_the_strings() -> None:
    assert checked_choice("dtype", np.str_("f32"), ["f32", "bf16"]) == "f32"
    for value in ("F32", "", "f32 ", b"f32", 0, None, ["f32"], np.array(["f32"])):
        text = message(lambda value=value: checked_choice("dtype", value, ["f32", "bf16"]))
        assert text.endswith(": must be one of f32, bf16")


@given(st.text(min_size=1), st.lists(st.text(min_size=1)))
def test_strings_are_one_or_a_list(string: str, strings: list[str]) -> None:
    assert checked_strings("stop", string) == [string]
    assert checked_strings("stop", strings) == checked_strings("stop", tuple(strings)) == strings


@pytest.mark.parametrize("value", ["", [""], [1], ["a", None], None, 3, {"a"}, b"a", [b"a"]])
def test_nothing_else_is_a_string(value: object) -> None:
    assert message(lambda: checked_strings("stop", value)).startswith("stop")


def test_a_text_is_a_str_of_characters() -> None:
    assert checked_text("text", "a \U0001f600") == "a \U0001f600"
    assert message(lambda: checked_text("text", b"a")) == "text: bytes; must be a str"
    surrogate = "text: has '\\udc80', a lone surrogate, at 2; must consist of characters"
    assert message(lambda: checked_text("text", "ab\udc80")) == surrogate


def test_a_bool_is_of_python_or_numpy() -> None:
    assert checked_bool("flag", True) is checked_bool("flag", np.True_) is True
    assert checked_bool("flag", False) is False
    for value in ("False", 1, 0, None, [], np.array([True])):
        text = message(lambda value=value: checked_bool("flag", value))
        assert text.endswith(": must be True or False")


def test_a_callback_is_a_function_or_none() -> None:
    check_callable("report", None)
    check_callable("report", print)
    for value in (5, 0, "x", False):
        text = message(lambda value=value: check_callable("report", value))
        assert text == f"report {value!r}: must be a function or None"


def test_a_count_fits_a_json_file() -> None:
    assert checked_count("n", 2**53 - 1, 1) == 2**53 - 1
    assert message(lambda: checked_count("n", 0, 1)) == "n 0: must be an integer from 1"
    assert message(lambda: checked_count("n", 2**53, 1)).endswith("from 1 to 9007199254740991")


def test_a_model_and_a_tokenizer_are_objects_of_their_kind() -> None:
    for value in (None, 5, "folder", GPTModel, GPTTokenizer):
        text = message(lambda value=value: check_model("a", value))
        assert text.endswith(": must be a GPTModel")
        text = message(lambda value=value: check_tokenizer("b", value))
        assert text.endswith(": must be a GPTTokenizer")


def test_files_are_one_name_or_a_list() -> None:
    for files in ("a.txt", Path("a.txt"), ["a.txt"], (Path("a.txt"),)):
        assert checked_file_names("files", files) == ["a.txt"]
    assert checked_file_name("file", Path("a.txt")) == "a.txt"
    for wrong in (None, 5, "", [], [5], [b"x"], b"x", [""], (name for name in "ab"), {"a"}):
        assert message(lambda wrong=wrong: checked_file_names("files", wrong)).startswith("files")
    for wrong in (None, 5, "", ["a.txt"], b"x"):
        assert message(lambda wrong=wrong: checked_file_name("file", wrong)).startswith("file")


def test_a_folder_is_a_path() -> None:
    assert checked_folder("a") == checked_folder(Path("a")) == Path("a")
    for wrong in (None, True, 5, "", b"a"):
        text = message(lambda wrong=wrong: checked_folder(wrong))
        assert text == f"folder {wrong!r}: must be the path of a folder"


def test_the_name_of_a_file_in_a_message_can_be_printed() -> None:
    error = MinigptError("a\nb\udc80/c\x1b é: cannot be read")
    assert str(error) == r"a\nb\udc80/c\x1b é: cannot be read"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_threads_are_by_default_one_for_each_processor() -> None:
    assert 1 <= checked_threads(None) <= MAX_THREADS
    assert checked_threads(np.int64(3)) == 3
    for value in (0, MAX_THREADS + 1, True, 2.0, "2"):
        message(lambda value=value: checked_threads(value))


# ---- ids and targets ----


@pytest.mark.parametrize("ids", [[3, 9], (np.int8(3), 9), np.array([3, 9], np.uint64), []])
def test_flat_ids_become_int64(ids) -> None:
    array = checked_ids(ids, 10)
    assert (array.tolist(), array.dtype) == (list(map(int, ids)), np.int64)


def test_integers_of_mixed_types_are_ids_and_targets() -> None:
    """NumPy alone would make them float64."""
    mixed = [np.int8(3), np.uint64(4)]
    assert checked_ids(mixed, 10).tolist() == [3, 4]
    assert checked_prompts(mixed, CONFIG)[0].tolist() == [3, 4]
    targets, counted = checked_targets([np.int8(-100), np.uint64(4)], (1, 2), CONFIG)
    assert (targets.tolist(), counted) == ([[-100, 4]], 1)
    targets, _ = checked_targets([mixed, [5, 6]], (2, 2), CONFIG)
    assert targets.tolist() == [[3, 4], [5, 6]]
    message(lambda: checked_ids([np.int8(3), np.uint64(2**64 - 1)], 10))
    message(lambda: checked_ids([np.int8(3), 4.0], 10))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([3, 10], "ids: 10 is not a token; ids go from 0 to 9"),
        ([-1], "ids: -1 is not a token"),
        ([[1], [2, 3]], "ids: must be a flat sequence of integers"),
        ([[1]], "ids: int64 of shape [1, 1]; must be a flat sequence of integers"),
        ([1.0], "ids: float64 of shape [1]; must be"),
        ([True], "ids: bool of shape [1]; must be"),
        ([ENDLESS], "ids: object of shape [1]; must be"),
        ("12", "ids: <U2 of shape []; must be"),
    ],
    ids=short_repr,
)
def test_the_message_of_wrong_flat_ids(ids: object, expected: str) -> None:
    assert message(lambda: checked_ids(ids, 10)).startswith(expected)


def test_prompts_come_in_three_forms() -> None:
    for ids in ([1, 2], (np.int8(1), 2), np.array([1, 2], ">u2"), np.array([[1, 2]]), [[1, 2]]):
        (prompt,) = checked_prompts(ids, CONFIG)
        assert prompt.dtype == np.int64
        assert prompt.tolist() == [1, 2]
    prompts = checked_prompts([[1], np.array([2, 3])], CONFIG)
    assert [prompt.tolist() for prompt in prompts] == [[1], [2, 3]]


def test_prompts_are_copies() -> None:
    ids = np.array([1, 2])
    (prompt,) = checked_prompts(ids, CONFIG)
    ids[0] = 10**6
    assert prompt.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], "ids: empty"),
        ([[1], []], r"ids[1]: empty"),
        (np.zeros((0, 2), int), "ids: no sequences"),
        ([10], "ids: 10 is not a token; ids go from 0 to 9"),
        ([-1], "ids: -1 is not a token"),
        ([ENDLESS], "ids: <int too long to print> is not a token"),
        ([1] * 5, "ids: 5 tokens, where this model's context is 4"),
        ([True], "ids: holds a bool; must hold integers only"),
        (np.array([1.0]), "ids: float64 of shape [1]; must be integers"),
        ("12", "ids: str; must be"),
    ],
    ids=short_repr,
)
def test_the_message_of_wrong_ids(ids: object, expected: str) -> None:
    assert message(lambda: checked_prompts(ids, CONFIG)).startswith(expected)


def test_a_batch_has_sequences_of_one_length() -> None:
    assert checked_batch([[1, 2], [3, 4]], CONFIG).tolist() == [[1, 2], [3, 4]]
    assert checked_batch(np.array([1, 2], np.int8), CONFIG).dtype == np.int64
    assert "sequences of 1 to 2 tokens" in message(lambda: checked_batch([[1], [2, 3]], CONFIG))


def test_targets_may_be_ignored_but_not_all() -> None:
    targets, counted = checked_targets([[1, -100]], (1, 2), CONFIG)
    assert (targets.tolist(), targets.dtype, counted) == ([[1, -100]], np.int64, 1)
    assert "at least one" in message(lambda: checked_targets([-100, -100], (1, 2), CONFIG))
    assert "10 is neither" in message(lambda: checked_targets([[1, 10]], (1, 2), CONFIG))
    assert "shape [1, 3]" in message(lambda: checked_targets([[1, 2, 3]], (1, 2), CONFIG))
    assert "ragged" in message(lambda: checked_targets([[1], [2, 3]], (2, 1), CONFIG))


class Sly(int):
    """An integer that says it is in every range."""

    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __lt__


def test_an_integer_is_compared_as_it_counts() -> None:
    for check in (
        lambda: checked_prompts([Sly(10)], CONFIG),
        lambda: checked_targets([[Sly(10)]], (1, 1), CONFIG),
        lambda: checked_token_ids("eos_token_id", [Sly(10)], 10),
        lambda: checked_integer("option", Sly(10), 0, 9),
    ):
        assert "10" in message(check)


def test_masked_arrays_are_refused() -> None:
    """NumPy drops the mask, and what it hides would be read."""
    masked = np.ma.masked_array([1, 2], [False, True])
    for ids in (masked, [masked], masked[None]):
        assert "masked array" in message(lambda ids=ids: checked_prompts(ids, CONFIG))
        targets = message(lambda ids=ids: checked_targets(ids, (1, 2), CONFIG))
        assert targets.startswith("targets: a masked array")
    message(lambda: checked_ids(masked, 10))
