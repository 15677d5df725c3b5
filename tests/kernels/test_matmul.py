"""Products of matrices against NumPy in float64, at sizes around every border of the tiles."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.activation import GELU
from minigpt.kernels.matmul import (
    ADD,
    K_BLOCK,
    NO_ACTIVATION,
    SET,
    matmul_forward,
    matmul_transposed_forward,
)

SHAPES = [
    (1, 1, 1),
    (1, 5, 3),
    (2, 17, 33),
    (8, 9, 257),
    (9, 16, 16),
    (13, K_BLOCK + 1, 70),
    (14, 1, 1),
    (97, 40, 65),
    (100, 2 * K_BLOCK, 64),
    (513, 8, 31),
]


def bound(x, w):
    """What rounding can add up to: a few units in the last place of the sum of magnitudes."""
    return 8 * np.finfo(np.float32).eps * (np.abs(x).astype(np.float64) @ np.abs(w) + 1)


def case(rng, M, K, N):
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((M, K), (K, N), (N,))]


@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_matmul_is_numpys(run, rng, M, K, N):
    x, w, bias = case(rng, M, K, N)
    y = np.full(M * N, np.nan, np.float32)
    run(matmul_forward, y, x.ravel(), w.ravel(), bias, M, K, N, SET, NO_ACTIVATION)
    truth = reference.matmul(x.astype(np.float64), w, bias)
    assert (np.abs(y.reshape(M, N) - truth) <= bound(x, w)).all()


@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_matmul_adds_to_what_is_there(run, rng, M, K, N):
    x, w, bias = case(rng, M, K, N)
    start = rng.standard_normal((M, N)).astype(np.float32)
    y = start.copy().ravel()
    run(matmul_forward, y, x.ravel(), w.ravel(), bias, M, K, N, ADD, NO_ACTIVATION)
    truth = start + reference.matmul(x.astype(np.float64), w, bias)
    assert (np.abs(y.reshape(M, N) - truth) <= bound(x, w)).all()


def test_activation_is_the_last_step(run, rng):
    for M in (3, 40):
        x, w, bias = case(rng, M, 20, 37)
        plain, active = np.empty(M * 37, np.float32), np.empty(M * 37, np.float32)
        run(matmul_forward, plain, x.ravel(), w.ravel(), bias, M, 20, 37, SET, NO_ACTIVATION)
        run(matmul_forward, active, x.ravel(), w.ravel(), bias, M, 20, 37, SET, GELU)
        truth = reference.gelu(plain.astype(np.float64))
        np.testing.assert_allclose(active, truth, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_transposed_is_numpys(run, rng, M, K, N):
    x, w, _ = case(rng, M, K, N)
    y = np.full(M * N, np.nan, np.float32)
    wt = np.ascontiguousarray(w.T).ravel()
    run(matmul_transposed_forward, y, x.ravel(), wt, M, K, N, np.float32(0.5))
    truth = reference.matmul_transposed(x.astype(np.float64), w.T, 0.5)
    assert (np.abs(y.reshape(M, N) - truth) <= bound(x, w)).all()


@pytest.mark.parametrize(("M", "K", "N"), [shape for shape in SHAPES if shape[0] > 1])
def test_a_row_has_the_same_bits_alone(run, rng, M, K, N):
    x, w, bias = case(rng, M, K, N)
    together, alone = np.empty(M * N, np.float32), np.empty((M, N), np.float32)
    run(matmul_forward, together, x.ravel(), w.ravel(), bias, M, K, N, SET, NO_ACTIVATION)
    for m in range(M):
        run(matmul_forward, alone[m], x[m], w.ravel(), bias, 1, K, N, SET, NO_ACTIVATION)
    assert together.tobytes() == alone.tobytes()

    wt = np.ascontiguousarray(w.T).ravel()
    run(matmul_transposed_forward, together, x.ravel(), wt, M, K, N, np.float32(1))
    for m in range(M):
        run(matmul_transposed_forward, alone[m], x[m], wt, 1, K, N, np.float32(1))
    assert together.tobytes() == alone.tobytes()


def test_bfloat16_weights_are_widened_exactly(run, rng):
    M, K, N = 10, 33, 50
    x, w, bias = case(rng, M, K, N)
    halves = (w.view(np.uint32) >> 16).astype(np.uint16)
    wide = (halves.astype(np.uint32) << 16).view(np.float32)
    for rows in (M, 2):
        a, b = np.empty(rows * N, np.float32), np.empty(rows * N, np.float32)
        few = x[:rows].ravel()
        run(matmul_forward, a, few, halves.ravel(), bias, rows, K, N, SET, NO_ACTIVATION)
        run(matmul_forward, b, few, wide.ravel(), bias, rows, K, N, SET, NO_ACTIVATION)
        assert a.tobytes() == b.tobytes()
        run(matmul_transposed_forward, a, few, halves.ravel(), rows, K, N, np.float32(1))
        run(matmul_transposed_forward, b, few, wide.ravel(), rows, K, N, np.float32(1))
        assert a.tobytes() == b.tobytes()


def test_nothing_beyond_the_result_is_written(run, rng):
    M, K, N = 13, 20, 37
    x, w, bias = case(rng, M, K, N)
    y = np.full(M * N + 64, 7, np.float32)
    run(matmul_forward, y[: M * N], x.ravel(), w.ravel(), bias, M, K, N, SET, NO_ACTIVATION)
    assert (y[M * N :] == 7).all()
