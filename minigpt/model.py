"""The forward pass: what a GPT computes, as one compiled function over the kernels.

Tokens of all sequences stand below each other as rows of one matrix, whatever sequence they are
of and however long it is; only attention looks at which row belongs to whom. A prompt, a batch
of prompts of unequal length and one token of each of several sequences are the same to it.

    x = (wte[ids] + wpe[positions]) · scale
    for each layer:
        x += c_proj · attention(c_attn · ln_1(x))
        x += c_proj · activation(c_fc · ln_2(x))
    logits = lm_head · ln_f(x)                  (of the rows where they are wanted)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .cache import State
from .config import GPTConfig
from .errors import InputError
from .kernels.activation import GELU, GELU_TANH, RELU, SILU
from .kernels.attention import (
    QUERIES,
    attention_forward,
    attention_scratch,
    cache_write,
    partials_size,
)
from .kernels.codes import Codes, Rows, make_rows
from .kernels.embedding import embedding_forward, gather_forward
from .kernels.jit import entry
from .kernels.layernorm import layernorm_forward
from .kernels.layout import BESIDE, HELD, LANES, padded, row_stride, scratch_for, zeros
from .kernels.matmul import (
    ADD,
    MATMUL_SCRATCH,
    NO_ACTIVATION,
    SET,
    left_factor,
    matmul_forward,
    matrix_at,
)
from .kernels.simd import BF16_PRODUCTS, array_at
from .kernels.team import Team
from .weights import HEAD, WHOLE, Weights, layer_shapes

ROWS = 512  # tokens that pass through the layers together; more are cut into such chunks
_ROWS_AT_ONCE = 16  # up to here all layers are one compiled call, else each is one

_ACTIVATIONS = {
    "gelu": GELU,
    "gelu_new": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "gelu_fast": GELU_TANH,
    "relu": RELU,
    "silu": SILU,
}


class Sizes(NamedTuple):
    """The numbers of the config that the compiled function needs."""

    L: int
    C: int
    NH: int
    HS: int
    H: int
    V: int
    n_positions: int
    activation: int
    eps: np.float32
    embedding_scale: np.float32
    logit_scale: np.float32


class Table(NamedTuple):
    """Where the weights lie.

    layers      [L] records of addresses, a field for each tensor of a layer; and `…_scales` for
                those that have some, else 0
    ends        [1] record of the addresses of wte, wpe, ln_f and the head, and `…_scales`
    matrix      of the type of what is multiplied with: an empty array, or empty Codes
    plain       an empty array of wpe's type
    vector      an empty array of the vectors' type
    """

    layers: np.ndarray
    ends: np.ndarray
    matrix: np.ndarray | Codes
    plain: np.ndarray
    vector: np.ndarray


class Buffers(NamedTuple):
    """Room for the activations of some tokens, flat, rows row_stride(…) apart.

    x, qkv                    float32 [rows, C], [rows, 3C]
    normed, attended, hidden  [rows, C], [rows, C], [rows, H]: what weights are multiplied with;
                              bfloat16 (uint16) where the processor multiplies that, else float32
    partials                  float32, for attention
    whole                     Rows: what weights of whole numbers are multiplied with
    """

    x: np.ndarray
    qkv: np.ndarray
    normed: np.ndarray
    attended: np.ndarray
    hidden: np.ndarray
    partials: np.ndarray
    whole: Rows


class Step(NamedTuple):
    """The tokens of one pass.

    ids, positions, slots  int64 [M]
    blocks                 int64 [4 · n]: runs of tokens of one sequence, as attention takes them
    wanted                 int64 [n]: the rows whose logits are wanted
    """

    ids: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    blocks: np.ndarray
    wanted: np.ndarray


class Cache(NamedTuple):
    """The State's arrays: keys and values, flat, and their sizes."""

    keys: np.ndarray
    values: np.ndarray
    slots: int
    capacity: int


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
    matrix: np.ndarray | Codes = np.empty(0, HELD[weights.dtype])
    if weights.dtype in WHOLE:
        matrix = Codes(matrix, np.empty(0, np.uint16))
    plain, vector = np.empty(0, BESIDE[weights.dtype]), np.empty(0, np.float32)
    return Table(np.concatenate(layers), _addresses(weights, ends), matrix, plain, vector)


