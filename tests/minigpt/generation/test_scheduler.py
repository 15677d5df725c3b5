"""The scheduler: which tokens a pass takes, how requests end, and that no request sees another."""

from __future__ import annotations

import copy
import linecache
import pickle
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from counter import EOS, N_POSITIONS, Counter, V
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import GPTModel, GPTTokenizer, TextStream
from minigpt.errors import CheckpointError, InputError
from minigpt.generation.scheduler import Event, Request, Scheduler
from minigpt.model.engine import Engine

FOLDER = Path(__file__).resolve().parents[2] / "golden" / "gelu-new"


def drain(scheduler: Scheduler) -> list[Event]:
    """All events to the end."""
    events = []
    while scheduler.num_unfinished:
        events += scheduler.step()
    assert scheduler.step() == []
    return events


def generated(model: object, ids: list[int], **options: object) -> tuple[list[int], str]:
    scheduler = Scheduler(model, 1)
    request = scheduler.add(ids, **options)
    drain(scheduler)
    return request.token_ids, request.finished


# ---- what a pass takes ----


def test_one_request_reads_its_prompt_and_then_each_token() -> None:
    model = Counter()
    assert generated(model, [1, 2], max_new_tokens=3) == ([3, 4, 5], "length")
    assert model.fed == [{0: [1, 2]}, {0: [3]}, {0: [4]}]


def test_generating_requests_come_first_and_prompts_are_cut_to_what_is_left() -> None:
    model = Counter()
    scheduler = Scheduler(model, 3, max_batch_tokens=4)
    scheduler.add([1, 2], 3)
    scheduler.step()
    scheduler.add([0] * 5, 1)
    scheduler.add([5, 6], 1)
    drain(scheduler)
    assert model.fed == [
        {0: [1, 2]},
        {0: [3], 1: [0, 0, 0]},
        {0: [4], 1: [0, 0], 2: [5]},
        {2: [6]},
    ]


def test_requests_beyond_the_slots_wait_in_order() -> None:
    scheduler = Scheduler(Counter(), 2)
    requests = [scheduler.add([i], 2, eos_token_id=None) for i in range(5)]
    ends = [event.request for event in drain(scheduler) if event.finished]
    assert ends == requests
    assert [request.token_ids for request in requests] == [[i + 1, i + 2] for i in range(5)]


def test_events_come_in_the_order_of_the_requests() -> None:
    scheduler = Scheduler(Counter(), 4)
    requests = [scheduler.add([i], 3, eos_token_id=None) for i in range(4)]
    for _ in range(3):
        assert [event.request for event in scheduler.step()] == requests


def test_requests_that_end_outside_the_pass_come_first_in_the_order_of_their_ends() -> None:
    scheduler = Scheduler(Counter(), 3)
    a, b, c = (scheduler.add([i], 3, eos_token_id=None) for i in range(3))
    scheduler.step()
    scheduler.cancel(c)
    scheduler.cancel(b)
    d = scheduler.add([3], 0)  # nothing to generate
    e = scheduler.add([4], 1, eos_token_id=None)
    events = [(event.request, event.finished) for event in scheduler.step()]
    assert events == [
        (c, "cancelled"), (b, "cancelled"), (d, "length"), (a, None), (e, "length"),
    ]  # fmt: skip


def test_a_step_without_requests_does_nothing() -> None:
    model = Counter()
    scheduler = Scheduler(model)
    assert (scheduler.num_unfinished, scheduler.step(), model.fed) == (0, [], [])


# ---- how requests end ----


@pytest.mark.parametrize(
    ("ids", "options", "tokens", "finished"),
    [
        ([1], {"max_new_tokens": 2}, [2, 3], "length"),
        ([7], {}, [8, 9], "eos"),
        ([7], {"eos_token_id": 8}, [8], "eos"),
        ([7], {"max_new_tokens": 2}, [8, 9], "eos"),  # both: the token says so
        ([0] * 13, {}, [1, 2, 3], "context"),
        ([0] * 13, {"max_new_tokens": 3}, [1, 2, 3], "length"),
        ([0] * N_POSITIONS, {}, [], "context"),
        ([1], {"max_new_tokens": 0}, [], "length"),
        ([9], {"max_new_tokens": 0}, [], "length"),
    ],
)
def test_why_a_request_ends(ids: list, options: dict, tokens: list, finished: str) -> None:
    model = Counter()
    scheduler = Scheduler(model)
    request = scheduler.add(ids, **options)
    events = drain(scheduler)
    assert [event.token_id for event in events if event.token_id is not None] == tokens
    assert [event.finished for event in events] == [None] * (len(events) - 1) + [finished]
    assert (request.token_ids, request.finished, request.error) == (tokens, finished, None)
    assert bool(model.fed) == bool(tokens)


