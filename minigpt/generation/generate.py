"""`generate` runs a batch of prompts to completion; `stream` yields the tokens of one prompt.

Both use a temporary Scheduler. `GPTModel.generate` and `GPTModel.stream` document the options.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np

from ..arguments import checked_prompts, gathered, is_list_of_prompts
from ..errors import InputError
from .sampler import SamplingParams
from .scheduler import MAX_BATCH_TOKENS, Event, Model, Request, Scheduler


def generate(model: Model, ids: Any, params: SamplingParams) -> np.ndarray | list[np.ndarray]:
    """A batch of prompts with their continuations; see GPTModel.generate."""
    ids = gathered(ids)
    prompts = checked_prompts(ids, model.config, minimum=0)
    scheduler, requests = schedule(model, prompts, params)
    for _ in events(scheduler):
        pass
    sequences = [
        np.concatenate([prompt, np.array(request.token_ids, np.int64)])
        for prompt, request in zip(prompts, requests, strict=True)
    ]
    if is_list_of_prompts(ids):
        return sequences
    return _padded(sequences, params.ends(model.config))


def stream(model: Model, ids: Any, params: SamplingParams) -> Generator[int, None, None]:
    """Yield the new tokens of one sequence; see GPTModel.stream."""
    scheduler, _ = schedule(model, [checked_single_prompt(model, ids)], params)
    return _token_ids(scheduler)


def checked_single_prompt(model: Model, ids: Any) -> np.ndarray:
    """`ids`, integers [T] or [1, T], as int64 [T]; T may be 0."""
    prompts = checked_prompts(ids, model.config, minimum=0)
    if len(prompts) != 1:
        raise InputError(f"ids: {len(prompts)} sequences, where stream takes one; use generate")
    return prompts[0]


def schedule(
    model: Model, prompts: list[np.ndarray], params: SamplingParams
) -> tuple[Scheduler, list[Request]]:
    """A scheduler for these prompts alone, and their requests; row i has its own random numbers."""
    params = replace(params, seed=params.seed_or_fresh())  # all rows have the same seed
    longest = max(1, *map(len, prompts))  # an empty prompt has the start token
    scheduler = Scheduler(
        model,
        slots=min(len(prompts), MAX_BATCH_TOKENS),
        capacity=min(longest + params.max_new_tokens, model.config.n_positions),
    )
    return scheduler, [
        scheduler.add_request(prompt, params, row) for row, prompt in enumerate(prompts)
    ]


def events(scheduler: Scheduler) -> Generator[Event, None, None]:
    """The events of a scheduler until all its requests have ended.

    Closing the generator stops the work. Raises the error of the first request that has one.
    """
    while scheduler.num_unfinished:
        for event in scheduler.step():
            if event.request.error is not None:
                raise event.request.error
            yield event


def _token_ids(scheduler: Scheduler) -> Generator[int, None, None]:
    for event in events(scheduler):
        if event.token_id is not None:
            yield event.token_id


def _padded(sequences: list[np.ndarray], ends: tuple[int, ...]) -> np.ndarray:
    """int64 [B, T of the longest]: sequences that ended earlier are filled with the first end."""
    shape = (len(sequences), max(map(len, sequences)))
    padded = np.full(shape, ends[0] if ends else 0, np.int64)
    for sequence, row in zip(sequences, padded, strict=True):
        row[: len(sequence)] = sequence
    return padded
