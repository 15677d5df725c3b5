"""Attention against its NumPy twin, through the cache, whole and in pieces."""

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
from minigpt.kernels.kv_cache import kv_cache_write
from minigpt.kernels.layout import KEY_BLOCK, padded
from minigpt.kernels.simd import BF16_PRODUCTS


class Sequence:
    """Queries, keys and values of T tokens, and a cache of two layers and three slots for them."""

    def __init__(self, rng, T, NH, HS, scale=None, dtype=np.float32):
        self.T, self.NH, self.HS, self.C = T, NH, HS, NH * HS
        self.scale = np.float32(HS**-0.5 if scale is None else scale)
        self.qkv = rng.standard_normal((T, 3 * self.C)).astype(np.float32)
        self.capacity = padded(T, KEY_BLOCK)
        size = 2 * 3 * NH * self.capacity * padded(HS)
        self.keys, self.values = (np.zeros(size, dtype) for _ in range(2))

    def read(self, run, start, end, layer=1, slot=2):
        """The result of tokens start … end − 1, after the cache got them."""
        M, ldq = end - start, 3 * self.C + 2
        qkv = np.zeros((M, ldq), np.float32)
        qkv[:, : 3 * self.C] = self.qkv[start:end]
        qkv = qkv.reshape(-1)
        slots, positions = np.full(M, slot), np.arange(start, end)
        cache = self.keys, self.values
        offset = layer, 3, self.capacity, self.NH, self.HS
        run(kv_cache_write, *cache, qkv, ldq, slots, positions, M, *offset)
        blocks = np.array(
            [(slot, r, min(QUERY_BLOCK, M - r), start + r) for r in range(0, M, QUERY_BLOCK)]
        ).ravel()
        partials = np.empty(partials_size(M, self.NH, self.HS, self.capacity), np.float32)
        ldo = self.C + 5
        out = np.full((M, ldo), np.nan, np.float32)
        norms = np.full(M * self.NH, np.nan, np.float32)
        run(
            attention_forward, out.reshape(-1), ldo, norms, qkv, ldq, *cache, partials,
            blocks, blocks.size // 4, M, *offset, self.scale,
        )  # fmt: skip
        assert np.isnan(out[:, self.C :]).all()
        assert np.isfinite(norms).all()
        return out[:, : self.C].copy()

    def truth(self):
        """The twin's result, [T, C]."""
        q, k, v = np.split(self.qkv.astype(np.float64), 3, axis=1)
        heads = [slice(h * self.HS, (h + 1) * self.HS) for h in range(self.NH)]
        return np.hstack(
            [reference.attention_forward(q[:, h], k[:, h], v[:, h], self.scale) for h in heads]
        )


