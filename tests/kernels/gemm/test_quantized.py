"""Products of whole numbers against NumPy: exact sums, odd sizes, the largest numbers there are."""

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


def run_product(run, x, q, scales, bias, mode=SET, start=np.nan):
    """y [M, N], in rows that lie further apart than they are long."""
    (M, K), N = x.shape, q.shape[1]
    rows = np.zeros((M, row_stride(K)), np.float32)
    rows[:, :K] = x
    y = np.full((M, N + 3), start, np.float32)
    layer = PackedLinear(QuantizedMatrix(*reference.codes(q, *scales)), bias, K, N)
    run(
        linear, View(y.reshape(-1), M, N, N + 3), View(rows.ravel(), M, K, row_stride(K)), layer,
        mode, make_quantized_activations(max(M, 3), K),
    )  # fmt: skip
    return y[:, :N]


def case(rng, M, K, N, dtype):
    """x, whole weights, their scales, a bias."""
    x, w, bias = (rng.standard_normal(s).astype(np.float32) for s in ((M, K), (K, N), (N,)))
    q, *scales = reference.quantized(w, dtype)
    return x, q, scales, bias


def truth(x, q, scales, bias):
    """In float64, of the same whole numbers; and what rounding to float32 can add up to."""
    p, unit = reference.quantized_rows(x)
    exact = p * np.repeat(unit, QUANT_BLOCK, 1)[:, : x.shape[1]].astype(np.float64)
    w = reference.dequantize_panels(q, *scales)
    most = np.abs(exact) @ (np.abs(q * scales[0][np.arange(len(q)) // QUANT_BLOCK]) + np.abs(w)) + 1
    return exact @ w + bias, 4 * np.finfo(np.float32).eps * most


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_products_are_numpys(run, rng, M, K, N, dtype):
    x, q, scales, bias = case(rng, M, K, N, dtype)
    expected, bound = truth(x, q, scales, bias)
    assert (np.abs(run_product(run, x, q, scales, bias) - expected) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_added_to_what_is_there(run, rng, dtype):
    x, q, scales, bias = case(rng, 5, 100, 70, dtype)
    expected, bound = truth(x, q, scales, bias)
    found = run_product(run, x, q, scales, bias, ADD, start=2)
    assert (np.abs(found - (expected + 2)) <= bound + 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "K", "N"), [shape for shape in SHAPES if shape[0] > 1])
def test_a_row_has_the_same_bits_alone(run, rng, M, K, N, dtype):
    x, q, scales, bias = case(rng, M, K, N, dtype)
    together = run_product(run, x, q, scales, bias)
    for m in {0, 1, M // 2, M - 1}:
        alone = run_product(run, x[m : m + 1], q, scales, bias)
        assert alone.tobytes() == together[m].tobytes()


@pytest.mark.parametrize("M", [1, 2, 4, 30])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_do_not_overflow(run, dtype, sign, M):
    """Sums of pairs and of fours in 16 bits are where a processor's instructions could."""
    K, N = QUANT_BLOCK, N_BLOCK
    q = np.full((K, N), 127 * sign if dtype == "int8" else 15)
    one, none = np.ones((1, N), np.float32), np.zeros((1, N), np.float32)
    scales = [one] if dtype == "int8" else [one, none]
    x = np.full((M, K), 127 * sign, np.float32)
    found = run_product(run, x, q, scales, np.empty(0, np.float32))
    np.testing.assert_array_equal(found, (x @ q.astype(np.float32)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_exact(run, rng, dtype):
    """Scales of 1 and whole x: all is integer arithmetic, and must come out to the last unit."""
    M, K, N = 9, 2 * QUANT_BLOCK, 50
    q = rng.integers(-127, 128, (K, N)) if dtype == "int8" else rng.integers(0, 16, (K, N))
    one = np.ones((K // QUANT_BLOCK, N), np.float32)
    scales = [one] if dtype == "int8" else [one, -7 * one]
    x = rng.integers(-127, 128, (M, K)).astype(np.float32)
    x[:, ::QUANT_BLOCK] = 127  # each block's largest: units are 1
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
def test_single_weights_and_the_way_back(run, rng, K, N, dtype):
    quantized = reference.quantized(rng.standard_normal((K, N)).astype(np.float32), dtype)
    expected = reference.dequantize_panels(*quantized)
    held = reference.codes(*quantized)
    np.testing.assert_array_equal(dequantize_panels(*held, K, N), expected)
    out = np.empty((K, N), np.float32)
    run(look_up, out.ravel(), QuantizedMatrix(*held), K, N)
    np.testing.assert_allclose(out, expected, rtol=1e-6)


@pytest.mark.parametrize(("M", "K"), [(2, 1), (5, QUANT_BLOCK), (9, 3 * QUANT_BLOCK + 5)])
def test_rows_are_the_twins(run, rng, M, K):
    x = rng.standard_normal((M, K)).astype(np.float32)
    x[0] = 0
    rows = make_quantized_activations(M, K)
    run(keep_rows, rows, x.ravel(), M, K)
    p, unit = reference.quantized_rows(x)
    qx = rows.qx.reshape(-1, qx_stride(K))[:M]
    scales_and_sums = rows.scales_and_sums.reshape(-1, activation_scales_stride(K))[:M]
    np.testing.assert_array_equal(qx[:, :K], p)
    assert not qx[:, K : padded(K, QUANT_BLOCK)].any()
    blocks = unit.shape[1]
    np.testing.assert_array_equal(scales_and_sums[:, : 2 * blocks : 2], unit)
    sums = np.add.reduceat(p, np.arange(0, K, QUANT_BLOCK), 1)
    np.testing.assert_array_equal(scales_and_sums[:, 1 : 2 * blocks : 2], sums)


@jit
def keep_rows(team, rows, x, M, K):
    quantize_activations(team, rows, x, K, M, K)


def test_what_is_no_number_stays_in_its_row(run, rng):
    x, q, scales, bias = case(rng, 4, 70, 20, "int8")
    clean = run_product(run, x, q, scales, bias)
    x[1, 3], x[2, 5] = np.nan, np.inf
    found = run_product(run, x, q, scales, bias)
    np.testing.assert_array_equal(found[[0, 3]], clean[[0, 3]])
    assert np.isnan(found[[1, 2]]).all()
