"""Linear layers against NumPy in float64, at sizes around every border of the tiles."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.activation import GELU
from minigpt.kernels.jit import jit
from minigpt.kernels.layout import LANES, bf16_to_f32, f32_to_bf16, padded, panels_size, row_stride
from minigpt.kernels.matmul import (
    ADD,
    K_BLOCK,
    NO_ACTIVATION,
    SET,
    LinearWorkspace,
    PackedLinear,
    PlainLinear,
    linear,
    linear_activation,
    linear_backward,
    matmul_forward,
)
from minigpt.kernels.view import View

pytestmark = pytest.mark.kernel

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


DTYPES = [  # of x · w
    "f32 · f32",
    pytest.param("f32 · bf16", marks=pytest.mark.amx),
    pytest.param("bf16 · bf16", marks=pytest.mark.amx),
]


class Case:
    """Random x, w and bias: as the kernel reads them, and the same values in float32."""

    def __init__(self, rng, M, K, N, dtypes="f32 · f32"):
        self.shape = M, K, N
        x_dtype, w_dtype = (np.uint16 if d == "bf16" else np.float32 for d in dtypes.split(" · "))
        x, w, self.bias = (
            rng.standard_normal(shape).astype(np.float32) for shape in ((M, K), (K, N), (N,))
        )
        self.x, self.w = (
            a if dtype == np.float32 else bf16_to_f32(f32_to_bf16(a))
            for a, dtype in ((x, x_dtype), (w, w_dtype))
        )
        self.ldx = row_stride(K)
        rows = np.zeros((padded(M, LANES), self.ldx), np.float32)
        rows[:M, :K] = self.x
        self.rows = rows.ravel() if x_dtype == np.float32 else f32_to_bf16(rows).ravel()
        self.panels = reference.pack_panels(self.w, w_dtype)

    def run(self, run, mode=SET, activation=NO_ACTIVATION, scale=1, y=None, M=None):
        """y [M, N] of matmul_forward, computed in rows that lie N + 3 apart."""
        rows, K, N = self.shape
        M = M or rows
        memory = np.full((M, N + 3), np.nan, np.float32)
        if y is not None:
            memory[:, :N] = y
        run(
            matmul_forward, View(memory.reshape(-1), M, N, N + 3), View(self.rows, M, K, self.ldx),
            self.panels, self.bias, mode, activation, np.float32(scale),
        )  # fmt: skip
        assert np.isnan(memory[:, N:]).all()
        return memory[:, :N].copy()

    def bound(self):
        """The largest rounding error: some units in the last place of the sum of magnitudes."""
        return 8 * np.finfo(np.float32).eps * (np.abs(self.x).astype(float) @ np.abs(self.w) + 1)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_matmul_is_numpys(run, rng, M, K, N, dtypes):
    case = Case(rng, M, K, N, dtypes)
    expected = reference.matmul_forward(case.x.astype(np.float64), case.w, case.bias)
    assert (np.abs(case.run(run) - expected) <= case.bound()).all()


@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_mode_add_adds_to_y(run, rng, M, K, N):
    case = Case(rng, M, K, N)
    y = rng.standard_normal((M, N)).astype(np.float32)
    expected = y + reference.matmul_forward(case.x.astype(np.float64), case.w, case.bias)
    assert (np.abs(case.run(run, ADD, y=y) - expected) <= case.bound()).all()


def test_the_activation_comes_last(run, rng):
    for M in (3, 40):
        case = Case(rng, M, 20, 37)
        expected = reference.gelu_forward(case.run(run).astype(np.float64))
        result = case.run(run, activation=GELU)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)


def test_the_scale_does_not_apply_to_the_bias_and_the_bias_is_optional(run, rng):
    case = Case(rng, 3, 20, 37)
    product = case.run(run) - case.bias
    np.testing.assert_allclose(case.run(run, scale=0.5), 0.5 * product + case.bias, atol=1e-5)
    case.bias = np.empty(0, np.float32)
    np.testing.assert_allclose(case.run(run), product, atol=1e-5)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("M", "K", "N"), [shape for shape in SHAPES if shape[0] > 1])
def test_a_row_has_the_same_bits_alone(run, rng, M, K, N, dtypes):
    case = Case(rng, M, K, N, dtypes)
    together = case.run(run)
    for m in {0, 1, M // 2, M - 1}:
        alone = Case(rng, 1, K, N, dtypes)
        alone.panels, alone.bias = case.panels, case.bias
        alone.rows[: case.ldx] = case.rows[m * case.ldx : (m + 1) * case.ldx]
        assert alone.run(run).tobytes() == together[m].tobytes()


@pytest.mark.amx
def test_bfloat16_weights_are_widened_exactly(run, rng):
    case = Case(rng, 10, 33, 50, "f32 · bf16")
    exact = Case(rng, 10, 33, 50)
    exact.rows, exact.bias = case.rows, case.bias
    exact.panels = reference.pack_panels(case.w, np.float32)
    for rows in (10, 1):
        assert case.run(run, M=rows).tobytes() == exact.run(run, M=rows).tobytes()


@pytest.mark.amx
def test_results_are_rounded_to_bfloat16(run, rng):
    M, K, N = 5, 20, 40
    case, y = Case(rng, M, K, N), np.zeros((M, N), np.uint16)
    run(
        matmul_forward, View(y.reshape(-1), M, N, N), View(case.rows, M, K, case.ldx), case.panels,
        case.bias, SET, NO_ACTIVATION, np.float32(1),
    )  # fmt: skip
    np.testing.assert_array_equal(y, f32_to_bf16(case.run(run)))


# Functions that Numba expands cannot be called with *arguments, as the fixture `run` does.


@jit
def run_linear(team, y, x, layer, mode, workspace):
    linear(team, y, x, layer, mode, workspace)


@jit
def run_linear_backward(team, dx, dlayer, dy, x, layer, mode, workspace):
    linear_backward(team, dx, dlayer, dy, x, layer, mode, workspace)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.uint16, marks=pytest.mark.amx)])
def test_a_plain_layer_has_the_bits_of_a_packed_one(run, rng, dtype):
    M, K, N = 40, 33, 70
    case = Case(rng, M, K, N, "f32 · f32" if dtype == np.float32 else "f32 · bf16")
    x = View(case.rows, M, K, case.ldx)
    workspace = LinearWorkspace(
        np.full(panels_size(K, N), 1, dtype), np.empty(0, np.float32)
    )  # fmt: skip
    layers = (
        PackedLinear(case.panels, case.bias, K, N),
        PlainLinear(case.w.ravel(), case.bias, K, N),
    )
    results = []
    for layer in layers:
        y = np.ones(M * N, np.float32)
        for mode in (SET, ADD):
            run(run_linear, View(y, M, N, N), x, layer, mode, workspace)
        results.append(y.tobytes())
    assert results[0] == results[1]


def test_an_activation_that_saves_its_input_has_the_bits_of_one_that_does_not(run, rng):
    M, K, N = 40, 33, 70
    case = Case(rng, M, K, N)
    x, layer = View(case.rows, M, K, case.ldx), PackedLinear(case.panels, case.bias, K, N)
    saving, fused, saved = (np.full(M * N, np.nan, np.float32) for _ in range(3))
    nothing = np.empty(0, np.float32)
    run(linear_activation, View(fused, M, N, N), None, x, layer, GELU, nothing)
    y, pre = View(saving, M, N, N), View(saved, M, N, N)
    run(linear_activation, y, pre, x, layer, GELU, nothing)
    assert fused.tobytes() == saving.tobytes()
    np.testing.assert_array_equal(saved.reshape(M, N), case.run(run))


# the dtypes of A and B operands in linear_backward
WORKSPACES = [
    (np.float32, np.float32),
    pytest.param(np.float32, np.uint16, marks=pytest.mark.amx),
    pytest.param(np.uint16, np.uint16, marks=pytest.mark.amx),
]


@pytest.mark.parametrize(("a_dtype", "b_dtype"), WORKSPACES)
@pytest.mark.parametrize(
    ("M", "K", "N", "mode"),
    [(1, 1, 1, ADD), (5, 3, 2, SET), (33, 17, 70, ADD), (33, 17, 70, SET), (100, 65, 33, ADD)],
)
def test_backward_is_reference(run, rng, M, K, N, mode, a_dtype, b_dtype):
    """dx is set; dw is set or added to; dbias is added to."""
    ldx, ldy = row_stride(K), row_stride(N)
    x, dy = (
        np.zeros((padded(M, LANES), ldx), np.float32),
        np.zeros((padded(M, LANES), ldy), np.float32),
    )
    x[:M, :K], dy[:M, :N] = rng.standard_normal((M, K)), rng.standard_normal((M, N))
    w, dw = rng.standard_normal((2, K, N)).astype(np.float32)
    dbias, dx = rng.standard_normal(N).astype(np.float32), np.full_like(x, np.nan)
    before = dw * np.float32(mode == ADD), dbias.copy()
    rows = max(padded(K, LANES) * row_stride(M), padded(M, LANES) * ldy)
    workspace = LinearWorkspace(
        np.full(max(panels_size(M, N), panels_size(N, K)), 1, b_dtype), np.full(rows, 1, a_dtype)
    )
    stored_x = f32_to_bf16(x) if a_dtype == np.uint16 else x
    run(
        run_linear_backward, View(dx.reshape(-1), M, K, ldx),
        PlainLinear(dw.reshape(-1), dbias, K, N),
        View(dy.ravel(), M, N, ldy), View(stored_x.ravel(), M, K, ldx),
        PlainLinear(w.ravel(), dbias, K, N), mode, workspace,
    )  # fmt: skip
    arguments = (a.astype(np.float64) for a in (dy[:M, :N], x[:M, :K], w))
    expected = reference.matmul_backward(*arguments)
    tolerance = 1e-5 if b_dtype == np.float32 else 2e-2
    results = dx[:M, :K], dw - before[0], dbias - before[1]
    for result, gradient in zip(results, expected, strict=True):
        assert abs(result - gradient).max() < tolerance * (1 + abs(gradient).max())
    assert np.isnan(dx[:M, K:]).all()


def test_reference_backward_is_the_derivative(rng, derivatives):
    x, w, dy = (rng.standard_normal(shape) for shape in ((3, 4), (4, 2), (3, 2)))
    dx, dw, dbias = reference.matmul_backward(dy, x, w)
    loss = lambda x, w, b: (dy * reference.matmul_forward(x, w, b)).sum()  # noqa: E731
    np.testing.assert_allclose(dx, derivatives(lambda x: loss(x, w, np.zeros(2)), x), atol=1e-8)
    np.testing.assert_allclose(dw, derivatives(lambda w: loss(x, w, np.zeros(2)), w), atol=1e-8)
    np.testing.assert_allclose(dbias, derivatives(lambda b: loss(x, w, b), np.zeros(2)), atol=1e-8)
