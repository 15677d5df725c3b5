"""The scheduler: sequences that join and leave a running batch, each with its own options.

Every pass takes one token of each sequence that is generating, and fills the rest of the pass with
prompt tokens. Logits do not depend on the other sequences of a pass, and random numbers depend on
seed and position only, so a request's tokens are the same alone, in any batch, and however its
prompt is cut.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

import numpy as np

from ..arguments import check_model, checked_choice, checked_integer, checked_prompt
from ..config import GPTConfig
from ..errors import InputError, MinigptError, short_repr
from ..model.engine import ROWS, Engine
from .sampler import Eos, SamplingParams, allowed, logprob, sample

Finish = Literal["length", "eos", "stop", "context", "cancelled", "error"]
Reason = Literal["stop", "cancelled"]

MAX_BATCH_TOKENS = ROWS  # the engine cuts longer passes into chunks of this size


class Model(Protocol):
    """The part of a GPTModel that generation uses."""

    @property
    def config(self) -> GPTConfig: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def sampled_vocab_size(self) -> int: ...


class Request:
    """A sequence that a scheduler generates. `Scheduler.add` makes it.

    prompt     int64 [T], T ≥ 1: an empty prompt is config.start_token_id
    token_ids  the new tokens so far
    finished   None while it waits or runs, then the reason, see Event
    error      what ended it where finished is "error", else None
    """

    def __init__(
        self,
        prompt: np.ndarray,
        params: SamplingParams,
        ends: tuple[int, ...],
        vocab_size: int,
        limit: int,
        row: int,
    ) -> None:
        """
        ends        the ids that end the sequence
        vocab_size  new tokens are below it, or ends
        limit       the maximum number of tokens of the prompt and the continuation together
        """
        self.prompt = prompt
        self.token_ids: list[int] = []
        self.finished: Finish | None = None
        self.error: MinigptError | None = None
        self._params = params
        self._seed = params.seed_or_fresh()
        self._row = row
        self._ends = frozenset(ends)
        self._vocab_size = vocab_size
        self._limit = limit
        self._slot: int | None = None

    def _length(self) -> int:
        """The tokens of prompt and continuation."""
        return len(self.prompt) + len(self.token_ids)

    def _unread(self, length: int) -> np.ndarray:
        """The tokens from position `length` on: of the prompt, or one that was generated."""
        if not self.token_ids:
            return self.prompt[length:]
        return np.array(self.token_ids[length - len(self.prompt) :], np.int64)

    def _sample(self, logits: np.ndarray) -> int:
        """The next token, sampled from the logits at the last position, float32 [V]."""
        logits = allowed(logits, self._vocab_size, self._ends)
        return sample(logits, self._params, self._seed, self._row, self._length())

    def _finish_reason(self) -> Finish | None:
        """Why the request is finished with the tokens so far, or None."""
        if self.token_ids and self.token_ids[-1] in self._ends:
            return "eos"
        if len(self.token_ids) >= self._params.max_new_tokens:
            return "length"
        return "context" if self._length() >= self._limit else None


class Event:
    """What a pass did for one request: a new token, its end, or both.

    request   the request
    token_id  the new token, the end-of-text token included; None where the request ended without
              one: max_new_tokens was 0, the prompt fills the context, it was cancelled, an error
    finished  None, or why the request ended:
              "length"     max_new_tokens were generated
              "eos"        the token is eos_token_id, or one of several
              "context"    prompt and new tokens fill n_positions, or the scheduler's capacity
              "stop"       a stop string came; `cancel` was called with this reason
              "cancelled"  `cancel` was called
              "error"      request.error says what happened
    """

    def __init__(
        self,
        request: Request,
        token_id: int | None,
        finished: Finish | None,
        logits: np.ndarray | None = None,
    ) -> None:
        self.request = request
        self.token_id = token_id
        self.finished = finished
        self._logits = logits
        self._logprob: float | None = None

    @property
    def logprob(self) -> float | None:
        """ln p of the token under the model's softmax, before temperature and the other options.

        float64; None without a token. It is computed when first read.
        """
        if self._logprob is None and self._logits is not None and self.token_id is not None:
            self._logprob = logprob(self._logits, self.token_id)
            self._logits = None
        return self._logprob

    def __repr__(self) -> str:
        return f"Event(token_id={self.token_id}, finished={self.finished!r})"


class Chunk(NamedTuple):
    """The tokens of one request in a pass.

    slot     of the request in the KV cache
    ids      int64 [n]
    is_last  whether nothing is left to read after them, so that their logits choose a token
    """

    request: Request
    slot: int
    ids: np.ndarray
    is_last: bool


class Scheduler:
    """Generates many sequences in one running batch.

        scheduler = Scheduler(model, slots=8)
        request = scheduler.add(ids, max_new_tokens=64, temperature=0.8, seed=1)
        while scheduler.num_unfinished:
            for event in scheduler.step():
                print(event.request, event.token_id, event.finished)

    Requests beyond the number of slots wait, and begin in the order in which they were added.
    A request's tokens are the same bits alone and in any batch. A scheduler belongs to one thread;
    several schedulers may share a model from several threads, and take turns pass by pass.
    """

    def __init__(
        self,
        model: Model,
        slots: int = 8,
        *,
        capacity: int | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        """
        model             the model
        slots             how many sequences run at once, from 1 to max_batch_tokens
        capacity          tokens that prompt and continuation of one request can have together,
                          from 1 to n_positions; None: n_positions. It bounds the memory of the KV
                          cache, which grows as it is used
        max_batch_tokens  tokens of one pass, from 1 to 512; smaller ones let running sequences
                          wait less while prompts are read, and read prompts more slowly

        Raises InputError for an argument out of its range.
        """
        check_model("model", model)
        n_positions = model.config.n_positions
        self.config = model.config
        self._max_batch_tokens = checked_integer(
            "max_batch_tokens", max_batch_tokens, 1, MAX_BATCH_TOKENS
        )
        slots = checked_integer("slots", slots, 1, self._max_batch_tokens, "max_batch_tokens")
        self._capacity = n_positions
        if capacity is not None:
            self._capacity = checked_integer("capacity", capacity, 1, n_positions, "the context")
        self._model = model
        self._engine = model.engine
        self._cache = self._engine.new_cache(slots, self._capacity)
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._events: list[Event] = []  # of requests that ended outside a pass
        self._torn = False  # whether an exception left the queues and slots half changed

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "scheduler: is a running batch, which cannot be copied or pickled; make another one"
        )

    @property
    def num_unfinished(self) -> int:
        """The number of requests whose last event is still to come."""
        return len(self._waiting) + len(self._running) + len(self._events)

    def add(
        self,
        ids: Any,
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        eos_token_id: Eos = "config",
        vocab_size: int | None = None,
    ) -> Request:
        """Queue a prompt; the steps that follow generate its continuation.

        ids  the prompt: integers [T], T ≤ capacity; an empty one begins after config.start_token_id

        The other options are those of GPTModel.generate. The tokens are those of row 0 of
        generate with the same options. Raises InputError for a wrong argument.
        """
        params = SamplingParams(
            max_new_tokens, temperature, top_k, top_p, min_p, seed, eos_token_id, vocab_size
        )
        return self.add_request(checked_prompt(ids, self.config, minimum=0), params)

    def add_request(self, prompt: np.ndarray, params: SamplingParams, row: int = 0) -> Request:
        """`add` for a checked prompt and options.

        row  index of the sequence in its batch; each row has its own random numbers
        """
        if not len(prompt):
            prompt = self._start()
        if len(prompt) > self._capacity:
            raise InputError(
                f"ids: {len(prompt)} tokens, where a request of this scheduler has room for "
                f"{self._capacity}; shorten the prompt"
            )
        ends = params.ends(self.config)
        vocab_size = params.vocab_size or self._model.sampled_vocab_size
        request = Request(prompt, params, ends, vocab_size, self._capacity, row)
        self._waiting.append(request)
        return request

    def _start(self) -> np.ndarray:
        """What an empty prompt begins after, int64 [1]. Raises InputError."""
        start = self.config.start_token_id
        if start is None:
            raise InputError(
                "ids: empty, and this model's config names no token that a text begins after "
                "(bos_token_id or eos_token_id); a prompt needs at least one token"
            )
        return np.array([start], np.int64)

    def cancel(self, request: Request, reason: Reason = "cancelled") -> None:
        """End a request now: its slot is free at once, and the next step reports the end.

        reason  "cancelled", or "stop" where the caller found a stop string in its text

        Does nothing where the request has finished. Raises InputError for another reason and for
        a request of another scheduler.
        """
        reason = checked_choice("reason", reason, ("cancelled", "stop"))
        if not isinstance(request, Request):
            raise InputError(
                f"request {short_repr(request)}: must be a Request of `add`", "request"
            )
        if request.finished is not None:
            return
        if request not in self._waiting and request not in self._running:
            raise InputError("request: belongs to another scheduler")
        self._begin_changes()
        if request in self._waiting:
            self._waiting.remove(request)
        self._finish(request, reason)
        self._torn = False

    def step(self) -> list[Event]:
        """Run one pass of at most max_batch_tokens tokens, and return what it did.

        Returns an event for each new token and each end; [] where there is nothing to do. First
        come the requests that ended outside the pass, in the order in which they ended: they were
        cancelled, or had nothing to generate. Those of the pass follow, in the order in which they
        were added.

        A model whose logits are not finite ends that request alone: its event's finished is
        "error", and request.error the CheckpointError. Where the whole pass fails (memory) or is
        interrupted (Ctrl-C), the exception is raised and nothing has changed: the next step
        repeats the pass. An interrupt that hits the microseconds of bookkeeping beside the pass
        ends the scheduler: the next step raises InputError.
        """
        self._begin_changes()
        self._start_waiting()
        batch = self._next_batch()
        self._torn = False
        logits = self._logits(batch)
        self._begin_changes()
        self._append_tokens(batch, logits)
        self._torn = False
        events, self._events = self._events, []
        return events

    def _begin_changes(self) -> None:
        """Begin changes of queues, slots and requests that belong together; they end with
        `self._torn = False`.

        Ctrl-C can come between any two of them. A scheduler that did not reach the end refuses to
        go on.
        """
        if self._torn:
            raise InputError(
                "scheduler: was interrupted between two passes; make a new one and add the "
                "requests again"
            )
        self._torn = True

    def _start_waiting(self) -> None:
        """Give free slots to waiting requests; those that need no pass end here."""
        while self._waiting and len(self._running) < self._cache.slots:
            request = self._waiting[0]
            reason = request._finish_reason()
            if reason is None:
                request._slot = self._cache.allocate()
                self._running.append(request)
            else:
                self._finish(request, reason)
            self._waiting.popleft()

    def _next_batch(self) -> list[Chunk]:
        """The tokens of the next pass: one of each generating request, then those of prompts."""
        generating = sum(bool(request.token_ids) for request in self._running)
        budget = self._max_batch_tokens - generating  # of prompt tokens
        batch = []
        for request in self._running:
            slot = request._slot
            assert slot is not None
            start = self._read_length(request, slot)
            unread = request._unread(start)
            if not request.token_ids:
                unread = unread[:budget]
                budget -= len(unread)
            if len(unread):
                batch.append(Chunk(request, slot, unread, start + len(unread) == request._length()))
        return batch

    def _read_length(self, request: Request, slot: int) -> int:
        """How many tokens of a running request are in the KV cache; at least one is not.

        If Ctrl-C came between a pass and its bookkeeping, all are: then the last one is read again.
        """
        length = int(self._cache.lengths[slot])
        if length == request._length():
            length -= 1
            self._cache.truncate(slot, length)
        return length

    def _logits(self, batch: list[Chunk]) -> np.ndarray:
        """float32 [n, V]: one pass, and the logits after each of the batch's last chunks."""
        if not batch:
            return np.empty((0, self.config.vocab_size), np.float32)
        all_last = all(chunk.is_last for chunk in batch)
        return self._engine.forward(
            self._cache,
            [chunk.slot for chunk in batch],
            [chunk.ids for chunk in batch],
            1 if all_last else [int(chunk.is_last) for chunk in batch],
        )

    def _append_tokens(self, batch: list[Chunk], logits: np.ndarray) -> None:
        """Sample the next token of each request whose last chunk was read, and report it."""
        requests = [chunk.request for chunk in batch if chunk.is_last]
        for request, row in zip(requests, logits, strict=True):
            try:
                token = request._sample(row)
            except MinigptError as error:
                request.error = error
                self._finish(request, "error")
                continue
            request.token_ids.append(token)
            reason = request._finish_reason()
            if reason is None:
                self._events.append(Event(request, token, None, row))
            else:
                self._finish(request, reason, token, row)

    def _finish(
        self,
        request: Request,
        reason: Finish,
        token_id: int | None = None,
        logits: np.ndarray | None = None,
    ) -> None:
        """End a request: its last event, and its slot is free."""
        request.finished = reason
        self._events.append(Event(request, token_id, reason, logits))
        if request._slot is not None:
            self._running.remove(request)
            self._cache.free(request._slot)
            request._slot = None
