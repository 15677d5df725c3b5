"""The loop that writes: feed the tokens, choose the next, feed that.

`stream` is the loop over one sequence, token by token; `generate` runs a batch to its end. Both
are made of two things a model can do (`Model`, below) and of sampler.py. text.py lays the
tokenizer over it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ..arguments import checked_integer, checked_prompts, is_integer, is_list_of_prompts
from ..config import GPTConfig
from ..errors import InputError, short_repr
from .sampler import SamplingParams, generators, sample

Eos = int | None | Literal["config"]


class Model(Protocol):
    """What the loop needs of a model."""

    @property
    def config(self) -> GPTConfig: ...

    @property
    def engine(self) -> Any: ...


def stream(
    model: Model,
    ids: Any,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    vocab_size: int | None = None,
    eos_token_id: Eos = "config",
) -> Generator[int, None, None]:
    """Continues one prompt; yields the new tokens as they come.

    ids             the prompt: integers [T] or [1, T], 1 <= T <= n_positions
    max_new_tokens  at most so many; fewer where eos_token_id comes (it is yielded, and is the
                    last), or where prompt and new tokens together fill the n_positions
    eos_token_id    "config": the config's; None: nothing ends it early
    the rest        see SamplingParams

    Nothing is computed ahead: closing the generator stops the work. Raises InputError, at the
    call, for an argument of the wrong type or out of its range.
    """
    prompts = checked_prompts(ids, model.config)
    if len(prompts) != 1:
        raise InputError(f"ids: {len(prompts)} sequences, where stream takes one; use generate")
    params = SamplingParams(temperature, top_k, top_p, min_p, seed, vocab_size)
    end = _End.of(model.config, max_new_tokens, eos_token_id)
    return (step[0] for step in _steps(model, prompts, params, end))


def generate(
    model: Model,
    ids: Any,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    vocab_size: int | None = None,
    eos_token_id: Eos = "config",
) -> np.ndarray | list[np.ndarray]:
    """Continues a batch of prompts; the arguments are those of `stream`, except ids.

    ids: integers [B, T], or [T] for B = 1
        → int64 [B, T + n], prompt and new tokens; n is the longest row's, and a row that met
        eos_token_id earlier is filled up with it.
    ids: a list of B prompts, each integers [T_i]
        → a list of B int64 arrays [T_i + n_i], each ending after its eos_token_id.

    A row that has ended costs nothing more. Each row draws from its own randomness: its tokens do
    not depend on its neighbours, and row 0 is what `stream` gives for the same seed.
    """
    prompts = checked_prompts(ids, model.config)
    params = SamplingParams(temperature, top_k, top_p, min_p, seed, vocab_size)
    end = _End.of(model.config, max_new_tokens, eos_token_id)
    new: list[list[int]] = [[] for _ in prompts]
    for step in _steps(model, prompts, params, end):
        for row, token in step.items():
            new[row].append(token)
    rows = [np.concatenate([p, np.array(n, np.int64)]) for p, n in zip(prompts, new, strict=True)]
    return rows if is_list_of_prompts(ids) else _padded(rows, end.eos)


def resolve_eos(config: GPTConfig, eos_token_id: Eos) -> int | None:
    """The token that ends a sequence, or None; raises InputError if it is not a token."""
    if isinstance(eos_token_id, str) and eos_token_id == "config":
        return config.eos_token_id
    if eos_token_id is None:
        return None
    if not (is_integer(eos_token_id) and 0 <= eos_token_id < config.vocab_size):
        raise InputError(
            f"eos_token_id {short_repr(eos_token_id)}: must be an integer from 0 to "
            f"{config.vocab_size - 1}, or None for no end"
        )
    return int(eos_token_id)


@dataclass(frozen=True)
class _End:
    """When a row ends: after max_new_tokens, after the token eos, at n_positions in all."""

    max_new_tokens: int
    eos: int | None
    n_positions: int

    @classmethod
    def of(cls, config: GPTConfig, max_new_tokens: int, eos_token_id: Eos) -> _End:
        limit = checked_integer("max_new_tokens", max_new_tokens, 0)
        return cls(limit, resolve_eos(config, eos_token_id), config.n_positions)

    def length(self, prompt: np.ndarray) -> int:
        """How long prompt and new tokens can become."""
        return min(len(prompt) + self.max_new_tokens, self.n_positions)


def _steps(
    model: Model, prompts: list[np.ndarray], params: SamplingParams, end: _End
) -> Iterator[dict[int, int]]:
    """The loop: yields for each step {row: its new token}, of the rows that have not ended."""
    left = [end.length(prompt) - len(prompt) for prompt in prompts]
    feed = {row: prompt for row, prompt in enumerate(prompts) if left[row]}
    if not feed:
        return
    cache = model.engine.new_cache(len(prompts), max(end.length(prompt) for prompt in prompts))
    slots = [cache.allocate() for _ in prompts]
    rngs = generators(params.seed, len(prompts))
    while feed:
        logits = model.engine.forward(cache, [slots[row] for row in feed], list(feed.values()))
        step = {row: sample(logits[i], params, rngs[row]) for i, row in enumerate(feed)}
        yield step
        for row in step:
            left[row] -= 1
        feed = {
            row: np.array([token], np.int64)
            for row, token in step.items()
            if left[row] and token != end.eos
        }


def _padded(rows: list[np.ndarray], eos: int | None) -> np.ndarray:
    """One int64 array [B, longest row]; only rows that ended with eos are shorter than others."""
    padded = np.full((len(rows), max(map(len, rows))), 0 if eos is None else eos, np.int64)
    for row, out in zip(rows, padded, strict=True):
        out[: len(row)] = row
    return padded