@pytest.mark.parametrize(
    ("T", "NH", "HS"),
    [(1, 1, 1), (2, 3, 5), (16, 1, 16), (63, 2, 17), (64, 1, 64), (65, 1, 80), (300, 2, 33)],
)
def test_is_the_twin(run, rng, T, NH, HS):
    sequence = Sequence(rng, T, NH, HS)
    np.testing.assert_allclose(sequence.read(run, 0, T), sequence.truth(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_pieces_have_the_bits_of_the_whole(run, rng, dtype):
    """Single tokens, too, whose blocks of keys are spread over the threads."""
    T = 2 * KEY_BLOCK + 30
    sequence, again = (Sequence(rng, T, 2, 20, dtype=dtype) for _ in range(2))
    whole = sequence.read(run, 0, T)
    again.qkv = sequence.qkv
    borders = [
        0,
        1,
        2,
        50,
        KEY_BLOCK - 1,
        KEY_BLOCK,
        KEY_BLOCK + 1,
        KEY_BLOCK + 2,
        2 * KEY_BLOCK,
        T - 1,
        T,
    ]
    pieces = [again.read(run, a, b) for a, b in pairwise(borders)]
    assert np.vstack(pieces).tobytes() == whole.tobytes()


def test_bfloat16_keys_and_values(run, rng):
    sequence = Sequence(rng, 300, 2, 33, dtype=np.uint16)
    q, kv = np.split(sequence.qkv, [sequence.C], axis=1)
    halves = reference.bfloat16(kv)
    wide = (halves.astype(np.uint32) << 16).view(np.float32)
    sequence.qkv = np.hstack([q, wide])  # so that the twin sees the same keys and values
    limit = 1e-2 if BF16_PRODUCTS else 2e-6
    result = sequence.read(run, 0, 300)
    np.testing.assert_allclose(result, sequence.truth(), rtol=2e-5, atol=limit)


def test_large_scores_do_not_overflow(run, rng):
    sequence = Sequence(rng, 70, 1, 8, scale=300)
    result = sequence.read(run, 0, 70)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result, sequence.truth(), rtol=1e-3, atol=1e-3)


def test_other_slots_and_layers_are_left_alone(run, rng):
    sequence = Sequence(rng, 20, 2, 5)
    sequence.read(run, 0, 20, layer=0, slot=1)
    keys = sequence.keys.reshape(2, 3, -1)
    values = sequence.values.reshape(2, 3, -1)
    for array in (keys, values):
        touched = array.any(axis=-1)
        assert touched[0, 1]
        assert touched.sum() == 1


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize(
    ("B", "T", "NH", "HS"), [(1, 1, 1, 1), (2, 5, 1, 3), (2, 64, 2, 32), (1, 150, 3, 33)]
)
def test_backward_is_the_twin(run, rng, B, T, NH, HS, dtype):
    C, scale = NH * HS, np.float32(HS**-0.5)
    M, ldq, ld = B * T, 3 * C + 2, C + 1
    qkv, norms = (
        rng.standard_normal((M, ldq)).astype(np.float32),
        np.full(M * NH, np.nan, np.float32),
    )
    out, dout = np.zeros((M, ld), np.float32), rng.standard_normal((M, ld)).astype(np.float32)
    capacity = padded(T, KEY_BLOCK)
    keys, values = (np.zeros(B * NH * capacity * padded(HS), dtype) for _ in range(2))
    slots, positions = np.repeat(np.arange(B), T), np.tile(np.arange(T), B)
    offset = 0, B, capacity, NH, HS
    run(kv_cache_write, keys, values, qkv.reshape(-1), ldq, slots, positions, M, *offset)
    blocks = np.array(
        [
            (b, b * T + t, min(QUERY_BLOCK, T - t), t)
            for b in range(B)
            for t in range(0, T, QUERY_BLOCK)
        ]
    ).ravel()
    run(
        attention_forward, out.reshape(-1), ld, norms, qkv.reshape(-1), ldq, keys, values,
        np.empty(partials_size(M, NH, HS, capacity), np.float32), blocks, blocks.size // 4, M,
        *offset, scale,
    )  # fmt: skip
    dqkv = np.full((M, ldq), np.nan, np.float32)
    run(
        attention_backward, dqkv.reshape(-1), ldq, dout.ravel(), ld, qkv.ravel(), ldq,
        out.ravel(), ld, norms, B, T, NH, HS, scale, np.empty(0, dtype),
    )  # fmt: skip
    tolerance = 2e-5 if dtype == np.float32 else 3e-2
    for b in range(B):
        for h in range(NH):
            rows, heads = slice(b * T, (b + 1) * T), [n * C + h * HS for n in range(3)]
            q, k, v = (qkv[rows, c : c + HS].astype(np.float64) for c in heads)
            truth = reference.attention_backward(dout[rows, h * HS : (h + 1) * HS], q, k, v, scale)
            for c, expected in zip(heads, truth, strict=True):
                error = abs(dqkv[rows, c : c + HS] - expected).max()
                assert error < tolerance * (1 + abs(expected).max())
    assert np.isnan(dqkv[:, 3 * C :]).all()


def test_the_twin_backward_is_the_slope(rng, slopes):
    q, k, v, do = rng.standard_normal((4, 6, 3))
    loss = lambda q, k, v: (do * reference.attention_forward(q, k, v, 0.7)).sum()  # noqa: E731
    dq, dk, dv = reference.attention_backward(do, q, k, v, 0.7)
    np.testing.assert_allclose(dq, slopes(lambda q: loss(q, k, v), q), atol=1e-8)
    np.testing.assert_allclose(dk, slopes(lambda k: loss(q, k, v), k), atol=1e-8)
    np.testing.assert_allclose(dv, slopes(lambda v: loss(q, k, v), v), atol=1e-8)
