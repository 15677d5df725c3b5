"""The Learner: float32 weights, their gradients, and AdamW's moments.

    learner = Learner(config, tensors, threads=2)
    learner.zero_grad()
    nats = learner.backward(ids, targets, loss_scale=1 / targets.size)
    grad_norm = learner.step(AdamW(step=1, lr=1e-3))

Results have the same bits for any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..config import GPTConfig
from ..kernels.adamw import BLOCK_SIZE, AdamWFactors, adamw, sum_squares, zero
from ..kernels.attention import attention_backward_scratch, attention_scratch, partials_size
from ..kernels.crossentropy import SoftmaxStates
from ..kernels.kv_cache import Heads, LayerCache
from ..kernels.layernorm import LayerNorm, layernorm_partials
from ..kernels.layout import (
    K_ALIGN,
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
from ..kernels.matmul import ADD, MATMUL_SCRATCH, SET, LinearWorkspace, PlainLinear
from ..kernels.simd import BF16_PRODUCTS
from ..kernels.team import Team
from ..weights.table import HEAD
from .backward import (
    HEAD_COLUMNS,
    HEAD_ROWS,
    SavedActivations,
    Workspace,
    backward_embedding,
    backward_head,
    backward_layer,
    forward_embedding,
    forward_head,
    forward_layer,
)
from .block import Layer, NonLayerWeights, TokenBatch, layer_modules
from .dims import attention_scales, make_dims
from .forward import query_blocks
from .optimizer import AdamW

Tensors = dict[str, np.ndarray]

_MAX_TOKENS = 2048  # of one pass; larger batches take several, of whole sequences


class Learner:
    """A GPT in training.

    tensors         {name: float32 array}, names and shapes as in weights/table.py
    first_moments   AdamW's moments, by the same names; empty before the first step
    second_moments
    """

    def __init__(
        self,
        config: GPTConfig,
        tensors: Tensors,
        threads: int,
        dtype: str = "f32",
        recompute: bool = False,
    ) -> None:
        """Start the threads; memory for gradients is allocated here, for moments by the first step.

        tensors    C-contiguous float32 arrays of every name in the table; `step` updates them in
                   place
        threads    the number of threads that compute
        dtype      "f32", or "bf16": the operands of products are rounded to bfloat16; sums, weights
                   and gradients are float32 in either
        recompute  save only the input of each layer, and compute its other activations once more in
                   backward

        Raises RuntimeError where the system gives no more threads.
        """
        self.config = config
        self.tensors = tensors
        self._grad_memory, self._grads = _zeros_like(tensors)
        self._grads_are_stale = False  # zero_grad sets it: they stand for zeros
        self.first_moments: Tensors = {}
        self.second_moments: Tensors = {}
        self._team = Team(threads, owner=tensors)
        self._recompute = recompute
        # the dtypes of the B and A operands of products
        self._b_dtype = STORAGE_DTYPE[dtype]
        self._a_dtype = STORAGE_DTYPE["bf16" if dtype == "bf16" and BF16_PRODUCTS else "f32"]
        self._head_rows = HEAD_ROWS[self._a_dtype.itemsize]
        # the embeddings whose gradient is no product's: wte's is if the head is tied
        self._tables = {"wpe.weight", "wte.weight"} if HEAD in tensors else {"wpe.weight"}
        self._scales = attention_scales(config)
        self._dims = make_dims(config)
        self._no_scratch = np.empty((threads, 0), np.float32)
        self._batch_shape: tuple[int, int] | None = None  # that the memory below was made for

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """The sum of the cross-entropy over all targets that are not IGNORED, in nats.

        ids, targets  int64 [B, T]
        """
        return sum(self._forward(*chunk) for chunk in _chunks(ids, targets))

    def backward(self, ids: np.ndarray, targets: np.ndarray, loss_scale: float) -> float:
        """Add loss_scale · ∂loss/∂tensors to the gradients, and return the loss: the sum of the
        cross-entropy in nats.

        ids, targets  int64 [B, T]; targets that are IGNORED do not count
        """
        total = 0.0
        for chunk in _chunks(ids, targets):
            mode = SET if self._grads_are_stale else ADD
            if self._grads_are_stale:
                self._clear_sums()
            total += self._forward(*chunk, loss_scale, mode)
            self._backward(mode)
            self._grads_are_stale = False
        return total

    @property
    def grads(self) -> Tensors:
        """The gradients, by the names of the tensors; `backward` adds to them."""
        if self._grads_are_stale:
            self._team.run(zero, self._no_scratch, self._grad_memory)
            self._grads_are_stale = False
        return self._grads

    def zero_grad(self) -> None:
        """Set all gradients to zero: the next `backward` overwrites most of them instead."""
        self._grads_are_stale = True

    def _clear_sums(self) -> None:
        """Zero the gradients that backward adds to in any mode: all but those of products."""
        for name, grad in self._grads.items():
            if name in self._tables:
                self._team.run(zero, self._no_scratch, grad.reshape(-1))
            elif grad.ndim == 1:
                grad[:] = 0

    def pop_grads(self) -> Tensors:
        """The gradients, which the caller may keep; the Learner's begin at zero again."""
        popped = self.grads
        self._grad_memory, self._grads = _zeros_like(self.tensors)
        return popped

    # ---- one pass ----

    def _forward(
        self,
        ids: np.ndarray,
        targets: np.ndarray,
        loss_scale: float | None = None,
        mode: np.int64 = ADD,
    ) -> float:
        """The sum of nats of one chunk; with a loss_scale also the head's backward, to work.dx.

        mode  of the head's gradient, ADD or SET
        """
        B, T = ids.shape
        self._allocate(B, T)
        self._tokens, self._T = _token_batch(ids), T
        targets = targets.reshape(-1)
        dims, work = self._dims, self._work
        weights, grads = _non_layer_weights(self.tensors), _non_layer_weights(self._grads)
        self._run(forward_embedding, self._x[0], weights, self._tokens, dims)
        for n in range(self.config.n_layer):
            self._forward_layer(n)
        x = self._x[-1]
        for first in range(0, B * T, self._head_rows):
            rows = min(self._head_rows, B * T - first)
            self._run(forward_head, x, first, rows, weights, targets, work, dims)
            if loss_scale is not None:
                self._run(
                    backward_head, x, first, rows, weights, grads, targets, work, dims,
                    np.float32(loss_scale), mode,
                )  # fmt: skip
                mode = ADD
        return float(work.losses[: B * T].sum(dtype=np.float64))

    def _forward_layer(self, n: int) -> None:
        self._run(
            forward_layer, self._x[n + 1], self._x[n], _layer(self.tensors, self.config, n),
            self._heads(n), self._tokens, self._saved[n % len(self._saved)], self._work,
            self._dims,
        )  # fmt: skip

    def _backward(self, mode: np.int64) -> None:
        """The gradients of layers and embedding for the chunk that _forward has processed.

        mode  of the gradients of the layers' matrices, ADD or SET
        """
        for n in reversed(range(self.config.n_layer)):
            if self._recompute and n < self.config.n_layer - 1:
                self._forward_layer(n)
            self._run(
                backward_layer, self._x[n], _layer(self.tensors, self.config, n),
                _layer(self._grads, self.config, n), self._heads(n), self._tokens, self._T,
                self._saved[n % len(self._saved)], self._work, self._dims, mode,
            )  # fmt: skip
        grads = _non_layer_weights(self._grads)
        self._run(backward_embedding, grads, self._tokens, self._work, self._dims)

    def _heads(self, n: int) -> Heads:
        return Heads(self._dims.NH, self._dims.HS, self._scales[n])

    def _run(self, function: Any, *arguments: Any) -> None:
        self._team.run(function, self._scratch, *arguments)

    def _allocate(self, B: int, T: int) -> None:
        """Memory for B sequences of T tokens, unless it is there already."""
        if self._batch_shape == (B, T):
            return
        self._batch_shape = None  # an interruption may leave only some of it
        config, layers = self.config, self.config.n_layer
        rows = padded(B * T, LANES)  # AMX reads and writes whole tiles
        self._x = [_rows(rows, config.n_embd) for _ in range(layers + 1)]
        count = 1 if self._recompute else layers
        self._saved = [_make_saved(config, rows, self._a_dtype) for _ in range(count)]
        self._work = _make_workspace(config, B, T, self._b_dtype, self._a_dtype)
        self._scratch = _make_scratch(config, T, self._team.size)
        self._batch_shape = B, T

    # ---- the optimizer ----

    def step(self, settings: AdamW) -> float:
        """One step of AdamW on the weights; returns the global gradient norm, before clipping."""
        if not self.first_moments:
            for moments in (self.first_moments, self.second_moments):
                moments.update(_zeros_like(self.tensors)[1])
        grads, norm = self.grads, self._grad_norm()
        step, lr, beta_1, beta_2, eps, weight_decay, max_grad_norm = settings
        factors = AdamWFactors(
            clip=np.float32(max_grad_norm / norm if max_grad_norm and norm > max_grad_norm else 1),
            lr=np.float32(lr),
            beta_1=np.float32(beta_1),
            one_minus_beta_1=np.float32(1 - beta_1),
            correction_1=np.float32(1 - beta_1**step),
            beta_2=np.float32(beta_2),
            one_minus_beta_2=np.float32(1 - beta_2),
            correction_2=np.float32(1 - beta_2**step),
            eps=np.float32(eps),
            decay=np.float32(1),
        )
        decaying = factors._replace(decay=np.float32(1 - lr * weight_decay))
        for name, w in self.tensors.items():
            arrays = w, grads[name], self.first_moments[name], self.second_moments[name]
            flat = [array.reshape(-1) for array in arrays]
            self._team.run(adamw, self._no_scratch, *flat, decaying if w.ndim == 2 else factors)
        return norm

    def _grad_norm(self) -> float:
        """The root of the sum of squares of all gradients."""
        sums = np.zeros(-(-self._grad_memory.size // BLOCK_SIZE), np.float32)
        self._team.run(sum_squares, self._no_scratch, sums, self._grad_memory)
        return math.sqrt(sums.sum(dtype=np.float64))


# ---- arguments of the compiled passes ----


def _chunks(ids: np.ndarray, targets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole sequences of at most _MAX_TOKENS together, or one longer one."""
    B, T = ids.shape
    size = max(1, _MAX_TOKENS // T)
    for b in range(0, B, size):
        yield ids[b : b + size], targets[b : b + size]


def _token_batch(ids: np.ndarray) -> TokenBatch:
    B, T = ids.shape
    positions, slots = np.tile(np.arange(T), B), np.repeat(np.arange(B), T)
    return TokenBatch(ids.reshape(-1), positions, slots, query_blocks(slots, positions))


def _layer(tensors: Tensors, config: GPTConfig, n: int) -> Layer:
    """The tensors of layer n, flat."""
    modules: list[Any] = []
    for name, shape in layer_modules(config).items():
        weight, bias = (tensors[f"h.{n}.{name}.{part}"].reshape(-1) for part in ("weight", "bias"))
        if len(shape) == 1:
            modules.append(LayerNorm(weight, bias))
        else:
            modules.append(PlainLinear(weight, bias, *shape))
    return Layer(*modules)


def _non_layer_weights(tensors: Tensors) -> NonLayerWeights:
    """The tensors outside the layers, flat."""
    wte, wpe = tensors["wte.weight"].reshape(-1), tensors["wpe.weight"].reshape(-1)
    head = tensors[HEAD].reshape(-1) if HEAD in tensors else wte
    return NonLayerWeights(wte, wpe, LayerNorm(tensors["ln_f.weight"], tensors["ln_f.bias"]), head)


# ---- memory ----


def _zeros_like(tensors: Tensors) -> tuple[np.ndarray, Tensors]:
    """(memory, {name: zeros of the tensor's shape in it}), float32; see `aligned_arrays`."""
    sizes = {name: tensor.size for name, tensor in tensors.items()}
    memory, flat = aligned_arrays(sizes, STORAGE_DTYPE["f32"])
    return memory, {name: flat[name].reshape(tensor.shape) for name, tensor in tensors.items()}


def _rows(rows: int, width: int, dtype: np.dtype = STORAGE_DTYPE["f32"]) -> np.ndarray:
    """Zeros for [rows, width], flat, rows row_stride(width) apart."""
    return aligned_zeros(rows * row_stride(width), dtype)


def _make_saved(config: GPTConfig, rows: int, a_dtype: np.dtype) -> SavedActivations:
    C = config.n_embd
    return SavedActivations(
        qkv=_rows(rows, 3 * C, a_dtype),
        attn=_rows(rows, C, a_dtype),
        lse=aligned_zeros(rows * config.n_head, np.float32),
        x_mid=_rows(rows, C),
        fc=_rows(rows, config.n_inner, a_dtype),
    )


def _make_workspace(
    config: GPTConfig, B: int, T: int, b_dtype: np.dtype, a_dtype: np.dtype
) -> Workspace:
    C, H, V, NH, HS = (
        config.n_embd, config.n_inner, config.vocab_size, config.n_head, config.head_size
    )  # fmt: skip
    rows, capacity = padded(B * T, LANES), padded(T, KEY_BLOCK)
    head_rows = min(HEAD_ROWS[a_dtype.itemsize], padded(rows, K_ALIGN))
    columns = min(int(HEAD_COLUMNS), padded(V, LANES))
    states = -(-V // int(HEAD_COLUMNS)) * head_rows
    cache_size = B * NH * capacity * padded(HS)
    keys, values = aligned_zeros(cache_size, b_dtype), aligned_zeros(cache_size, b_dtype)
    single_queries = B if T == 1 else 0  # attention_forward needs partials for these alone
    return Workspace(
        normed=_rows(rows, C, a_dtype),
        hidden=_rows(rows, H, a_dtype),
        cache=LayerCache(keys, values, capacity),
        partials=aligned_zeros(partials_size(single_queries, NH, HS, capacity), np.float32),
        linear=_make_linear_workspace(config, B * T, b_dtype, a_dtype),
        dx=_rows(rows, C),
        dnormed=_rows(rows, C),
        dqkv=_rows(rows, 3 * C, a_dtype),
        dhidden=_rows(rows, H, a_dtype),
        norm_partials=aligned_zeros(layernorm_partials(rows, C), np.float32),
        logits=_rows(head_rows, int(HEAD_COLUMNS)),
        exponentials=_rows(head_rows, V, a_dtype),
        states=SoftmaxStates(
            maxima=np.zeros(states, np.float32),
            sums=np.zeros(states, np.float32),
            target_logits=np.zeros(head_rows, np.float32),
            lse=np.zeros(head_rows, np.float32),
        ),
        dlogits=_rows(head_rows, int(HEAD_COLUMNS), a_dtype),
        dlogits_t=_rows(columns, head_rows, a_dtype),
        head_panels=aligned_zeros(panels_size(head_rows, C), b_dtype),
        losses=aligned_zeros(rows, np.float32),
    )


def _make_linear_workspace(
    config: GPTConfig, M: int, b_dtype: np.dtype, a_dtype: np.dtype
) -> LinearWorkspace:
    """For the largest operands of all products with M rows; of the head a block of columns."""
    C, V = config.n_embd, min(config.vocab_size, int(HEAD_COLUMNS))
    b_shapes = [(V, C), (C, V)]
    a_shapes = []
    for shape in layer_modules(config).values():
        if len(shape) == 2:
            K, N = shape
            b_shapes += [(K, N), (M, N), (N, K)]  # w, dy, wᵀ
            a_shapes += [(K, M), (M, N)]  # xᵀ, dy
    return LinearWorkspace(
        panels=aligned_zeros(max(panels_size(*shape) for shape in b_shapes), b_dtype),
        rows=aligned_zeros(
            max(padded(rows, LANES) * row_stride(width) for rows, width in a_shapes), a_dtype
        ),
    )


def _make_scratch(config: GPTConfig, T: int, threads: int) -> np.ndarray:
    """float32 [threads, n]: the scratch of each thread."""
    HS = config.head_size
    needed = max(MATMUL_SCRATCH, attention_scratch(HS), attention_backward_scratch(T, HS))
    return thread_scratch(threads, needed)
