"""Quantized products against NumPy: exact sums, odd sizes, the largest integers."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.gemm.quantized import (
    QuantizedMatrix,
    make_quantized_activations,
    quantize_activations,
)
from minigpt.kernels.jit import jit
from minigpt.kernels.layout import (
    N_BLOCK,
    QUANT_BLOCK,
    activation_scales_stride,
    dequantize_panels,
    padded,
    qx_stride,
    row_stride,
)
from minigpt.kernels.matmul import (
    ADD,
    SET,
    PackedLinear,
    linear,
    weight_at,
)
from minigpt.kernels.view import View

pytestmark = [pytest.mark.kernel, pytest.mark.amx]

DTYPES = ["int8", "int4"]
SHAPES = [
    (1, 1, 1),
    (1, 130, 70),
    (2, QUANT_BLOCK, N_BLOCK),
    (3, QUANT_BLOCK + 1, 17),
    (7, 2 * QUANT_BLOCK, 65),
    (17, 40, 130),
    (25, 3 * QUANT_BLOCK - 1, N_BLOCK),
    (200, 70, 33),
]


@jit
def run_linear(team, y, x, layer, mode, buffer):
    linear(team, y, x, layer, mode, buffer)  # it is expanded: `run` cannot call it


def run_product(run, x, q, scales, bias, mode=SET, start=np.nan):
    """y [M, N], written in rows that are N + 3 apart."""
    (M, K), N = x.shape, q.shape[1]
    rows = np.zeros((M, row_stride(K)), np.float32)
    rows[:, :K] = x
    y = np.full((M, N + 3), start, np.float32)
    layer = PackedLinear(QuantizedMatrix(*reference.pack_quantized(q, *scales)), bias, K, N)
    run(
        run_linear, View(y.reshape(-1), M, N, N + 3), View(rows.ravel(), M, K, row_stride(K)),
        layer, mode, make_quantized_activations(max(M, 3), K),
    )  # fmt: skip
    return y[:, :N]


def random_operands(rng, M, K, N, dtype):
    """x, quantized weights, their scales (int4: and offsets), a bias."""
    x, w, bias = (rng.standard_normal(s).astype(np.float32) for s in ((M, K), (K, N), (N,)))
    q, *scales = reference.quantize(w, dtype)
    return x, q, scales, bias


def truth(x, q, scales, bias):
    """The product of the same integers in float64, and a bound of the error in float32."""
    p, scale = reference.quantize_activations(x)
    exact = p * np.repeat(scale, QUANT_BLOCK, 1)[:, : x.shape[1]].astype(np.float64)
    w = reference.dequantize(q, *scales)
    scaled = q * scales[0][np.arange(len(q)) // QUANT_BLOCK]  # without the offset
    magnitude = np.abs(exact) @ (np.abs(scaled) + np.abs(w)) + 1
    return exact @ w + bias, 4 * np.finfo(np.float32).eps * magnitude


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_products_equal_numpys(run, rng, M, K, N, dtype):
    x, q, scales, bias = random_operands(rng, M, K, N, dtype)
    expected, bound = truth(x, q, scales, bias)
    assert (np.abs(run_product(run, x, q, scales, bias) - expected) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_mode_add_adds_to_y(run, rng, dtype):
    x, q, scales, bias = random_operands(rng, 5, 100, 70, dtype)
    expected, bound = truth(x, q, scales, bias)
    found = run_product(run, x, q, scales, bias, ADD, start=2)
    assert (np.abs(found - (expected + 2)) <= bound + 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "K", "N"), [shape for shape in SHAPES if shape[0] > 1])
def test_a_row_has_the_same_bits_alone(run, rng, M, K, N, dtype):
    x, q, scales, bias = random_operands(rng, M, K, N, dtype)
    batch = run_product(run, x, q, scales, bias)
    for m in {0, 1, M // 2, M - 1}:
        alone = run_product(run, x[m : m + 1], q, scales, bias)
        assert alone.tobytes() == batch[m].tobytes()


@pytest.mark.parametrize("M", [1, 2, 4, 30])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_integers_do_not_overflow(run, dtype, sign, M):
    """AVX2 adds up products in 16 bits."""
    K, N = QUANT_BLOCK, N_BLOCK
    q = np.full((K, N), 127 * sign if dtype == "int8" else 15)
    one, zero = np.ones((1, N), np.float32), np.zeros((1, N), np.float32)
    scales = [one] if dtype == "int8" else [one, zero]
    x = np.full((M, K), 127 * sign, np.float32)
    found = run_product(run, x, q, scales, np.empty(0, np.float32))
    np.testing.assert_array_equal(found, (x @ q.astype(np.float32)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_exact(run, rng, dtype):
    """With scales of 1 and integral x the result is an integer and must be exact."""
    M, K, N = 9, 2 * QUANT_BLOCK, 50
    q = rng.integers(-127, 128, (K, N)) if dtype == "int8" else rng.integers(0, 16, (K, N))
    one = np.ones((K // QUANT_BLOCK, N), np.float32)
    scales = [one] if dtype == "int8" else [one, -7 * one]
    x = rng.integers(-127, 128, (M, K)).astype(np.float32)
    x[:, ::QUANT_BLOCK] = 127  # the maximum of each block: all scales are 1
    expected = x.astype(np.int64) @ (q - (7 if dtype == "int4" else 0))
    found = run_product(run, x, q, scales, np.empty(0, np.float32))
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@jit
def look_up(team, out, w, K, N):
    for k in range(K):
        for n in range(N):
            out[k * N + n] = weight_at(w, k, n, K)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "N"), [(1, 1), (QUANT_BLOCK + 9, 70)])
def test_weight_and_dequantize_panels_read_what_was_quantized(run, rng, K, N, dtype):
    quantized = reference.quantize(rng.standard_normal((K, N)).astype(np.float32), dtype)
    expected = reference.dequantize(*quantized)
    stored = reference.pack_quantized(*quantized)
    np.testing.assert_array_equal(dequantize_panels(*stored, K, N), expected)
    out = np.empty((K, N), np.float32)
    run(look_up, out.ravel(), QuantizedMatrix(*stored), K, N)
    np.testing.assert_allclose(out, expected, rtol=1e-6)


@pytest.mark.parametrize(("M", "K"), [(2, 1), (5, QUANT_BLOCK), (9, 3 * QUANT_BLOCK + 5)])
def test_quantized_activations_equal_the_reference(run, rng, M, K):
    x = rng.standard_normal((M, K)).astype(np.float32)
    x[0] = 0
    buffer = make_quantized_activations(M, K)
    run(quantize_rows, buffer, x.ravel(), M, K)
    p, scale = reference.quantize_activations(x)
    qx = buffer.qx.reshape(-1, qx_stride(K))[:M]
    scales_and_sums = buffer.scales_and_sums.reshape(-1, activation_scales_stride(K))[:M]
    np.testing.assert_array_equal(qx[:, :K], p)
    assert not qx[:, K : padded(K, QUANT_BLOCK)].any()
    blocks = scale.shape[1]
    np.testing.assert_array_equal(scales_and_sums[:, : 2 * blocks : 2], scale)
    sums = np.add.reduceat(p, np.arange(0, K, QUANT_BLOCK), 1)
    np.testing.assert_array_equal(scales_and_sums[:, 1 : 2 * blocks : 2], sums)


@jit
def quantize_rows(team, buffer, x, M, K):
    quantize_activations(team, buffer, x, K, M, K)


def test_nan_and_infinity_stay_in_their_rows(run, rng):
    x, q, scales, bias = random_operands(rng, 4, 70, 20, "int8")
    clean = run_product(run, x, q, scales, bias)
    x[1, 3], x[2, 5] = np.nan, np.inf
    found = run_product(run, x, q, scales, bias)
    np.testing.assert_array_equal(found[[0, 3]], clean[[0, 3]])
    assert np.isnan(found[[1, 2]]).all()
