"""generate and stream, with a model whose every answer is known."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from counter import EOS, N_POSITIONS, Counter, V

from minigpt import GPTModel
from minigpt.errors import InputError


def stream(model: Counter, ids: object, *args: object, **options: object) -> Iterator[int]:
    return GPTModel.stream(model, ids, *args, **options)


def generate(model: Counter, ids: object, *args: object, **options: object) -> np.ndarray | list:
    return GPTModel.generate(model, ids, *args, **options)


class Tensor:
    """An array of another library."""

    def __init__(self, values: object) -> None:
        self.values = values
        self.ndim = np.ndim(values)

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.array(self.values)

    def __iter__(self) -> Iterator[Tensor]:
        return map(Tensor, self.values)


class OnAnotherDevice:
    """A tensor that NumPy cannot read."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise TypeError("copy it to the CPU first")


def test_stream_feeds_the_prompt_once_and_then_each_token() -> None:
    model = Counter()
    assert list(stream(model, [1, 2], 3)) == [3, 4, 5]
    assert model.fed == [{0: [1, 2]}, {0: [3]}, {0: [4]}]
    assert model.capacity == 5


@pytest.mark.parametrize("ids", [[1, 2], (1, 2), np.array([1, 2], np.uint8), np.array([[1, 2]])])
def test_stream_takes_one_prompt_in_any_form(ids: object) -> None:
    assert list(stream(Counter(), ids, 2)) == [3, 4]


@pytest.mark.parametrize(
    "ids",
    [
        range(1, 3),
        iter([1, 2]),
        (i for i in (1, 2)),
        map(np.int8, (1, 2)),
        array("i", [1, 2]),
        Tensor([1, 2]),
        Tensor([[1, 2]]),
    ],
)
def test_any_iterable_of_integers_is_a_prompt(ids: object) -> None:
    out = generate(Counter(), ids, 2)
    assert isinstance(out, np.ndarray)
    assert out.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    "ids",
    [
        [range(1, 3), iter([5])],
        iter([(1, 2), np.array([5])]),
        (each for each in ([1, 2], map(int, "5"))),
        [Tensor([1, 2]), Tensor([5])],
    ],
)
def test_any_iterable_of_prompts_is_a_list_of_prompts(ids: object) -> None:
    out = generate(Counter(), ids, 2)
    assert [row.tolist() for row in out] == [[1, 2, 3, 4], [5, 6, 7]]


@pytest.mark.parametrize("ids", [[], (), iter(()), np.array([]), np.zeros((1, 0), int), [[]]])
def test_an_empty_prompt_begins_after_the_start_token(ids: object) -> None:
    model = Counter()
    out = generate(model, ids, 3)
    assert [row.tolist() for row in out] == [[0, 1, 2]]
    assert isinstance(out, list) == (isinstance(ids, list) and len(ids) == 1)
    assert model.fed[0] == {0: [EOS]}
    assert list(stream(Counter(), [], 2)) == [0, 1]


def test_empty_prompts_among_others() -> None:
    first, second = generate(Counter(), [[], [5]], 2)
    assert (first.tolist(), second.tolist()) == ([0, 1], [5, 6, 7])
    rows = generate(Counter(), np.zeros((2, 0), int), 2)
    assert rows.tolist() == [[0, 1], [0, 1]]


def test_an_empty_prompt_draws_what_follows_the_start_token() -> None:
    options = {"temperature": 1.0, "seed": 3, "max_new_tokens": 9}
    after_start = generate(Counter(flat=True), [EOS], **options)[0, 1:]
    assert generate(Counter(flat=True), [], **options).tolist() == [after_start.tolist()]


def test_an_empty_prompt_needs_a_start_token() -> None:
    model = Counter()
    model.config = replace(model.config, eos_token_ids=(), start_token_id=None)
    for function in (stream, generate):
        with pytest.raises(InputError, match=r"^ids: empty, and this model's config names no"):
            function(model, [])


def test_the_start_token_takes_a_position() -> None:
    out = generate(Counter(), [], 99, eos_token_id=None)
    assert out.shape == (1, N_POSITIONS - 1)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"top_p": 0.9}, "without top_p;"),
        ({"top_k": 3, "min_p": 0.1}, "without top_k and min_p;"),
        ({"top_p": 1.0, "top_k": 0, "min_p": 0.0}, None),
        ({"temperature": 0.5, "top_p": 0.9}, None),
        ({"seed": 3}, None),
    ],
)
def test_filters_without_a_temperature_are_greedy_with_a_warning(
    options: dict, names: str | None
) -> None:
    expected = generate(Counter(), [1], 2).tolist()
    for function in (stream, generate):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out = list(function(Counter(), [1], 2, **options))
        if "temperature" not in options:
            assert np.ravel(out)[-2:].tolist() == expected[0][1:]
        assert len(caught) == (names is not None)
        if names is not None:
            assert caught[0].category is UserWarning
            assert names in str(caught[0].message)
            assert caught[0].filename == __file__


def test_a_row_ends_with_its_end_of_text_token() -> None:
    assert list(stream(Counter(), [7])) == [8, 9]
    assert list(stream(Counter(), [7], 4, eos_token_id=None)) == [8, 9, 0, 1]
    assert list(stream(Counter(), [1], eos_token_id=3)) == [2, 3]
    # an end-of-text token in the prompt ends nothing
    assert list(stream(Counter(), [9], 2)) == [0, 1]


def test_prompt_and_new_tokens_fill_the_context_and_no_more() -> None:
    new = list(stream(Counter(), [0] * 12, 99, eos_token_id=None))
    assert new == [1, 2, 3, 4]
    assert list(stream(Counter(), [0] * N_POSITIONS, 99)) == []


