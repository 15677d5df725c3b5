"""The engine against PyTorch: the states that golden/make_golden.py wrote, through the public API.

One folder of golden/ per variant of the architecture and form of checkpoint. The tests need
neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from minigpt import GPTModel

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("golden/*/states.npz"))

# of the largest logit: the float32 of two engines differs by 1e-6, a wrong formula by 1e-4
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Golden:
    model: GPTModel
    states: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest) -> Iterator[Golden]:
    with np.load(request.param / "states.npz") as states:
        yield Golden(GPTModel.from_pretrained(request.param, dtype="f32"), dict(states))


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal to TOLERANCE of the scale of the expected logits."""
    assert actual.shape == expected.shape
    error = abs(actual - expected.astype(np.float64)).max() / abs(expected).max()
    assert error < TOLERANCE


def continuation(golden: Golden, prompt: np.ndarray, count: int) -> np.ndarray:
    """The `count` tokens that greedy decoding adds to one prompt."""
    ids = golden.model.generate(prompt[None], max_new_tokens=count, eos_token_id=None)
    assert np.array_equal(ids[0, : len(prompt)], prompt)
    return ids[0, len(prompt) :]


def last_logits(golden: Golden, pieces: list[np.ndarray]) -> np.ndarray:
    """Float32 [V]: the logits after one sequence that is fed piece by piece."""
    engine = golden.model.engine
    cache = engine.new_cache(1, sum(len(piece) for piece in pieces))
    slot = cache.allocate()
    for piece in pieces:
        logits = engine.forward(cache, [slot], [piece])
    return logits[0]


def test_every_case_is_there() -> None:
    """An empty glob would let all the others pass unseen."""
    assert len(FOLDERS) == 13


def test_logits_are_torch_s(golden: Golden) -> None:
    """A whole batch, against torch in float32 and against the truth in float64."""
    logits = golden.model(golden.states["ids"]).logits
    assert logits.dtype == np.float32
    assert_close(logits, golden.states["logits"])
    assert_close(logits, golden.states["truth"])


def test_output_is_a_tuple_too(golden: Golden) -> None:
    output = golden.model(golden.states["ids"])
    assert output[0] is output.logits


def test_200_greedy_tokens_are_torch_s(golden: Golden) -> None:
    expected = golden.states["greedy"]
    actual = continuation(golden, golden.states["greedy_prompt"], len(expected))
    assert actual.tolist() == expected.tolist()


def test_stream_is_generate(golden: Golden) -> None:
    expected = golden.states["greedy"]
    prompt = golden.states["greedy_prompt"].tolist()
    tokens = golden.model.stream(prompt, max_new_tokens=len(expected), eos_token_id=None)
    assert list(tokens) == expected.tolist()


def test_long_context_at_once(golden: Golden) -> None:
    """All positions in one pass give the tokens that were found one by one, and torch's logits."""
    prompt, greedy = golden.states["greedy_prompt"], golden.states["greedy"]
    logits = golden.model(np.append(prompt, greedy)[None, :-1]).logits[0]
    assert logits[len(prompt) - 1 :].argmax(-1).tolist() == greedy.tolist()
    assert_close(logits[-1], golden.states["greedy_last"])


def test_pieces_give_the_whole(golden: Golden) -> None:
    """Fed token by token, or in pieces of odd lengths, a sequence has the same logits."""
    ids = np.append(golden.states["greedy_prompt"], golden.states["greedy"])[:-1]
    for pieces in (np.split(ids, len(ids)), np.split(ids, [1, 8, 72, 73, 140])):
        assert_close(last_logits(golden, pieces), golden.states["greedy_last"])


def test_a_token_at_a_time_gives_every_logit(golden: Golden) -> None:
    """Not only the last: each row of the cache is right as soon as it is written."""
    ids = golden.states["ids"]
    engine = golden.model.engine
    cache = engine.new_cache(len(ids), ids.shape[1])
    slots = [cache.allocate() for _ in ids]
    columns = np.split(ids, ids.shape[1], axis=1)
    steps = [engine.forward(cache, slots, list(column)) for column in columns]
    assert_close(np.stack(steps, axis=1), golden.states["logits"])


def test_unequal_prompts_are_each_alone(golden: Golden) -> None:
    """A batch of prompts of 1, 5 and 13 tokens does to each what it does alone."""
    prompts = [golden.states[f"prompt_{i}"] for i in range(3)]
    tokens = [golden.states[f"tokens_{i}"] for i in range(3)]
    count = len(tokens[0])
    together = golden.model.generate(prompts, max_new_tokens=count, eos_token_id=None)
    for prompt, expected, ids in zip(prompts, tokens, together, strict=True):
        assert ids.tolist() == [*prompt.tolist(), *expected.tolist()]
        assert continuation(golden, prompt, count).tolist() == expected.tolist()


def test_rows_of_unequal_length_have_the_logits_of_each_alone(golden: Golden) -> None:
    """Rows advance together by unequal steps, in another order, and only some of them."""
    a, b = golden.states["ids"]
    engine = golden.model.engine
    cache = engine.new_cache(2, len(a))
    slot_a, slot_b = cache.allocate(), cache.allocate()
    engine.forward(cache, [slot_a, slot_b], [a[:1], b[:7]])
    engine.forward(cache, [slot_a], [a[1:4]])
    second, first = engine.forward(cache, [slot_b, slot_a], [b[7:8], a[4:11]])
    assert_close(first, golden.states["logits"][0, 10])
    assert_close(second, golden.states["logits"][1, 7])
