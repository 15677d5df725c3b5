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

from .backward import (
    HEAD_COLUMNS,
    HEAD_ROWS,
    Batch,
    Ends,
    Kept,
    Layer,
    Shape,
    Workspace,
    backward_embedding,
    backward_head,
    backward_layer,
    forward_embedding,
    forward_head,
    forward_layer,
)
from .config import GPTConfig
from .kernels.adamw import BLOCK_SIZE, AdamWStep, adamw, sum_squares
from .kernels.attention import attention_backward_scratch, attention_scratch, partials_size
from .kernels.layernorm import layernorm_partials
from .kernels.layout import HELD, KEYS, LANES, padded, panels_size, row_stride
from .kernels.matmul import MATMUL_SCRATCH, Room
from .kernels.simd import BF16_PRODUCTS
from .kernels.team import Team
from .model import attention_blocks, attention_scales, make_sizes
from .weights import HEAD

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
        self.grads = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
        self.first_moments: dict[str, np.ndarray] = {}
        self.second_moments: dict[str, np.ndarray] = {}
        self._team = Team(threads, keep=tensors)
        self._dtype = dtype
        self._recompute = recompute
        self._scales = attention_scales(config)
        sizes = make_sizes(config)
        self._shape = Shape(
            sizes.C, sizes.NH, sizes.HS, sizes.H, sizes.V, sizes.activation, sizes.eps,
            sizes.embedding_scale, sizes.logit_scale,
        )  # fmt: skip
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
        for grad in self.grads.values():
            grad[:] = 0

    def take_grads(self) -> dict[str, np.ndarray]:
        """The gradients, for the caller to keep; new ones begin with zero."""
        taken = self.grads
        self.grads = {name: np.zeros_like(tensor) for name, tensor in self.tensors.items()}
        return taken

    # ---- one pass ----

    def _forward(self, ids: np.ndarray, targets: np.ndarray, share: float | None = None) -> float:
        """The sum of nats of one piece; with a share, the head's gradients, too, and work.dx."""
        B, T = ids.shape
        self._make_room(B, T)
        self._batch = _make_batch(ids, targets)
        batch, shape, work = self._batch, self._shape, self._work
        w, dw = _ends(self.tensors), _ends(self.grads)
        self._run(forward_embedding, self._x[0], w, batch, shape)
        for n in range(self.config.n_layer):
            self._forward_layer(n)
        x = self._x[-1]
        for first in range(0, B * T, HEAD_ROWS):
            self._run(forward_head, x, first, w, batch, shape, work)
            if share is not None:
                self._run(backward_head, x, first, w, dw, batch, shape, work, np.float32(share))
        return float(work.losses[: B * T].sum(dtype=np.float64))

    def _forward_layer(self, n: int) -> None:
        x, x_next = self._x[n], self._x[n + 1]
        w = _layer(self.tensors, n)
        kept = self._kept[n % len(self._kept)]
        self._run(
            forward_layer, x_next, x, w, kept, self._batch, self._shape, self._work,
            self._scales[n],
        )  # fmt: skip

    def _backward(self) -> None:
        """The layers' and the embedding's gradients of the piece that _forward went through."""
        for n in reversed(range(self.config.n_layer)):
            if self._recompute and n < self.config.n_layer - 1:
                self._forward_layer(n)
            w, dw = _layer(self.tensors, n), _layer(self.grads, n)
            kept = self._kept[n % len(self._kept)]
            self._run(
                backward_layer, self._x[n], w, dw, kept, self._batch, self._shape, self._work,
                self._scales[n],
            )  # fmt: skip
        self._run(backward_embedding, _ends(self.grads), self._batch, self._shape, self._work)

    def _run(self, function, *arguments) -> None:
        self._team.run(function, self._scratch, *arguments)

    # ---- memory ----

    def _make_room(self, B: int, T: int) -> None:
        """Room for B sequences of T tokens, unless it is there."""
        if self._made == (B, T):
            return
        self._made = None
        config = self.config
        C, H, L, M = config.n_embd, config.n_inner, config.n_layer, padded(B * T, LANES)
        factor = np.uint16 if BF16_PRODUCTS and self._dtype == "bf16" else np.float32

        def rows(width: int, kind: type = np.float32) -> np.ndarray:
            return np.zeros(M * row_stride(width), kind)

        self._x = [rows(C) for _ in range(L + 1)]
        self._kept = [
            Kept(
                qkv=rows(3 * C),
                attended=rows(C, factor),
                norms=np.zeros(M * config.n_head, np.float32),
                middle=rows(C),
                fc=rows(H),
            )
            for _ in range(1 if self._recompute else L)
        ]
        capacity = padded(T, KEYS)
        cache = B * config.n_head * capacity * padded(config.head_size)
        panels = HELD[self._dtype]
        self._work = Workspace(
            normed=rows(C, factor),
            hidden=rows(H, factor),
            keys=np.zeros(cache, panels),
            values=np.zeros(cache, panels),
            partials=np.zeros(
                partials_size(B if T == 1 else 0, config.n_head, config.head_size, capacity),
                np.float32,
            ),
            room=_room(config, B * T, panels, factor),
            dx=rows(C),
            dnormed=rows(C),
            dqkv=rows(3 * C, factor),
            dhidden=rows(H, factor),
            sums=np.zeros(layernorm_partials(M, C), np.float32),
            logits=np.zeros(_head_rows(M) * row_stride(config.vocab_size), np.float32),
            dlogits=np.zeros(_head_rows(M) * row_stride(int(HEAD_COLUMNS)), factor),
            head_panels=np.zeros(panels_size(_head_rows(M), C), panels),
            losses=np.zeros(M, np.float32),
            norms=np.zeros(M, np.float32),
        )
        needed = (
            MATMUL_SCRATCH,
            attention_scratch(config.head_size),
            attention_backward_scratch(T, config.head_size),
        )
        self._scratch = np.zeros((self._team.size, max(needed)), np.float32)
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
                moments.update({name: np.zeros_like(w) for name, w in self.tensors.items()})
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
        total = 0.0
        for grad in self.grads.values():
            sums = np.zeros(-(-grad.size // BLOCK_SIZE), np.float32)
            self._team.run(sum_squares, self._no_scratch, sums, grad.reshape(-1))
            total += float(sums.sum(dtype=np.float64))
        return math.sqrt(total)


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
        B, T, padded(T, KEYS), ids.reshape(-1), positions, slots, targets.reshape(-1),
        attention_blocks(slots, positions),
    )  # fmt: skip


def _layer(tensors: dict[str, np.ndarray], n: int) -> Layer:
    names = (
        "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias",
        "attn.c_proj.weight", "attn.c_proj.bias", "ln_2.weight", "ln_2.bias",
        "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
    )  # fmt: skip
    return Layer(*(tensors[f"h.{n}.{name}"].reshape(-1) for name in names))


def _ends(tensors: dict[str, np.ndarray]) -> Ends:
    wte = tensors["wte.weight"]
    names = ("wpe.weight", "ln_f.weight", "ln_f.bias")
    others = [tensors[name].reshape(-1) for name in names]
    return Ends(wte.reshape(-1), *others, tensors.get(HEAD, wte).reshape(-1))


def _head_rows(M: int) -> int:
    return min(int(HEAD_ROWS), M)


def _room(config: GPTConfig, M: int, panels: np.dtype, factor: type) -> Room:
    """For the largest factors of all products."""
    C, H, V = config.n_embd, config.n_inner, min(config.vocab_size, int(HEAD_COLUMNS))
    products = [(M, C, 3 * C), (M, C, C), (M, C, H), (M, H, C)]
    largest = max(
        *(panels_size(*shape) for M, K, N in products for shape in ((M, N), (N, K), (K, N))),
        panels_size(C, V), panels_size(V, C),
    )  # fmt: skip
    rows = max(
        *(padded(K, LANES) * row_stride(M) for M, K, N in products),
        *(padded(M, LANES) * row_stride(N) for M, K, N in products),
        padded(V, LANES) * row_stride(_head_rows(padded(M, LANES))),
    )
    return Room(np.zeros(largest, panels), np.zeros(rows, factor))
