"""Attention against its NumPy twin, through the cache, whole and in pieces."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.attention import (
    QUERIES,
    attention_forward,
    cache_write,
)
from minigpt.kernels.layout import KEYS, padded


class Sequence:
    """Queries, keys and values of T tokens, and a cache of two layers and three slots for them."""

    def __init__(self, rng, T, NH, HS, scale=None):
        self.T, self.NH, self.HS, self.C = T, NH, HS, NH * HS
        self.scale = np.float32(HS**-0.5 if scale is None else scale)
        self.qkv = rng.standard_normal((T, 3 * self.C)).astype(np.float32)
        self.capacity = -(-T // KEYS) * KEYS
        self.keys = np.zeros(2 * 3 * NH * self.capacity * HS, np.float32)
        self.values = np.zeros(2 * 3 * NH * self.capacity * padded(HS), np.float32)

    def read(self, run, start, end, layer=1, slot=2):
        """The result of tokens start … end − 1, after the cache got them."""
        M, qkv = end - start, self.qkv[start:end].ravel()
        slots, positions = np.full(M, slot), np.arange(start, end)
        cache = self.keys, self.values
        place = layer, 3, self.capacity, self.NH, self.HS
        run(cache_write, *cache, qkv, slots, positions, M, *place)
        blocks = np.array(
            [(slot, r, min(QUERIES, M - r), start + r) for r in range(0, M, QUERIES)]
        ).ravel()
        out = np.full(M * self.C, np.nan, np.float32)
        run(attention_forward, out, qkv, *cache, blocks, blocks.size // 4, *place, self.scale)
        return out.reshape(M, self.C)

    def truth(self):
        """The twin's result, [T, C]."""
        q, k, v = np.split(self.qkv.astype(np.float64), 3, axis=1)
        heads = [slice(h * self.HS, (h + 1) * self.HS) for h in range(self.NH)]
        return np.hstack(
            [reference.attention(q[:, h], k[:, h], v[:, h], self.scale) for h in heads]
        )


@pytest.mark.parametrize(
    ("T", "NH", "HS"),
    [(1, 1, 1), (2, 3, 5), (16, 1, 16), (63, 2, 17), (64, 1, 64), (65, 1, 80), (150, 2, 33)],
)
def test_is_the_twin(run, rng, T, NH, HS):
    sequence = Sequence(rng, T, NH, HS)
    np.testing.assert_allclose(sequence.read(run, 0, T), sequence.truth(), rtol=2e-5, atol=2e-6)


def test_pieces_have_the_bits_of_the_whole(run, rng):
    sequence = Sequence(rng, 150, 2, 20)
    whole = sequence.read(run, 0, 150)
    again = Sequence(rng, 150, 2, 20)
    again.qkv = sequence.qkv
    borders = [0, 1, 2, 50, 64, 65, 149, 150]
    pieces = [again.read(run, a, b) for a, b in pairwise(borders)]
    assert np.vstack(pieces).tobytes() == whole.tobytes()


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