def _addresses(weights: Weights, names: dict[str, str]) -> np.ndarray:
    """[1] record of the addresses of some tensors, {field: name}, and of their scales."""
    address = {_field(f): weights.tensors[name].ctypes.data for f, name in names.items()}
    for field, name in names.items():
        has_scales = name in weights.scales
        scales = weights.scales[name].ctypes.data if has_scales else 0
        address[_field(field) + "_scales"] = scales
    return np.array([tuple(address.values())], dtype=[(field, np.uint64) for field in address])


def make_sizes(config: GPTConfig) -> Sizes:
    """The numbers that the compiled function needs."""
    return Sizes(
        L=config.n_layer,
        C=config.n_embd,
        NH=config.n_head,
        HS=config.head_size,
        H=config.n_inner,
        V=config.vocab_size,
        n_positions=config.n_positions,
        activation=_ACTIVATIONS[config.activation_function],
        eps=np.float32(config.layer_norm_epsilon),
        embedding_scale=np.float32(config.mup_embeddings_scale),
        logit_scale=np.float32(config.mup_output_alpha * config.mup_width_scale),
    )


def attention_scales(config: GPTConfig) -> np.ndarray:
    """float32 [L]: what the scores of each layer are multiplied with."""
    scale = 1.0
    if config.scale_attn_weights:
        power = 1.0 if config.mup_scale_qk_dot_by_d else 0.5
        scale = config.head_size**-power
    layers = np.arange(config.n_layer)
    by_layer = 1 / (layers + 1) if config.scale_attn_by_inverse_layer_idx else 1 + 0 * layers
    return (scale * by_layer).astype(np.float32)


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
        whole=make_rows(max(rows, threads), max(C, H) if dtype in WHOLE else 0),
    )


def make_scratch(config: GPTConfig, threads: int) -> np.ndarray:
    """float32 [threads, n]: what each thread needs for itself."""
    needed = max(MATMUL_SCRATCH, attention_scratch(config.head_size))
    return scratch_for(threads, needed)


# ---- the compiled part ----------------------------------------------------------------------


