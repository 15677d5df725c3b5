"""The engine: a model made ready to run, and the passes of tokens through it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config import GPTConfig
from ..errors import InputError
from ..kernels.team import Team
from ..weights.packed import Weights
from .dims import attention_scales, make_dims
from .forward import (
    Buffers,
    CacheArrays,
    TokenBatch,
    forward_layers,
    make_buffers,
    make_scratch,
    make_weight_table,
    query_blocks,
)
from .kv_cache import State

ROWS = 512  # tokens that pass through the layers together; more are cut into such chunks
_ROWS_AT_ONCE = 16  # up to here all layers are one compiled call, else each is one


class Engine:
    """A model made ready to run: what stays the same from one pass to the next."""

    def __init__(self, config: GPTConfig, weights: Weights, threads: int) -> None:
        self.config = config
        self.weights = weights
        self.threads = threads
        self._team = Team(threads, owner=weights)
        self._dims = make_dims(config)
        self._table = make_weight_table(weights, config)
        self._scales = attention_scales(config)
        self._scratch = make_scratch(config, threads)

    def forward(
        self, state: State, slots: Sequence[int], ids: Sequence[np.ndarray], every: bool = False
    ) -> np.ndarray:
        """Read ids[i] (int64, 1-D, ≥ 1 token) as the continuation of the sequence in slots[i].

        Returns float32 [n, V]: the logits after each sequence's last token, or after every token
        with `every`, the sequences' tokens one after the other. Arguments are checked by the
        caller; the state's lengths move on when all is computed.
        """
        owners, tokens = np.asarray(slots, np.int64), np.concatenate(ids)
        lengths = np.array([len(row) for row in ids])
        ends = state.lengths[owners] + lengths
        positions = np.concatenate(
            [np.arange(e - n, e) for e, n in zip(ends, lengths, strict=True)]
        )
        owners = np.repeat(owners, lengths)
        wanted = np.arange(len(tokens)) if every else np.cumsum(lengths) - 1
        try:
            logits = np.empty((len(wanted), self.config.vocab_size), np.float32)
            buffers = self._buffers(state, min(ROWS, len(tokens)))
        except MemoryError as error:
            raise InputError(
                f"ids: {len(wanted)} rows of logits of {self.config.vocab_size} words need more "
                "memory than there is; give fewer tokens at once"
            ) from error
        for start in range(0, len(tokens), ROWS):
            rows = slice(start, start + ROWS)
            first, end = np.searchsorted(wanted, (start, start + ROWS))
            batch = TokenBatch(
                tokens[rows],
                positions[rows],
                owners[rows],
                query_blocks(owners[rows], positions[rows]),
            )
            logit_rows = wanted[first:end] - start
            self._run(state, buffers, batch, logit_rows, logits[first:end].reshape(-1))
        state.lengths[list(slots)] = ends
        return logits

    def _buffers(self, state: State, rows: int) -> Buffers:
        """Room for activations: that of a few tokens is kept for the next, which is as many."""
        kept = state.kept
        if kept is not None and kept[:2] == (self, rows):
            return kept[2]
        threads = self._team.size
        buffers = make_buffers(self.config, rows, state.capacity, self.weights.dtype, threads)
        state.kept = (self, rows, buffers) if rows <= _ROWS_AT_ONCE else None
        return buffers

    def _run(
        self,
        state: State,
        buffers: Buffers,
        tokens: TokenBatch,
        logit_rows: np.ndarray,
        logits: np.ndarray,
    ) -> None:
        """One chunk of at most ROWS tokens through all layers.

        Few tokens are one compiled call. Many are a call for each layer, between which Python can
        see that the user wants to stop.
        """
        L = self.config.n_layer
        stride = L if len(tokens.ids) <= _ROWS_AT_ONCE else 1
        cache = CacheArrays(state.keys, state.values, state.slots, state.capacity)
        for first in range(0, L, stride):
            self._team.run(
                forward_layers, self._scratch, first, min(L, first + stride),
                self._dims, self._table, self._scales, cache, buffers, tokens, logit_rows,
                logits,
            )  # fmt: skip