def test_capacity_is_the_context_of_a_scheduler() -> None:
    scheduler = Scheduler(Counter(), capacity=5)
    request = scheduler.add([0, 0, 0])
    drain(scheduler)
    assert (request.token_ids, request.finished) == ([1, 2], "context")
    with pytest.raises(InputError, match=r"ids: 6 tokens, .* room for 5"):
        scheduler.add([0] * 6)


def test_cancel_frees_the_slot_at_once() -> None:
    model = Counter()
    scheduler = Scheduler(model, 1)
    first = scheduler.add([0])
    second = scheduler.add([4], 1)
    scheduler.step()
    scheduler.cancel(first)
    assert first.finished == "cancelled"
    events = scheduler.step()
    assert [(e.request, e.token_id, e.finished) for e in events] == [
        (first, None, "cancelled"),
        (second, 5, "length"),
    ]
    assert model.fed == [{0: [0]}, {0: [4]}]


def test_cancelling_a_waiting_request_computes_nothing_of_it() -> None:
    model = Counter()
    scheduler = Scheduler(model, 1)
    first, second = scheduler.add([0], 2), scheduler.add([4])
    scheduler.cancel(second, "stop")
    events = drain(scheduler)
    assert [(e.request, e.finished) for e in events if e.finished] == [
        (second, "stop"),
        (first, "length"),
    ]
    assert all(4 not in tokens for fed in model.fed for tokens in fed.values())


def test_cancelling_a_finished_request_changes_nothing() -> None:
    scheduler = Scheduler(Counter())
    request = scheduler.add([0], 1)
    drain(scheduler)
    scheduler.cancel(request)
    assert request.finished == "length"
    assert scheduler.num_unfinished == 0


def test_cancel_refuses_other_reasons_and_other_schedulers_requests() -> None:
    scheduler = Scheduler(Counter())
    request = scheduler.add([0])
    with pytest.raises(InputError, match=r"reason 'eos': must be one of cancelled, stop"):
        scheduler.cancel(request, "eos")
    with pytest.raises(InputError, match="another scheduler"):
        Scheduler(Counter()).cancel(request)


@pytest.mark.parametrize(
    "options",
    [
        {"slots": 0},
        {"slots": 513},
        {"slots": True},
        {"slots": 4, "max_batch_tokens": 3},
        {"max_batch_tokens": 0},
        {"max_batch_tokens": 513},
        {"capacity": 0},
        {"capacity": N_POSITIONS + 1},
        {"capacity": 1.0},
    ],
)
def test_wrong_arguments_of_a_scheduler(options: dict) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(options))} .*must be an integer from"):
        Scheduler(Counter(), **options)


@pytest.mark.parametrize("model", [None, "gpt2"])
def test_what_is_no_model_is_refused(model: object) -> None:
    with pytest.raises(InputError, match="must be a GPTModel"):
        Scheduler(model)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [[V], [[1], [2]], [0] * (N_POSITIONS + 1), "1", None])
def test_wrong_prompts_are_not_queued(ids: object) -> None:
    scheduler = Scheduler(Counter())
    with pytest.raises(InputError, match=r"^ids"):
        scheduler.add(ids)
    with pytest.raises(InputError, match=r"^temperature"):
        scheduler.add([1], temperature=-1)
    with pytest.raises(InputError, match=r"^eos_token_id"):
        scheduler.add([1], eos_token_id=V)
    assert scheduler.num_unfinished == 0


def test_an_empty_prompt_is_the_start_token() -> None:
    scheduler = Scheduler(Counter(), capacity=3)
    request = scheduler.add([], 9)
    drain(scheduler)
    assert (request.prompt.tolist(), request.token_ids, request.finished) == (
        [9],
        [0, 1],
        "context",
    )


def test_ends_of_each_request() -> None:
    scheduler = Scheduler(Counter())
    requests = [scheduler.add([1], eos_token_id=eos) for eos in ([3, 5], iter([5, 4]), (), 7)]
    drain(scheduler)
    assert [request.token_ids[-1] for request in requests] == [3, 4, 6, 7]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_runs_is_not_copied(copied: Callable[[object], object]) -> None:
    """A copy would share the KV cache, and both would write to it."""
    model = GPTModel.from_pretrained(FOLDER, threads=1)
    for running in (Scheduler(model), TextStream(model, GPTTokenizer.from_pretrained(), [1])):
        with pytest.raises(InputError, match="cannot be copied or pickled"):
            copied(running)


# ---- errors ----