def test_no_new_tokens_is_no_work() -> None:
    model = Counter()
    assert generate(model, [1, 2], 0).tolist() == [[1, 2]]
    assert list(stream(model, [1, 2], 0)) == []
    assert model.fed == []


def test_closing_the_stream_stops_the_work() -> None:
    model = Counter()
    tokens = stream(model, [0])
    assert next(tokens) == 1
    tokens.close()
    assert len(model.fed) == 1
    assert list(tokens) == []


def test_generate_of_an_array_pads_rows_that_ended() -> None:
    model = Counter()
    out = generate(model, np.array([[0, 6], [0, 1]], np.int32), 4)
    assert out.dtype == np.int64
    assert out.tolist() == [[0, 6, 7, 8, 9, 9], [0, 1, 2, 3, 4, 5]]
    assert model.fed[-1] == {1: [4]}  # the finished row costs nothing


def test_generate_of_an_array_is_as_long_as_its_longest_row() -> None:
    assert generate(Counter(), np.array([[6], [7]]), 50).tolist() == [[6, 7, 8, 9], [7, 8, 9, 9]]


def test_generate_of_a_list_gives_each_prompt_its_own_end() -> None:
    rows = generate(Counter(), [[6], np.array([1, 2]), [0] * 15], 4)
    assert [row.dtype for row in rows] == [np.int64] * 3
    assert [row.tolist() for row in rows] == [[6, 7, 8, 9], [1, 2, 3, 4, 5, 6], [0] * 15 + [1]]


def test_a_list_of_one_prompt_gives_a_list() -> None:
    (row,) = generate(Counter(), [[1, 2]], 1)
    assert row.tolist() == [1, 2, 3]


def test_a_row_of_a_batch_does_not_depend_on_its_neighbours() -> None:
    options = {"temperature": 1.0, "seed": 3, "eos_token_id": None}
    alone = list(stream(Counter(flat=True), [1], 12, **options))
    batch = generate(Counter(flat=True), [[1], [2, 3], [4]], 12, **options)
    other = generate(Counter(flat=True), [[1], [5] * 9], 12, **options)
    assert batch[0][1:].tolist() == other[0][1:].tolist() == alone
    assert batch[1][2:].tolist() != alone
    assert list(stream(Counter(flat=True), [1], 12, temperature=1.0, eos_token_id=None)) != alone


HOSTILE_IDS = [
    np.zeros((0, 3), np.int64),
    np.zeros((1, 1, 1), np.int64),
    np.array(3),
    np.array([1.0]),
    np.array([True]),
    np.array([1, None], object),
    np.array(["1"]),
    [1.0],
    [True],
    [None],
    [[1], 2],
    [[[1]]],
    [-1],
    [V],
    [10**30],
    np.array([2**63], np.uint64),
    np.array([[1], [-1]]),
    [0] * (N_POSITIONS + 1),
    "12",
    b"12",
    12,
    None,
    {1: 2},
    {1, 2},
    bytearray(b"12"),
    ["1", "2"],
    np.ma.masked_array([1, 2], [False, True]),
    [np.ma.masked_array([1, 2], [False, True])],
    OnAnotherDevice(),
]


@pytest.mark.parametrize("ids", HOSTILE_IDS, ids=lambda ids: repr(ids)[:40])
@pytest.mark.parametrize("function", [stream, generate])
def test_wrong_ids_are_errors_at_the_call(function: object, ids: object) -> None:
    model = Counter()
    with pytest.raises(InputError, match=r"^ids"):
        function(model, ids)  # type: ignore[operator]
    assert model.fed == []


@pytest.mark.parametrize("ids", [[[1], [2]], np.zeros((2, 2), int)])
def test_stream_refuses_several_prompts(ids: object) -> None:
    with pytest.raises(InputError, match="generate"):
        stream(Counter(), ids)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": -1},
        {"max_new_tokens": 1.0},
        {"max_new_tokens": True},
        {"max_new_tokens": None},
        {"eos_token_id": -1},
        {"eos_token_id": V},
        {"eos_token_id": 1.0},
        {"eos_token_id": "9"},
        {"eos_token_id": [9, V]},
        {"eos_token_id": [[9]]},
        {"eos_token_id": np.array([1.0, 2.0])},
        {"temperature": -1},
    ],
)
def test_wrong_options_are_errors_at_the_call(options: dict) -> None:
    for function in (stream, generate):
        with pytest.raises(InputError, match=rf"^{next(iter(options))} .*must be"):
            function(Counter(), [1], **options)


def test_several_tokens_end_a_row_and_the_first_pads() -> None:
    rows = generate(Counter(), np.array([[1], [5], [0]]), 4, eos_token_id=[7, 3])
    assert rows.tolist() == [[1, 2, 3, 7], [5, 6, 7, 7], [0, 1, 2, 3]]


def test_ids_beyond_the_tokenizer_are_not_chosen() -> None:
    model = Counter()
    model.sampled_vocab_size = 5
    assert list(stream(model, [3], 3)) == [4, 0, 1]
    assert list(stream(model, [3], 3, vocab_size=7)) == [4, 5, 6]
    assert generate(model, [3], 3).tolist() == [[3, 4, 0, 1]]
    # an end beyond it is
    assert list(stream(model, [7], 3)) == [0, 1, 2]
    assert list(stream(model, [EOS - 1], 3)) == [EOS]
    assert list(stream(model, [5], 3, eos_token_id=6)) == [6]


def test_a_vocabulary_can_be_limited() -> None:
    assert list(stream(Counter(), [3], 3, vocab_size=5)) == [4, 0, 1]
    assert generate(Counter(), [[3], [0]], 2, vocab_size=np.int8(5))[0].tolist() == [3, 4, 0]