@entry
def _layers(team, first, last, sizes, table, scales, cache, buffers, step, logits):
    """Layers first … last − 1; before the first the embedding, after the last the logits.

    logits  float32 [wanted rows · V], written when the last layer is among them
    """
    C, NH, HS, H, V = sizes.C, sizes.NH, sizes.HS, sizes.H, sizes.V
    x, qkv, normed, attended, hidden, partials, whole = buffers
    M = step.ids.size
    matrix, vector = table.matrix, table.vector
    ends = table.ends[0]
    ld, ld_qkv, ld_hidden = row_stride(C), row_stride(3 * C), row_stride(H)
    one, no_bias, no_norms = np.float32(1), vector, vector

    if first == 0:
        wte = matrix_at(ends.wte_weight, ends.wte_weight_scales, C, V, matrix)
        wpe = array_at(ends.wpe_weight, sizes.n_positions * C, table.plain)
        embedding_forward(
            team, x, ld, step.ids, step.positions, wte, wpe, M, C, sizes.embedding_scale
        )  # fmt: skip

    for n in range(first, last):
        layer = table.layers[n]
        ln_1 = array_at(layer.ln_1_weight, C, vector)
        ln_1_bias = array_at(layer.ln_1_bias, C, vector)
        c_attn = matrix_at(
            layer.attn_c_attn_weight, layer.attn_c_attn_weight_scales, C, 3 * C, matrix
        )  # fmt: skip
        c_attn_bias = array_at(layer.attn_c_attn_bias, 3 * C, vector)
        attn_c_proj = matrix_at(
            layer.attn_c_proj_weight, layer.attn_c_proj_weight_scales, C, C, matrix
        )  # fmt: skip
        attn_c_proj_bias = array_at(layer.attn_c_proj_bias, C, vector)
        ln_2 = array_at(layer.ln_2_weight, C, vector)
        ln_2_bias = array_at(layer.ln_2_bias, C, vector)
        c_fc = matrix_at(
            layer.mlp_c_fc_weight, layer.mlp_c_fc_weight_scales, C, H, matrix
        )  # fmt: skip
        c_fc_bias = array_at(layer.mlp_c_fc_bias, H, vector)
        mlp_c_proj = matrix_at(
            layer.mlp_c_proj_weight, layer.mlp_c_proj_weight_scales, H, C, matrix
        )  # fmt: skip
        mlp_c_proj_bias = array_at(layer.mlp_c_proj_bias, C, vector)

        # x += c_proj · attention(c_attn · ln_1(x))
        layernorm_forward(team, normed, x, ld, ln_1, ln_1_bias, M, C, sizes.eps)
        left, ld_left = left_factor(team, whole, normed, ld, c_attn, M, C)
        matmul_forward(
            team, qkv, ld_qkv, left, ld_left, c_attn, c_attn_bias, M, C, 3 * C,
            SET, NO_ACTIVATION, one,
        )  # fmt: skip
        cache_write(
            team, cache.keys, cache.values, qkv, ld_qkv, step.slots, step.positions, M,
            n, cache.slots, cache.capacity, NH, HS,
        )  # fmt: skip
        attention_forward(
            team, attended, ld, no_norms, qkv, ld_qkv, cache.keys, cache.values, partials,
            step.blocks, step.blocks.size // 4, M,
            n, cache.slots, cache.capacity, NH, HS, scales[n],
        )  # fmt: skip
        left, ld_left = left_factor(team, whole, attended, ld, attn_c_proj, M, C)
        matmul_forward(
            team, x, ld, left, ld_left, attn_c_proj, attn_c_proj_bias, M, C, C,
            ADD, NO_ACTIVATION, one,
        )  # fmt: skip

        # x += c_proj · activation(c_fc · ln_2(x))
        layernorm_forward(team, normed, x, ld, ln_2, ln_2_bias, M, C, sizes.eps)
        left, ld_left = left_factor(team, whole, normed, ld, c_fc, M, C)
        matmul_forward(
            team, hidden, ld_hidden, left, ld_left, c_fc, c_fc_bias, M, C, H,
            SET, sizes.activation, one,
        )  # fmt: skip
        left, ld_left = left_factor(team, whole, hidden, ld_hidden, mlp_c_proj, M, H)
        matmul_forward(
            team, x, ld, left, ld_left, mlp_c_proj, mlp_c_proj_bias, M, H, C,
            ADD, NO_ACTIVATION, one,
        )  # fmt: skip

    if last == sizes.L and step.wanted.size:
        ln_f = array_at(ends.ln_f_weight, C, vector)
        ln_f_bias = array_at(ends.ln_f_bias, C, vector)
        head = matrix_at(ends.head, ends.head_scales, C, V, matrix)
        N = step.wanted.size
        gather_forward(team, qkv, x, ld, step.wanted, N, C)
        layernorm_forward(team, normed, qkv, ld, ln_f, ln_f_bias, N, C, sizes.eps)
        left, ld_left = left_factor(team, whole, normed, ld, head, N, C)
        matmul_forward(
            team, logits, V, left, ld_left, head, no_bias, N, C, V,
            SET, NO_ACTIVATION, sizes.logit_scale,
        )  # fmt: skip


# ---- the part in Python ---------------------------------------------------------------------


class Engine:
    """A model made ready to run: what stays the same from one pass to the next."""

    def __init__(self, config: GPTConfig, weights: Weights, threads: int) -> None:
        self.config = config
        self.weights = weights
        self.threads = threads
        self._team = Team(threads, keep=weights)
        self._sizes = make_sizes(config)
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
                attention_blocks(owners[rows], positions[rows]),
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


def attention_blocks(owners: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Runs of rows of one sequence, cut to at most QUERIES rows, as attention_forward takes them.

    owners, positions  int64 [M]
    Returns int64 [4 · n]: slot, first row, rows, first position of each.
    """
    M = len(owners)
    borders = np.flatnonzero(np.diff(owners)) + 1
    blocks = []
    for begin, end in zip([0, *borders], [*borders, M], strict=True):
        for row in range(begin, end, QUERIES):
            blocks += [owners[row], row, min(QUERIES, end - row), positions[row]]
    return np.array(blocks, np.int64)