class Damaged(Counter):
    """Its logits after token 5 are NaN."""

    def forward(self, cache, slots, ids, last):
        logits = super().forward(cache, slots, ids, last)
        logits[logits.argmax(1) == 6] = np.nan
        return logits


def test_logits_that_are_not_finite_end_their_request_alone() -> None:
    scheduler = Scheduler(Damaged(), 2)
    good, bad, waiting = (scheduler.add([i], 4, eos_token_id=None) for i in (6, 3, 7))
    events = drain(scheduler)
    assert (good.token_ids, good.finished) == ([7, 8, 9, 0], "length")
    assert (waiting.token_ids, waiting.finished) == ([8, 9, 0, 1], "length")
    assert (bad.token_ids, bad.finished) == ([4, 5], "error")
    assert isinstance(bad.error, CheckpointError)
    (last,) = [event for event in events if event.finished == "error"]
    assert (last.request, last.token_id, last.logprob) == (bad, None, None)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("no memory")])
def test_a_pass_that_fails_is_repeated_by_the_next_step(when: str, error: BaseException) -> None:
    """Before the pass, and after it but before its tokens are noted."""
    options = {"temperature": 1.0, "seed": 3, "eos_token_id": None}
    expected = [generated(Counter(flat=True), ids, **options)[0] for ids in ([1, 2], [3])]
    model = Counter(flat=True)
    scheduler = Scheduler(model)
    requests = [scheduler.add(ids, **options) for ids in ([1, 2], [3])]
    forward = model.forward

    def failing(*args):
        if when == "after":
            forward(*args)
        raise error

    for _ in range(4):
        scheduler.step()
        model.forward = failing
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            scheduler.step()
        model.forward = forward
    drain(scheduler)
    assert [request.token_ids for request in requests] == expected


def interrupted_at(number: int, action: Callable[[], object]) -> str | None:
    """Raise KeyboardInterrupt before a line of scheduler.py that `action` runs, as Ctrl-C may.

    number  which of the lines, counted from 0 as they run

    Returns the line, or None where `action` runs fewer.
    """
    left, found = number, None

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left, found
        if not frame.f_code.co_filename.endswith("scheduler.py"):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                found = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    with suppress(KeyboardInterrupt):
        action()
    sys.settrace(before)
    return found


def test_an_interrupt_at_any_line_is_repaired_or_ends_the_scheduler() -> None:
    """Three requests for two slots: each line of each of their steps is interrupted once."""
    number, line, outcomes = 0, "", set()
    while line is not None:
        scheduler = Scheduler(Counter(), 2)
        requests = [scheduler.add([i], 2, eos_token_id=None) for i in range(3)]
        events: list[Event] = []

        def run(scheduler: Scheduler = scheduler, events: list[Event] = events) -> None:
            while scheduler.num_unfinished:
                events += scheduler.step()

        line = interrupted_at(number, run)
        try:
            run()
            outcomes.add("went on")
        except InputError as error:
            assert "was interrupted" in str(error)
            outcomes.add("refused")
        else:
            tokens = [[i + 1, i + 2] for i in range(3)]
            assert [request.token_ids for request in requests] == tokens
            if line != "return events":  # between two instructions: whose events these are is open
                by_request = [[e.token_id for e in events if e.request is r] for r in requests]
                assert by_request == tokens
                assert sum(event.finished is not None for event in events) == 3
        number += 1
    assert number > 100
    assert outcomes == {"went on", "refused"}


def test_events_of_cancelled_requests_survive_a_pass_that_fails() -> None:
    model = Counter()
    scheduler = Scheduler(model)
    first, second = scheduler.add([0]), scheduler.add([4], 1)
    scheduler.cancel(first)
    forward, model.forward = model.forward, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        scheduler.step()
    model.forward = forward
    assert [(e.request, e.finished) for e in drain(scheduler)] == [
        (first, "cancelled"),
        (second, "length"),
    ]


# ---- logprobs ----


def test_logprob_is_the_models_own_whatever_the_options() -> None:
    """ln p before temperature and top-k; computed when read, and again the same."""
    scheduler = Scheduler(Counter())
    scheduler.add([1], 1, temperature=0.1, top_k=1)
    (event,) = scheduler.step()
    expected = 9 - np.log(np.exp(9.0) + V - 1)
    assert event.logprob == pytest.approx(expected, abs=1e-12)
    assert event.logprob == event.logprob
    assert event._logits is None  # the row of logits is not kept alive by an event that was read


# ---- no request sees another ----


@pytest.fixture(scope="module", params=["f32", "bf16", "int8", "int4"])
def models(request: pytest.FixtureRequest) -> list[GPTModel]:
    return [GPTModel.from_pretrained(FOLDER, request.param, threads) for threads in (1, 2)]


