"""Products with weights against NumPy in float64, at sizes around every border of the tiles."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.activation import GELU
from minigpt.kernels.layout import LANES, padded, panels_size, row_stride
from minigpt.kernels.matmul import (
    ADD,
    K_BLOCK,
    NO_ACTIVATION,
    SET,
    Room,
    matmul_backward,
    matmul_forward,
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


KINDS = ["f32 · f32", "f32 · bf16", "bf16 · bf16"]


class Case:
    """x, w and a bias; as the kernel takes them, and what NumPy makes of the same values."""

    def __init__(self, rng, M, K, N, kind="f32 · f32"):
        self.sizes = M, K, N
        left, right = (np.uint16 if k == "bf16" else np.float32 for k in kind.split(" · "))
        x, w, self.bias = (
            rng.standard_normal(shape).astype(np.float32) for shape in ((M, K), (K, N), (N,))
        )
        self.x, self.w = (
            a if kind == np.float32 else bf16_to_f32(reference.bfloat16(a))
            for a, kind in ((x, left), (w, right))
        )
        self.ldx = row_stride(K)
        rows = np.zeros((padded(M, LANES), self.ldx), np.float32)
        rows[:M, :K] = self.x
        self.rows = rows.ravel() if left == np.float32 else reference.bfloat16(rows).ravel()
        self.panels = reference.panels(self.w, right)

    def run(self, run, mode=SET, activation=NO_ACTIVATION, scale=1, start=None, M=None):
        """y [M, N], in rows that lie further apart than they are long."""
        rows, K, N = self.sizes
        M = M or rows
        y = np.full((M, N + 3), np.nan, np.float32)
        if start is not None:
            y[:, :N] = start
        run(
            matmul_forward, y.reshape(-1), N + 3, self.rows, self.ldx, self.panels, self.bias,
            M, K, N, mode, activation, np.float32(scale),
        )  # fmt: skip
        assert np.isnan(y[:, N:]).all()
        return y[:, :N].copy()

    def bound(self):
        """What rounding can add up to: some units in the last place of the sum of magnitudes."""
        return 8 * np.finfo(np.float32).eps * (np.abs(self.x).astype(float) @ np.abs(self.w) + 1)


def bf16_to_f32(halves):
    return (halves.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_matmul_is_numpys(run, rng, M, K, N, kind):
    case = Case(rng, M, K, N, kind)
    truth = reference.matmul_forward(case.x.astype(np.float64), case.w, case.bias)
    assert (np.abs(case.run(run) - truth) <= case.bound()).all()


@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_matmul_adds_to_what_is_there(run, rng, M, K, N):
    case = Case(rng, M, K, N)
    start = rng.standard_normal((M, N)).astype(np.float32)
    truth = start + reference.matmul_forward(case.x.astype(np.float64), case.w, case.bias)
    assert (np.abs(case.run(run, ADD, start=start) - truth) <= case.bound()).all()


def test_activation_is_the_last_step(run, rng):
    for M in (3, 40):
        case = Case(rng, M, 20, 37)
        truth = reference.gelu_forward(case.run(run).astype(np.float64))
        active = case.run(run, activation=GELU)
        np.testing.assert_allclose(active, truth, rtol=1e-5, atol=1e-7)


def test_the_scale_is_before_the_bias_and_a_bias_may_be_absent(run, rng):
    case = Case(rng, 3, 20, 37)
    plain = case.run(run) - case.bias
    np.testing.assert_allclose(case.run(run, scale=0.5), 0.5 * plain + case.bias, atol=1e-5)
    case.bias = np.empty(0, np.float32)
    np.testing.assert_allclose(case.run(run), plain, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("M", "K", "N"), [shape for shape in SHAPES if shape[0] > 1])
def test_a_row_has_the_same_bits_alone(run, rng, M, K, N, kind):
    case = Case(rng, M, K, N, kind)
    together = case.run(run)
    for m in {0, 1, M // 2, M - 1}:
        alone = Case(rng, 1, K, N, kind)
        alone.panels, alone.bias = case.panels, case.bias
        alone.rows[: case.ldx] = case.rows[m * case.ldx : (m + 1) * case.ldx]
        assert alone.run(run).tobytes() == together[m].tobytes()


def test_bfloat16_weights_are_widened_exactly(run, rng):
    case = Case(rng, 10, 33, 50, "f32 · bf16")
    exact = Case(rng, 10, 33, 50)
    exact.rows, exact.bias = case.rows, case.bias
    exact.panels = reference.panels(case.w, np.float32)
    for rows in (10, 1):
        assert case.run(run, M=rows).tobytes() == exact.run(run, M=rows).tobytes()


def test_results_are_rounded_to_bfloat16_where_they_are_held_so(run, rng):
    case = Case(rng, 5, 20, 40)
    y = np.zeros((5, 40), np.uint16)
    run(
        matmul_forward, y.reshape(-1), 40, case.rows, case.ldx, case.panels, case.bias,
        *case.sizes, SET, NO_ACTIVATION, np.float32(1),
    )  # fmt: skip
    np.testing.assert_array_equal(y, reference.bfloat16(case.run(run)))


# how dy and xᵀ are multiplied, and how the right factors of the moment are held
ROOMS = [(np.float32, np.float32), (np.float32, np.uint16), (np.uint16, np.uint16)]


@pytest.mark.parametrize(("left", "right"), ROOMS)
@pytest.mark.parametrize(("M", "K", "N"), [(1, 1, 1), (5, 3, 2), (33, 17, 70), (100, 65, 33)])
def test_backward_is_the_twin(run, rng, M, K, N, left, right):
    """dx anew; dw and dbias added to what is there; factors as float32 or bfloat16."""
    ldx, ldy = row_stride(K), row_stride(N)
    x, dy = (
        np.zeros((padded(M, LANES), ldx), np.float32),
        np.zeros((padded(M, LANES), ldy), np.float32),
    )
    x[:M, :K], dy[:M, :N] = rng.standard_normal((M, K)), rng.standard_normal((M, N))
    w, dw = rng.standard_normal((2, K, N)).astype(np.float32)
    dbias, dx = rng.standard_normal(N).astype(np.float32), np.full_like(x, np.nan)
    before = dw.copy(), dbias.copy()
    rows = max(padded(K, LANES) * row_stride(M), padded(M, LANES) * ldy)
    room = Room(
        np.full(max(panels_size(M, N), panels_size(N, K)), 1, right), np.full(rows, 1, left)
    )
    held = reference.bfloat16(x) if left == np.uint16 else x
    run(
        matmul_backward, dx.reshape(-1), ldx, dw.reshape(-1), dbias, dy.reshape(-1), ldy,
        held.reshape(-1), ldx, w.reshape(-1), room, M, K, N,
    )  # fmt: skip
    truth = reference.matmul_backward(*(a.astype(np.float64) for a in (dy[:M, :N], x[:M, :K], w)))
    tolerance = 1e-5 if right == np.float32 else 2e-2
    after = dx[:M, :K], dw - before[0], dbias - before[1]
    for found, expected in zip(after, truth, strict=True):
        assert abs(found - expected).max() < tolerance * (1 + abs(expected).max())
    assert np.isnan(dx[:M, K:]).all()


def test_the_twin_backward_is_the_slope(rng, slopes):
    x, w, dy = (rng.standard_normal(shape) for shape in ((3, 4), (4, 2), (3, 2)))
    dx, dw, dbias = reference.matmul_backward(dy, x, w)
    loss = lambda x, w, b: (dy * reference.matmul_forward(x, w, b)).sum()  # noqa: E731
    np.testing.assert_allclose(dx, slopes(lambda x: loss(x, w, np.zeros(2)), x), atol=1e-8)
    np.testing.assert_allclose(dw, slopes(lambda w: loss(x, w, np.zeros(2)), w), atol=1e-8)
    np.testing.assert_allclose(dbias, slopes(lambda b: loss(x, w, b), np.zeros(2)), atol=1e-8)
