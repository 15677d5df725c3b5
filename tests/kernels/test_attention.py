"""Attention against reference.py, through the KV cache, with the same bits however tokens come."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.attention import (
    QUERY_BLOCK,
    attention_backward,
    attention_forward,
    partials_size,
)
from minigpt.kernels.kv_cache import Heads, LayerCache, kv_cache_write
from minigpt.kernels.layout import KEY_BLOCK, bf16_to_f32, f32_to_bf16, padded
from minigpt.kernels.simd import BF16_PRODUCTS
from minigpt.kernels.view import View

pytestmark = pytest.mark.kernel

DTYPES = [np.float32, pytest.param(np.uint16, marks=pytest.mark.amx)]  # of keys and values

SLOTS = 3


class Sequence:
    """Queries, keys and values of T tokens, and a cache of three slots for them."""

    def __init__(self, rng, T, NH, HS, scale=None, dtype=np.float32):
        self.T, self.C = T, NH * HS
        self.heads = Heads(NH, HS, np.float32(HS**-0.5 if scale is None else scale))
        self.qkv = rng.standard_normal((T, 3 * self.C)).astype(np.float32)
        capacity = padded(T, KEY_BLOCK)
        size = SLOTS * NH * capacity * padded(HS)
        self.cache = LayerCache(np.zeros(size, dtype), np.zeros(size, dtype), capacity)

    def write(self, run, start, end, slot=2):
        """Write tokens start … end − 1 to the cache; returns the View of their rows of qkv."""
        M, ldq = end - start, 3 * self.C + 2
        rows = np.zeros((M, ldq), np.float32)
        rows[:, : 3 * self.C] = self.qkv[start:end]
        qkv = View(rows.reshape(-1), M, 3 * self.C, ldq)
        slots, positions = np.full(M, slot), np.arange(start, end)
        run(kv_cache_write, self.cache, self.heads, qkv, slots, positions)
        return qkv

    def read(self, run, start, end, slot=2):
        """The output of tokens start … end − 1, [n, C], after the cache got them."""
        M = end - start
        qkv = self.write(run, start, end, slot)
        blocks = np.array(
            [(slot, r, min(QUERY_BLOCK, M - r), start + r) for r in range(0, M, QUERY_BLOCK)]
        ).ravel()
        NH, HS, _ = self.heads
        partials = np.empty(partials_size(M, NH, HS, self.cache.capacity), np.float32)
        ldo = self.C + 5
        out, lse = np.full((M, ldo), np.nan, np.float32), np.full(M * NH, np.nan, np.float32)
        run(
            attention_forward, View(out.reshape(-1), M, self.C, ldo), lse, qkv, self.cache,
            self.heads, blocks, partials,
        )  # fmt: skip
        assert np.isnan(out[:, self.C :]).all()
        np.testing.assert_allclose(lse.reshape(M, NH), self.lse()[start:end], rtol=1e-2, atol=2e-2)
        return out[:, : self.C].copy()

    def split(self):
        """q, k and v of each head, float64 [T, HS]."""
        NH, HS, _ = self.heads
        qkv = self.qkv.astype(np.float64).reshape(self.T, 3, NH, HS)
        return [qkv[:, :, h].swapaxes(0, 1) for h in range(NH)]

    def expected(self):
        """The output of reference.py, [T, C]."""
        scale = self.heads.scale
        return np.hstack([reference.attention_forward(q, k, v, scale) for q, k, v in self.split()])

    def lse(self):
        """The logarithm of the denominator of each softmax, [T, NH]."""
        scores = [self.heads.scale * (q @ k.T) for q, k, _ in self.split()]
        causal = np.tril(np.ones((self.T, self.T), bool))
        return np.stack(
            [np.logaddexp.reduce(np.where(causal, s, -np.inf), -1) for s in scores], axis=1
        )


@pytest.mark.parametrize(
    ("T", "NH", "HS"),
    [(1, 1, 1), (2, 3, 5), (16, 1, 16), (63, 2, 17), (64, 1, 64), (65, 1, 80), (300, 2, 33)],
)
def test_forward_is_reference(run, rng, T, NH, HS):
    sequence = Sequence(rng, T, NH, HS)
    result = sequence.read(run, 0, T)
    np.testing.assert_allclose(result, sequence.expected(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.slow
def test_a_prompt_in_parts_has_the_bits_of_a_prompt_at_once(run, rng, dtype):
    """Also parts of one token, whose key blocks are tasks of their own."""
    T = 2 * KEY_BLOCK + 30
    sequence, in_parts = (Sequence(rng, T, 2, 20, dtype=dtype) for _ in range(2))
    at_once = sequence.read(run, 0, T)
    in_parts.qkv = sequence.qkv
    borders = [0, 1, 2, 50, *range(KEY_BLOCK - 1, KEY_BLOCK + 3), 2 * KEY_BLOCK, T - 1, T]
    parts = [in_parts.read(run, a, b) for a, b in pairwise(borders)]
    assert np.vstack(parts).tobytes() == at_once.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_single_queries_of_several_sequences_have_the_bits_of_one(run, rng, dtype):
    """One long sequence is cut into tasks by its blocks of keys, many queries and heads are not."""
    T, NH = KEY_BLOCK + 37, 40
    sequence = Sequence(rng, T, NH, 3, dtype=dtype)
    for slot in range(SLOTS):
        sequence.write(run, 0, T, slot)
    alone = sequence.read(run, T - 1, T)
    rows = np.repeat(sequence.qkv[-1:], SLOTS, axis=0)
    out = np.empty((SLOTS, sequence.C), np.float32)
    run(
        attention_forward, View(out.reshape(-1), SLOTS, sequence.C, sequence.C),
        np.empty(0, np.float32), View(rows.reshape(-1), SLOTS, 3 * sequence.C, 3 * sequence.C),
        sequence.cache, sequence.heads,
        np.array([(slot, slot, 1, T - 1) for slot in range(SLOTS)]).ravel(),
        np.empty(partials_size(SLOTS, NH, 3, sequence.cache.capacity), np.float32),
    )  # fmt: skip
    assert [row.tobytes() for row in out] == [alone.tobytes()] * SLOTS


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_after_a_query_are_not_used(run, rng, dtype):
    """Not even NaN, in a prompt and token by token; their values, which e = 0 multiplies, are."""
    T, left = KEY_BLOCK + 70, KEY_BLOCK + 37
    sequence, other = (Sequence(rng, T, 2, 20, dtype=dtype) for _ in range(2))
    expected = sequence.read(run, 0, left)
    other.qkv[:, other.C : 2 * other.C] = np.nan
    other.write(run, 0, T)
    other.qkv = sequence.qkv
    result = np.vstack([other.read(run, a, b) for a, b in pairwise((0, 50, 51, left - 1, left))])
    assert result.tobytes() == expected.tobytes()


@pytest.mark.amx
def test_bfloat16_keys_and_values(run, rng):
    sequence = Sequence(rng, 300, 2, 33, dtype=np.uint16)
    q, kv = np.split(sequence.qkv, [sequence.C], axis=1)
    # reference.py then reads the keys and values that the cache has
    sequence.qkv = np.hstack([q, bf16_to_f32(f32_to_bf16(kv))])
    atol = 1e-2 if BF16_PRODUCTS else 2e-6
    result = sequence.read(run, 0, 300)
    np.testing.assert_allclose(result, sequence.expected(), rtol=2e-5, atol=atol)


def test_large_scores_do_not_overflow(run, rng):
    sequence = Sequence(rng, 70, 1, 8, scale=300)
    result = sequence.read(run, 0, 70)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result, sequence.expected(), rtol=1e-3, atol=1e-3)


def test_other_slots_do_not_change(run, rng):
    sequence = Sequence(rng, 20, 2, 5)
    sequence.read(run, 0, 20, slot=1)
    for array in (sequence.cache.keys, sequence.cache.values):
        assert array.reshape(SLOTS, -1).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("B", "T", "NH", "HS"), [(1, 1, 1, 1), (2, 5, 1, 3), (2, 64, 2, 32), (1, 150, 3, 33)]
)
def test_backward_is_reference(run, rng, B, T, NH, HS, dtype):
    C, M = NH * HS, B * T
    ldq, ld = 3 * C + 2, C + 1
    heads = Heads(NH, HS, np.float32(HS**-0.5))
    qkv, lse = (
        rng.standard_normal((M, ldq)).astype(np.float32),
        np.full(M * NH, np.nan, np.float32),
    )
    out, dout = np.zeros((M, ld), np.float32), rng.standard_normal((M, ld)).astype(np.float32)
    capacity = padded(T, KEY_BLOCK)
    keys, values = (np.zeros(B * NH * capacity * padded(HS), dtype) for _ in range(2))
    cache = LayerCache(keys, values, capacity)
    slots, positions = np.repeat(np.arange(B), T), np.tile(np.arange(T), B)
    qkv_view, out_view = View(qkv.reshape(-1), M, 3 * C, ldq), View(out.reshape(-1), M, C, ld)
    run(kv_cache_write, cache, heads, qkv_view, slots, positions)
    blocks = np.array(
        [
            (b, b * T + t, min(QUERY_BLOCK, T - t), t)
            for b in range(B)
            for t in range(0, T, QUERY_BLOCK)
        ]
    ).ravel()
    partials = np.empty(partials_size(M, NH, HS, capacity), np.float32)
    run(attention_forward, out_view, lse, qkv_view, cache, heads, blocks, partials)
    dqkv = np.full((M, ldq), np.nan, np.float32)
    run(
        attention_backward, View(dqkv.reshape(-1), M, 3 * C, ldq), View(dout.ravel(), M, C, ld),
        qkv_view, out_view, lse, heads, T, np.empty(0, dtype),
    )  # fmt: skip
    tolerance = 2e-5 if dtype == np.float32 else 3e-2
    for b in range(B):
        for h in range(NH):
            rows, columns = slice(b * T, (b + 1) * T), [n * C + h * HS for n in range(3)]
            q, k, v = (qkv[rows, c : c + HS].astype(np.float64) for c in columns)
            do = dout[rows, h * HS : (h + 1) * HS]
            expected = reference.attention_backward(do, q, k, v, heads.scale)
            for c, gradient in zip(columns, expected, strict=True):
                error = abs(dqkv[rows, c : c + HS] - gradient).max()
                assert error < tolerance * (1 + abs(gradient).max())
    assert np.isnan(dqkv[:, 3 * C :]).all()


def test_reference_backward_is_the_derivative(rng, derivatives):
    q, k, v, do = rng.standard_normal((4, 6, 3))
    loss = lambda q, k, v: (do * reference.attention_forward(q, k, v, 0.7)).sum()  # noqa: E731
    dq, dk, dv = reference.attention_backward(do, q, k, v, 0.7)
    np.testing.assert_allclose(dq, derivatives(lambda q: loss(q, k, v), q), atol=1e-8)
    np.testing.assert_allclose(dk, derivatives(lambda k: loss(q, k, v), k), atol=1e-8)
    np.testing.assert_allclose(dv, derivatives(lambda v: loss(q, k, v), v), atol=1e-8)