OPTIONS = [
    {},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 1.5, "top_k": 7, "seed": 2},
    {"temperature": 1.0, "top_p": 0.7, "min_p": 0.01, "seed": 2**64 - 1},
]


def prompt(model: GPTModel, seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, length).tolist()


@settings(max_examples=6)
@given(data=st.data())
def test_a_request_is_the_same_alone_and_among_strangers(models, data) -> None:
    """15 strangers join and leave at random; threads, slots and the size of a pass vary."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    alone, model = models[0], models[data.draw(st.integers(0, 1))]
    slots = data.draw(st.integers(1, 9))
    scheduler = Scheduler(model, slots, max_batch_tokens=data.draw(st.integers(slots, 60)))
    cases = [
        (int(rng.integers(10**6)), int(rng.integers(1, 70)), int(rng.integers(0, 20)), i % 4)
        for i in range(16)
    ]
    requests: dict[int, Request] = {}
    tokens: dict[Request, list[int]] = defaultdict(list)
    cancelled = set(rng.choice(16, 5, replace=False).tolist())
    waiting = rng.permutation(16).tolist()
    while waiting or scheduler.num_unfinished:
        if waiting and rng.random() < 0.5:
            i = waiting.pop()
            seed, length, new, option = cases[i]
            ids = prompt(model, seed, length)
            requests[i] = scheduler.add(ids, new, **OPTIONS[option], eos_token_id=None)
        for i in cancelled & set(requests):
            if rng.random() < 0.2:
                scheduler.cancel(requests[i])
        for event in scheduler.step():
            if event.token_id is not None:
                tokens[event.request].append(event.token_id)
    for i, (seed, length, new, option) in enumerate(cases):
        expected = list(
            alone.stream(prompt(alone, seed, length), new, **OPTIONS[option], eos_token_id=None)
        )
        found = tokens[requests[i]]
        assert found == requests[i].token_ids == expected[: len(found)]
        assert len(found) == new or requests[i].finished == "cancelled"


def test_rows_of_generate_have_streams_of_their_own(models) -> None:
    model = models[0]
    ids = [prompt(model, 5, 9)] * 3
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 4, "eos_token_id": None}
    rows = [row[9:].tolist() for row in model.generate(ids, **options)]
    assert len(set(map(tuple, rows))) == 3
    assert rows[0] == list(model.stream(ids[0], **options))
    assert [row[9:].tolist() for row in model.generate(ids[:2], **options)] == rows[:2]


def test_a_text_goes_on_where_it_was_cut() -> None:
    """A draw belongs to a position in the sequence, whether the tokens before it were generated
    or belong to the prompt."""
    options = {"temperature": 1.0, "seed": 8, "eos_token_id": None}
    tokens, _ = generated(Counter(flat=True), [1, 2], max_new_tokens=12, **options)
    assert generated(Counter(flat=True), [1, 2, *tokens[:5]], **options)[0][:7] == tokens[5:]


def test_schedulers_of_several_threads_share_a_model(models) -> None:
    model = models[1]
    options = {"max_new_tokens": 25, "temperature": 0.9, "eos_token_id": None}
    expected = [list(model.stream([i, i + 1], seed=i, **options)) for i in range(4)]
    found: dict[int, list[int]] = {}

    def work(i: int) -> None:
        scheduler = Scheduler(model, 2)
        request = scheduler.add([i, i + 1], seed=i, **options)
        drain(scheduler)
        found[i] = request.token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(4)] == expected


def test_a_damaged_sequence_does_not_harm_the_next_in_its_slot(models, monkeypatch) -> None:
    """Its keys and values are NaN, and lie where the next sequence's come."""
    model = models[0]
    expected = generated(model, prompt(model, 1, 30), max_new_tokens=9)
    scheduler = Scheduler(model, 1)
    bad = scheduler.add(prompt(model, 2, 40), 9)
    good = scheduler.add(prompt(model, 1, 30), 9)
    forward = Engine.forward

    def damaged(engine, cache, slots, ids, last):
        logits = forward(engine, cache, slots, ids, last)
        nan = np.float32(np.nan) if cache.keys.dtype == np.float32 else 0x7FC0
        cache.keys[:], cache.values[:] = nan, nan
        return logits * np.float32(np.nan)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "forward", damaged)
        scheduler.step()
    drain(scheduler)
    assert bad.finished == "error"
    assert (good.token_ids, good.finished) == expected


def test_eos_of_the_config_is_the_default() -> None:
    scheduler = Scheduler(Counter())
    request = scheduler.add([EOS - 1])
    drain(scheduler)
    assert request.token_ids == [EOS]
