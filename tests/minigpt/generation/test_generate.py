"""generate and stream, with a model whose every answer is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from counter import N_POSITIONS, Counter, V

from minigpt import GPTModel
from minigpt.errors import InputError


def stream(model: Counter, ids: object, *args: object, **options: object) -> Iterator[int]:
    return GPTModel.stream(model, ids, *args, **options)


def generate(model: Counter, ids: object, *args: object, **options: object) -> np.ndarray | list:
    return GPTModel.generate(model, ids, *args, **options)


def test_stream_feeds_the_prompt_once_and_then_each_token() -> None:
    model = Counter()
    assert list(stream(model, [1, 2], 3)) == [3, 4, 5]
    assert model.fed == [{0: [1, 2]}, {0: [3]}, {0: [4]}]
    assert model.capacity == 5


@pytest.mark.parametrize("ids", [[1, 2], (1, 2), np.array([1, 2], np.uint8), np.array([[1, 2]])])
def test_stream_takes_one_prompt_in_any_form(ids: object) -> None:
    assert list(stream(Counter(), ids, 2)) == [3, 4]


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
    [],
    [[]],
    [[1], []],
    np.zeros((0, 3), np.int64),
    np.zeros((2, 0), np.int64),
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
    iter([1]),
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


def test_a_vocabulary_can_be_limited() -> None:
    assert list(stream(Counter(), [3], 3, vocab_size=5)) == [4, 0, 1]
    assert generate(Counter(), [[3], [0]], 2, vocab_size=np.int8(5))[0].tolist() == [3, 4, 0]
