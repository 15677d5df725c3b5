"""The engine: runs tokens through a model and returns their logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..arguments import is_integer
from ..config import GPTConfig
from ..errors import InputError, MinigptError, short_repr
from ..kernels.layout import AUX_DTYPE
from ..kernels.team import Team
from ..weights.packed import Weights
from .block import TokenBatch
from .dims import attention_scales, make_dims
from .forward import (
    Buffers,
    CacheArrays,
    forward_layers,
    make_buffers,
    make_scratch,
    make_weight_table,
    query_blocks,
    rounds_activations,
)
from .kv_cache import KVCache, Workspace

ROWS = 512  # tokens that pass through the layers together; longer inputs are cut into chunks
_ROWS_IN_ONE_CALL = 16  # up to here one compiled call runs all layers, beyond it one call runs each

# Bytes of weights times tokens of a pass: below this, some quarter of a millisecond, one thread has
# done it before others would have begun.
SHORT_PASS = 12_000_000

Last = int | Sequence[int] | None


class Engine:
    """A model's weights, its threads, and everything else that passes have in common.

    Several threads may call `forward` with a KV cache each: they take turns.

    config, weights, threads  the model, its packed weights, and the number of threads
    """

    def __init__(self, config: GPTConfig, weights: Weights, threads: int) -> None:
        """Raises RuntimeError where the system does not start so many threads."""
        self.config = config
        self.weights = weights
        self.threads = threads
        self._cache_dtype = np.dtype(AUX_DTYPE[weights.dtype])
        self._team = Team(threads, owner=weights)
        self._dims = make_dims(config, rounded=rounds_activations(weights.dtype))
        self._table = make_weight_table(weights, config)
        self._scales = attention_scales(config)
        self._scratch = make_scratch(config, threads)
        arrays = [*weights.tensors.values(), *weights.scales.values()]
        self._weights_bytes = sum(array.nbytes for array in arrays)

    def new_cache(self, slots: int, capacity: int) -> KVCache:
        """An empty KV cache for `slots` sequences of up to `capacity` tokens, both from 1.

        Raises InputError for other sizes, and where the machine does not have the memory.
        """
        return KVCache(self.config, slots, capacity, self.weights.dtype)

    def forward(
        self,
        cache: KVCache,
        slots: Sequence[int],
        ids: Sequence[np.ndarray],
        last: Last = 1,
    ) -> np.ndarray:
        """Read ids[i] as the continuation of the sequence in slots[i].

        slots  n different, allocated slots of the cache
        ids    n arrays, int64 [T_i], T_i ≥ 1
        last   how many final positions of each sequence's new tokens to compute logits for: one
               number for all sequences, or one for each, from 0 to T_i; None: all positions

        Returns float32 [rows, V]: the logits after those positions, in their order, sequence
        after sequence. The logits of a sequence do not depend on the other sequences, nor on how
        its tokens are divided into calls.

        Raises InputError for wrong arguments and for a sequence longer than the cache's capacity
        or the model's context; MinigptError in a signal handler that interrupted a pass. If a pass
        fails or is interrupted, the cache's lengths stay as they were, and the pass can be
        repeated.
        """
        if self._team.interrupted:
            raise interrupted_error()
        try:
            slots, ids = list(slots), list(ids)
        except TypeError:
            raise InputError("slots, ids: must be lists, of an item for each sequence") from None
        tokens = self._checked_ids(cache, slots, ids)
        counts = [len(sequence) for sequence in ids]
        logit_rows = _logit_rows(counts, last)
        starts = cache.begin_write(slots, counts)
        try:
            logits = np.empty((len(logit_rows), self.config.vocab_size), np.float32)
            buffers = self._buffers(cache, min(ROWS, len(tokens)))
        except MemoryError as error:
            raise InputError(
                f"ids: {len(logit_rows)} x {self.config.vocab_size} logits need more memory than "
                "there is; give fewer tokens at once"
            ) from error
        owners, positions = _owners_and_positions(slots, starts, counts)
        for row in range(0, len(tokens), ROWS):
            chunk = slice(row, row + ROWS)
            first, end = np.searchsorted(logit_rows, (row, row + ROWS))
            batch = TokenBatch(
                tokens[chunk],
                positions[chunk],
                owners[chunk],
                query_blocks(owners[chunk], positions[chunk]),
            )
            self._run(
                cache, buffers, batch, logit_rows[first:end] - row, logits[first:end].reshape(-1)
            )
        for slot, start, count in zip(slots, starts, counts, strict=True):
            cache.lengths[slot] = start + count
        return logits

    def _checked_ids(self, cache: KVCache, slots: list[int], ids: list[np.ndarray]) -> np.ndarray:
        """The tokens of all sequences, int64 [M]. Raises InputError."""
        if not isinstance(cache, KVCache):
            raise InputError(f"cache {short_repr(cache)}: must be a KVCache", "cache")
        if cache.config is not self.config and cache.config != self.config:
            raise InputError("cache: was made for another model")
        if cache.keys.dtype != self._cache_dtype:
            raise InputError(
                f"cache: was made for another dtype than {self.weights.dtype}; take one of "
                "`new_cache`"
            )
        if len(slots) != len(ids) or not ids:
            raise InputError(
                f"{len(slots)} slots and {len(ids)} sequences of ids: must be equally many, "
                "at least one"
            )
        for i, sequence in enumerate(ids):
            if not isinstance(sequence, np.ndarray):
                raise InputError(f"ids[{i}]: {type(sequence).__name__}; must be int64 [T]")
            if sequence.dtype != np.int64 or sequence.ndim != 1 or not sequence.size:
                raise InputError(
                    f"ids[{i}]: {sequence.dtype} of shape {list(sequence.shape)}; "
                    "must be int64 [T], T at least 1"
                )
        tokens = np.concatenate(ids)
        numbers = tokens.tolist()  # a list of few numbers is searched faster than an array
        for extreme in (min(numbers), max(numbers)):
            if not 0 <= extreme < self.config.vocab_size:
                raise InputError(
                    f"ids: {extreme} is not a token; ids go from 0 to {self.config.vocab_size - 1}"
                )
        return tokens

    def _buffers(self, cache: KVCache, rows: int) -> Buffers:
        """Buffers for the activations of `rows` tokens, which the cache keeps for later passes.

        Passes of few tokens, which generate, have small buffers of their own: those for a long
        prompt are some percent slower. Other passes share the largest so far.
        """
        is_short = rows <= _ROWS_IN_ONE_CALL
        workspace = cache.workspaces.get(is_short)
        if workspace is None or workspace.engine is not self or workspace.rows < rows:
            rows = _ROWS_IN_ONE_CALL if is_short else rows
            buffers = make_buffers(
                self.config, rows, cache.capacity, self.weights.dtype, self._team.size
            )
            workspace = cache.workspaces[is_short] = Workspace(self, rows, buffers)
        return workspace.buffers

    def _run(
        self,
        cache: KVCache,
        buffers: Buffers,
        tokens: TokenBatch,
        logit_rows: np.ndarray,
        logits: np.ndarray,
    ) -> None:
        """One chunk of at most ROWS tokens through all layers.

        Few tokens are one compiled call. Many are a call for each layer, so that Python sees a
        Ctrl-C between two layers.
        """
        L = self.config.n_layer
        stride = L if len(tokens.ids) <= _ROWS_IN_ONE_CALL else 1
        arrays = CacheArrays(cache.keys, cache.values, cache.capacity)
        alone = len(tokens.ids) * self._weights_bytes < SHORT_PASS
        for first in range(0, L, stride):
            self._team.run(
                forward_layers, self._scratch, first, min(L, first + stride),
                self._dims, self._table, self._scales, arrays, buffers, tokens, logit_rows,
                logits, alone=alone,
            )  # fmt: skip


def interrupted_error() -> MinigptError:
    """The error of a signal handler that calls the model whose work it interrupted."""
    return MinigptError(
        "model: is in use by the code that this signal handler interrupted; let the handler take "
        "a note, and call the model after it"
    )


def _owners_and_positions(
    slots: Sequence[int], starts: Sequence[int], counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The slot and the position of each token, int64 [M].

    slots, starts, counts  of each sequence: its slot, its first new position, its new tokens
    """
    owners, positions = np.array(slots, np.int64), np.array(starts, np.int64)
    if max(counts) == 1:
        return owners, positions
    rows = np.cumsum(counts) - counts  # the first of each sequence
    tokens = np.arange(sum(counts))
    return np.repeat(owners, counts), tokens + np.repeat(positions - rows, counts)


def _logit_rows(counts: Sequence[int], last: Last) -> np.ndarray:
    """int64, ascending: the rows of a pass that need logits.

    counts  the number of tokens of each sequence, which follow one another as rows
    last    see Engine.forward
    """
    if last is None:
        return np.arange(sum(counts))
    if isinstance(last, int) and last is not True and last == 1:
        return np.cumsum(counts) - 1
    numbers = list(last) if isinstance(last, Sequence) else [last] * len(counts)
    if len(numbers) != len(counts) or not all(
        is_integer(number) and 0 <= number <= count
        for number, count in zip(numbers, counts, strict=True)
    ):
        raise InputError(
            f"last {short_repr(last)}: must be an integer from 0 to the number of a sequence's "
            "new tokens, or one for each sequence"
        )
    ends = np.cumsum(counts)
    return np.concatenate(
        [np.arange(end - int(n), end) for end, n in zip(ends, numbers, strict=True)]
    )
