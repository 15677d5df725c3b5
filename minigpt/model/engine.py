"""The engine: a model made ready to run, and the passes of tokens through it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config import GPTConfig
from ..errors import InputError
from ..kernels.attention import QUERY_BLOCK, attention_scratch, partials_size
from ..kernels.gemm.quantized import QuantizedMatrix, make_quantized_activations
from ..kernels.layout import (
    AUX_DTYPE,
    LANES,
    STORAGE_DTYPE,
    padded,
    row_stride,
    thread_scratch,
    zeros,
)
from ..kernels.matmul import (
    MATMUL_SCRATCH,
)
from ..kernels.simd import BF16_PRODUCTS
from ..kernels.team import Team
from ..weights.packed import Weights
from ..weights.table import HEAD, QUANTIZED, layer_shapes
from .dims import attention_scales, make_dims
from .forward import Buffers, Cache, Step, Table, _layers
from .kv_cache import State

ROWS = 512  # tokens that pass through the layers together; more are cut into such chunks
_ROWS_AT_ONCE = 16  # up to here all layers are one compiled call, else each is one


def _field(name: str) -> str:
    """`attn.c_attn.weight` as a field name."""
    return name.replace(".", "_")


def make_table(weights: Weights, config: GPTConfig) -> Table:
    """The addresses of all weights. They are valid as long as the weights are."""
    layers = [
        _addresses(weights, {name: f"h.{n}.{name}" for name in layer_shapes(config)})
        for n in range(config.n_layer)
    ]
    ends = {name: name for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")}
    ends["head"] = "wte.weight" if weights.tied else HEAD
    matrix: np.ndarray | QuantizedMatrix = np.empty(0, STORAGE_DTYPE[weights.dtype])
    if weights.dtype in QUANTIZED:
        matrix = QuantizedMatrix(matrix, np.empty(0, np.uint16))
    plain, vector = np.empty(0, AUX_DTYPE[weights.dtype]), np.empty(0, np.float32)
    return Table(np.concatenate(layers), _addresses(weights, ends), matrix, plain, vector)


def _addresses(weights: Weights, names: dict[str, str]) -> np.ndarray:
    """[1] record of the addresses of some tensors, {field: name}, and of their scales."""
    address = {_field(f): weights.tensors[name].ctypes.data for f, name in names.items()}
    for field, name in names.items():
        has_scales = name in weights.scales
        scales = weights.scales[name].ctypes.data if has_scales else 0
        address[_field(field) + "_scales"] = scales
    return np.array([tuple(address.values())], dtype=[(field, np.uint64) for field in address])


def make_buffers(config: GPTConfig, rows: int, capacity: int, dtype: str, threads: int) -> Buffers:
    """Room for the activations of `rows` tokens of sequences of `capacity`, zero at first.

    dtype  how the weights are held
    """
    narrow = BF16_PRODUCTS and dtype == "bf16"
    C, H = config.n_embd, config.n_inner
    factor = np.uint16 if narrow else np.float32
    whole = padded(rows, LANES) if narrow else rows  # AMX reads and writes whole tiles
    return Buffers(
        x=zeros(whole * row_stride(C), np.float32),
        qkv=zeros(whole * row_stride(3 * C), np.float32),
        normed=zeros(whole * row_stride(C), factor),
        attended=zeros(whole * row_stride(C), factor),
        hidden=zeros(whole * row_stride(H), factor),
        partials=zeros(partials_size(rows, config.n_head, config.head_size, capacity), np.float32),
        whole=make_quantized_activations(
            max(rows, threads), max(C, H) if dtype in QUANTIZED else 0
        ),
    )


def make_scratch(config: GPTConfig, threads: int) -> np.ndarray:
    """float32 [threads, n]: what each thread needs for itself."""
    needed = max(MATMUL_SCRATCH, attention_scratch(config.head_size))
    return thread_scratch(threads, needed)


# ---- the part in Python ---------------------------------------------------------------------


class Engine:
    """A model made ready to run: what stays the same from one pass to the next."""

    def __init__(self, config: GPTConfig, weights: Weights, threads: int) -> None:
        self.config = config
        self.weights = weights
        self.threads = threads
        self._team = Team(threads, keep=weights)
        self._sizes = make_dims(config)
        self._table = make_table(weights, config)
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
            step = Step(
                tokens[rows],
                positions[rows],
                owners[rows],
                query_blocks(owners[rows], positions[rows]),
                wanted[first:end] - start,
            )
            self._run(state, buffers, step, logits[first:end].reshape(-1))
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

    def _run(self, state: State, buffers: Buffers, step: Step, logits: np.ndarray) -> None:
        """One chunk of at most ROWS tokens through all layers.

        Few tokens are one compiled call. Many are a call for each layer, between which Python can
        see that the user wants to stop.
        """
        L = self.config.n_layer
        stride = L if len(step.ids) <= _ROWS_AT_ONCE else 1
        cache = Cache(state.keys, state.values, state.slots, state.capacity)
        for first in range(0, L, stride):
            self._team.run(
                _layers, self._scratch, first, min(L, first + stride),
                self._sizes, self._table, self._scales, cache, buffers, step, logits,
            )  # fmt: skip


def query_blocks(owners: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The query blocks of attention_forward: runs of at most QUERY_BLOCK rows of one sequence.

    owners, positions  int64 [M]
    Returns int64 [4 · n]: slot, first row, rows, first position of each.
    """
    M = len(owners)
    borders = np.flatnonzero(np.diff(owners)) + 1
    blocks = []
    for begin, end in zip([0, *borders], [*borders, M], strict=True):
        for row in range(begin, end, QUERY_BLOCK):
            blocks += [owners[row], row, min(QUERY_BLOCK, end - row), positions[row]]
    return np.array(blocks, np.int64)
