"""A model that learns: float32 weights, their gradients, and AdamW's moments.

    learner = Learner(config, tensors, threads=2)
    learner.clear()
    nats = learner.accumulate(ids, targets, share=1 / targets.size)
    norm = learner.update(step=1, lr=1e-3, …)

The same numbers give the same bits, whatever the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..config import GPTConfig
from ..kernels.adamw import BLOCK_SIZE, AdamWStep, adamw, clear, sum_squares
from ..kernels.attention import attention_backward_scratch, attention_scratch, partials_size
from ..kernels.layernorm import layernorm_partials
from ..kernels.layout import (
    KEY_BLOCK,
    LANES,
    STORAGE_DTYPE,
    aligned_arrays,
    aligned_zeros,
    padded,
    panels_size,
    row_stride,
    thread_scratch,
)
from ..kernels.matmul import MATMUL_SCRATCH, Room
from ..kernels.simd import BF16_PRODUCTS
from ..kernels.team import Team
from ..weights.table import HEAD
from .backward import (
    HEAD_COLUMNS,
    HEAD_ROWS,
    Batch,
    Layer,
    NonLayerWeights,
    SavedActivations,
    Workspace,
    backward_embedding,
    backward_head,
    backward_layer,
    forward_embedding,
    forward_head,
    forward_layer,
)
from .dims import attention_scales, make_dims
from .forward import query_blocks

_TOKENS_AT_ONCE = 2048  # more are taken in several passes, as whole sequences


class Learner:
    """
    tensors, grads, first_moments, second_moments
                {name: float32 array}, names and shapes as in weights.py
    """

    def __init__(
        self,
        config: GPTConfig,
        tensors: dict[str, np.ndarray],
        threads: int,
        dtype: str = "f32",
        recompute: bool = False,
    ) -> None:
        """
        tensors    float32, C-contiguous, every name of the table; `update` changes them in place
        dtype      "f32", or "bf16": products are of bfloat16 factors; sums, weights and gradients
                   are float32 in any case
        recompute  keep only what enters each layer, and compute the rest again in backward
        """
        self.config = config
        self.tensors = tensors
        self._grads, self.grads = _zeros_like(tensors)
        self.first_moments: dict[str, np.ndarray] = {}
        self.second_moments: dict[str, np.ndarray] = {}
        self._team = Team(threads, owner=tensors)
        self._recompute = recompute
        # what right and left factors of products are held as
        self._panels = STORAGE_DTYPE[dtype]
        self._factor = STORAGE_DTYPE["bf16" if dtype == "bf16" and BF16_PRODUCTS else "f32"]
        self._scales = attention_scales(config)
        self._dims = make_dims(config)
        self._no_scratch = np.empty((threads, 0), np.float32)
        self._made: tuple[int, int] | None = None

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """The sum of nats over the targets that count; ids, targets int64 [B, T]."""
        return sum(self._forward(*piece) for piece in _pieces(ids, targets))

    def accumulate(self, ids: np.ndarray, targets: np.ndarray, share: float) -> float:
        """Add share · ∂(sum of nats)/∂tensors to the gradients; returns the sum of nats."""
        total = 0.0
        for piece in _pieces(ids, targets):
            total += self._forward(*piece, share)
            self._backward()
        return total

    def clear(self) -> None:
        """Set all gradients to zero."""
        self._team.run(clear, self._no_scratch, self._grads)

    def take_grads(self) -> dict[str, np.ndarray]:
        """The gradients, for the caller to keep; new ones begin with zero."""
        taken = self.grads
        self._grads, self.grads = _zeros_like(self.tensors)
        return taken

    # ---- one pass ----

    def _forward(self, ids: np.ndarray, targets: np.ndarray, share: float | None = None) -> float:
        """The sum of nats of one piece; with a share, the head's gradients, too, and work.dx."""
        B, T = ids.shape
        self._fit(B, T)
        self._batch = _make_batch(ids, targets)
        batch, dims, work = self._batch, self._dims, self._work
        w, dw = _non_layer(self.tensors), _non_layer(self.grads)
        self._run(forward_embedding, self._x[0], w, batch, dims)
        for n in range(self.config.n_layer):
            self._forward_layer(n)
        x = self._x[-1]
        for first in range(0, B * T, HEAD_ROWS):
            self._run(forward_head, x, first, w, batch, dims, work)
            if share is not None:
                self._run(backward_head, x, first, w, dw, batch, dims, work, np.float32(share))
        return float(work.losses[: B * T].sum(dtype=np.float64))

    def _forward_layer(self, n: int) -> None:
        x, x_next = self._x[n], self._x[n + 1]
        w = _layer(self.tensors, n)
        saved = self._saved[n % len(self._saved)]
        self._run(
            forward_layer, x_next, x, w, saved, self._batch, self._dims, self._work,
            self._scales[n],
        )  # fmt: skip

    def _backward(self) -> None:
        """The layers' and the embedding's gradients of the piece that _forward went through."""
        for n in reversed(range(self.config.n_layer)):
            if self._recompute and n < self.config.n_layer - 1:
                self._forward_layer(n)
            w, dw = _layer(self.tensors, n), _layer(self.grads, n)
            saved = self._saved[n % len(self._saved)]
            self._run(
                backward_layer, self._x[n], w, dw, saved, self._batch, self._dims, self._work,
                self._scales[n],
            )  # fmt: skip
        self._run(backward_embedding, _non_layer(self.grads), self._batch, self._dims, self._work)

    def _run(self, function, *arguments) -> None:
        self._team.run(function, self._scratch, *arguments)

    def _fit(self, B: int, T: int) -> None:
        """Room for B sequences of T tokens, unless it is there."""
        if self._made == (B, T):
            return
        self._made = None  # so that an interruption leaves no half of it
        config, layers = self.config, self.config.n_layer
        rows = padded(B * T, LANES)  # AMX reads and writes whole tiles
        self._x = [_rows(rows, config.n_embd) for _ in range(layers + 1)]
        saved = 1 if self._recompute else layers
        self._saved = [_make_saved(config, rows, self._factor) for _ in range(saved)]
        self._work = _make_workspace(config, B, T, self._panels, self._factor)
        self._scratch = _make_scratch(config, T, self._team.size)
        self._made = B, T

    # ---- the optimizer ----

    def update(
        self,
        step: int,
        lr: float,
        beta_1: float,
        beta_2: float,
        eps: float,
        weight_decay: float,
        clip: float,
    ) -> float:
        """One step of AdamW from the gradients; returns their norm.

        step          counts from 1
        weight_decay  of matrices; vectors do not decay
        clip          the largest norm of all gradients together: larger ones are made smaller; 0
                      for no limit
        """
        if not self.first_moments:
            for moments in (self.first_moments, self.second_moments):
                moments.update(_zeros_like(self.tensors)[1])
        norm = self._norm()
        numbers = AdamWStep(
            clip=np.float32(clip / norm if clip and norm > clip else 1),
            lr=np.float32(lr),
            beta_1=np.float32(beta_1),
            rest_1=np.float32(1 - beta_1),
            bias_1=np.float32(1 - beta_1**step),
            beta_2=np.float32(beta_2),
            rest_2=np.float32(1 - beta_2),
            bias_2=np.float32(1 - beta_2**step),
            eps=np.float32(eps),
            keep=np.float32(1),
        )
        decaying = numbers._replace(keep=np.float32(1 - lr * weight_decay))
        for name, w in self.tensors.items():
            arrays = w, self.grads[name], self.first_moments[name], self.second_moments[name]
            flat = [array.reshape(-1) for array in arrays]
            self._team.run(adamw, self._no_scratch, *flat, decaying if w.ndim == 2 else numbers)
        return norm

    def _norm(self) -> float:
        """The root of the sum of squares of all gradients."""
        sums = np.zeros(-(-self._grads.size // BLOCK_SIZE), np.float32)
        self._team.run(sum_squares, self._no_scratch, sums, self._grads)
        return math.sqrt(sums.sum(dtype=np.float64))


def _pieces(ids: np.ndarray, targets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some sequences at a time."""
    B, T = ids.shape
    step = max(1, _TOKENS_AT_ONCE // T)
    for b in range(0, B, step):
        yield ids[b : b + step], targets[b : b + step]


def _make_batch(ids: np.ndarray, targets: np.ndarray) -> Batch:
    B, T = ids.shape
    positions, slots = np.tile(np.arange(T), B), np.repeat(np.arange(B), T)
    return Batch(
        B, T, padded(T, KEY_BLOCK), ids.reshape(-1), positions, slots, targets.reshape(-1),
        query_blocks(slots, positions),
    )  # fmt: skip


def _layer(tensors: dict[str, np.ndarray], n: int) -> Layer:
    names = (
        "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias",
        "attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias",
        "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
    )  # fmt: skip
    return Layer(*(tensors[f"h.{n}.{name}"].reshape(-1) for name in names))


def _non_layer(tensors: dict[str, np.ndarray]) -> NonLayerWeights:
    wte = tensors["wte.weight"]
    names = ("wpe.weight", "ln_f.weight", "ln_f.bias")
    others = [tensors[name].reshape(-1) for name in names]
    return NonLayerWeights(wte.reshape(-1), *others, tensors.get(HEAD, wte).reshape(-1))


# ---- memory ----


def _zeros_like(tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(memory, {name: zeros of the tensor's shape in it}), float32; see `aligned_arrays`."""
    sizes = {name: tensor.size for name, tensor in tensors.items()}
    memory, flat = aligned_arrays(sizes, STORAGE_DTYPE["f32"])
    return memory, {name: flat[name].reshape(tensor.shape) for name, tensor in tensors.items()}


def _rows(rows: int, width: int, kind: np.dtype = STORAGE_DTYPE["f32"]) -> np.ndarray:
    """Zeros for [rows, width], flat."""
    return aligned_zeros(rows * row_stride(width), kind)


def _make_saved(config: GPTConfig, rows: int, factor: np.dtype) -> SavedActivations:
    C = config.n_embd
    return SavedActivations(
        qkv=_rows(rows, 3 * C, factor),
        attended=_rows(rows, C, factor),
        norms=aligned_zeros(rows * config.n_head, np.float32),
        middle=_rows(rows, C),
        fc=_rows(rows, config.n_inner, factor),
    )


def _make_workspace(
    config: GPTConfig, B: int, T: int, panels: np.dtype, factor: np.dtype
) -> Workspace:
    C, H, V, NH, HS = (
        config.n_embd, config.n_inner, config.vocab_size, config.n_head, config.head_size
    )  # fmt: skip
    rows, capacity = padded(B * T, LANES), padded(T, KEY_BLOCK)
    head_rows = min(int(HEAD_ROWS), rows)
    cache = B * NH * capacity * padded(HS)
    single = B if T == 1 else 0  # sequences that attention_forward reads as single queries
    return Workspace(
        normed=_rows(rows, C, factor),
        hidden=_rows(rows, H, factor),
        keys=aligned_zeros(cache, panels),
        values=aligned_zeros(cache, panels),
        partials=aligned_zeros(partials_size(single, NH, HS, capacity), np.float32),
        room=_make_room(config, B * T, head_rows, panels, factor),
        dx=_rows(rows, C),
        dnormed=_rows(rows, C),
        dqkv=_rows(rows, 3 * C, factor),
        dhidden=_rows(rows, H, factor),
        sums=aligned_zeros(layernorm_partials(rows, C), np.float32),
        logits=_rows(head_rows, V),
        dlogits=_rows(head_rows, int(HEAD_COLUMNS), factor),
        head_panels=aligned_zeros(panels_size(head_rows, C), panels),
        losses=aligned_zeros(rows, np.float32),
        norms=aligned_zeros(head_rows, np.float32),
    )


def _make_room(
    config: GPTConfig, M: int, head_rows: int, panels: np.dtype, factor: np.dtype
) -> Room:
    """For the largest factors of all products, of M rows, in the head of `head_rows`."""
    C, H, V = config.n_embd, config.n_inner, min(config.vocab_size, int(HEAD_COLUMNS))
    products = [(C, 3 * C), (C, C), (C, H), (H, C)]
    right = [(V, C), (C, V)]
    left = [(V, head_rows)]
    for K, N in products:
        right += [(K, N), (M, N), (N, K)]  # w, dy, wᵀ
        left += [(K, M), (M, N)]  # xᵀ, dy
    return Room(
        aligned_zeros(max(panels_size(*shape) for shape in right), panels),
        aligned_zeros(max(padded(rows, LANES) * row_stride(width) for rows, width in left), factor),
    )


def _make_scratch(config: GPTConfig, T: int, threads: int) -> np.ndarray:
    """float32 [threads, n]: what each thread needs for itself."""
    HS = config.head_size
    needed = max(MATMUL_SCRATCH, attention_scratch(HS), attention_backward_scratch(T, HS))
    return thread_scratch(threads, needed)
