"""Quantizing weights: the layout, the error, all edges, in parts and transposed."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.gemm.quantize import quantize
from minigpt.kernels.layout import (
    LANES,
    QUANT_BLOCK,
    STORAGE_DTYPE,
    bf16_to_f32,
    dequantize_panels,
    f32_to_bf16,
    padded,
    qweight_size,
    scales_size,
)

pytestmark = pytest.mark.kernel

SHAPES = [(1, 1), (2, 16), (QUANT_BLOCK, 40), (QUANT_BLOCK + 1, 130), (3 * QUANT_BLOCK, 17)]
DTYPES = ["int8", "int4"]


def quantized(run, w, dtype, transposed=False, cut=None, importance=None):
    """(qweight, scales) of w [K, N], quantized in two parts, split before row `cut`."""
    K, N = w.shape
    qweight = np.zeros(qweight_size(K, N, dtype), STORAGE_DTYPE[dtype])
    scales = np.zeros(scales_size(K, N, dtype), np.uint16)
    if importance is None:
        importance = np.ones(K, np.float32)
    stored = np.ascontiguousarray(w.T if transposed else w)
    cut = len(stored) if cut is None else min(cut, len(stored))
    for first, part in ((0, stored[:cut]), (cut, stored[cut:])):
        rows, columns = part.shape
        if transposed:
            sizes = 0, first, K, rows, padded(K, QUANT_BLOCK) // QUANT_BLOCK, 1, columns
        else:
            sizes = first, 0, rows, N, padded(K, QUANT_BLOCK) // QUANT_BLOCK, columns, 1
        run(quantize, qweight, scales, part.reshape(-1), importance, *sizes)
    return qweight, scales


@pytest.mark.parametrize("stored_dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("K", "N"), SHAPES)
def test_int8_equals_the_reference(run, rng, K, N, transposed, stored_dtype):
    w = rng.standard_normal((K, N)).astype(np.float32)
    stored = w
    if stored_dtype == np.uint16:
        stored = f32_to_bf16(w)
        w = bf16_to_f32(stored)
    result = quantized(run, stored, "int8", transposed, QUANT_BLOCK)
    expected = reference.pack_quantized(*reference.quantize(w, "int8"))
    for found, truth in zip(result, expected, strict=True):
        np.testing.assert_array_equal(found, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "N"), SHAPES)
def test_parts_and_transposes_give_the_same_bits(run, rng, K, N, dtype):
    w = rng.standard_normal((K, N)).astype(np.float32)
    at_once = quantized(run, w, dtype)
    for transposed in (False, True):
        parts = quantized(run, w, dtype, transposed, QUANT_BLOCK)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(at_once, parts, strict=True))


@pytest.mark.parametrize("spread", ["normal", "heavy", "shifted"])
def test_int4_has_a_smaller_error_than_the_full_range(run, rng, spread):
    K, N = 4 * QUANT_BLOCK, 48
    w = rng.standard_normal((K, N)).astype(np.float32)
    if spread == "heavy":
        w *= np.abs(w)
    if spread == "shifted":
        w = np.abs(w)
    errors = [
        np.square(found - w).mean()
        for found in (
            dequantize_panels(*quantized(run, w, "int4"), K, N),
            reference.dequantize(*reference.quantize(w, "int4")),
        )
    ]
    assert errors[0] < 0.93 * errors[1]


def test_importance_reduces_the_error_of_important_rows(run, rng):
    K, N = 2 * QUANT_BLOCK, 32
    w = rng.standard_normal((K, N)).astype(np.float32)
    importance = np.where(np.arange(K) % 4 == 0, 100, 1).astype(np.float32)
    errors = []
    for i in (None, importance):
        found = dequantize_panels(*quantized(run, w, "int4", importance=i), K, N)
        errors.append((importance[:, None] * np.square(found - w)).mean())
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_that_a_scale_can_represent_are_exact(run, dtype):
    """Columns of zeros, of one value, and of integral multiples of a scale."""
    w = np.zeros((QUANT_BLOCK, LANES), np.float32)
    w[:, 1] = 0.5
    w[:, 2] = -3
    w[:, 3] = np.arange(QUANT_BLOCK) % 16 * 0.25
    w[:, 4] = (np.arange(QUANT_BLOCK) % 16 - 8) * 0.25
    exact = [0, 1, 2, 3, 4] if dtype == "int4" else [0]
    found = dequantize_panels(*quantized(run, w, dtype), *w.shape)
    np.testing.assert_allclose(found[:, exact], w[:, exact], rtol=5e-3, atol=1e-6)
    assert np.abs(found - w).max() < 0.02


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_scale_of_a_block_that_is_not_finite_is_nan(run, rng, dtype, value):
    w = rng.standard_normal((QUANT_BLOCK, 20)).astype(np.float32)
    w[5, 18] = value
    _, scales = quantized(run, w, dtype)
    not_finite = (scales & 0x7F80 == 0x7F80).reshape(4, 2 if dtype == "int4" else 1, LANES)
    assert not_finite[1, 0].tolist() == [lane == 2 for lane in range(LANES)]
    assert not not_finite[[0, 2, 3], 0].any()


@pytest.mark.parametrize("scale", [1e-30, 1e30, 3e38])
@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitudes_near_the_limits_of_float32(run, rng, dtype, scale):
    w = (rng.random((QUANT_BLOCK, LANES)).astype(np.float32) - np.float32(0.5)) * np.float32(scale)
    found = dequantize_panels(*quantized(run, w, dtype), *w.shape)
    assert np.abs(found - w).max() <= scale * (0.05 if dtype == "int4" else 0.003)
