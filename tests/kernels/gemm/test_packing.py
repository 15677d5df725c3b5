"""Packing against the reference: both dtypes, both orders, all edges, in parts."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.gemm.packing import pack, pack_operand, transpose_rows
from minigpt.kernels.layout import (
    LANES,
    bf16_to_f32,
    f32_to_bf16,
    padded,
    panels_size,
    row_stride,
    unpack_panels,
)

pytestmark = pytest.mark.kernel

SHAPES = [(1, 1), (2, 16), (3, 17), (64, 40), (65, 130), (129, 64)]
DTYPES = [np.float32, np.uint16]


def packed(run, stored, transposed, dtype, cut):
    """The panels of `stored`, packed in two parts, split before row `cut`."""
    K, N = stored.shape[::-1] if transposed else stored.shape
    panels = np.zeros(panels_size(K, N), dtype)
    cut = min(cut, len(stored))
    for first, part in ((0, stored[:cut]), (cut, stored[cut:])):
        rows, columns = part.shape
        if transposed:
            sizes = 0, first, K, rows, padded(K), 1, columns
        else:
            sizes = first, 0, rows, N, padded(K), columns, 1
        run(pack, panels, part.reshape(-1), *sizes)
    return panels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored_dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("K", "N"), SHAPES)
def test_pack_equals_the_reference(run, rng, K, N, transposed, stored_dtype, dtype):
    w = rng.standard_normal((K, N)).astype(np.float32)
    stored = w
    if stored_dtype == np.uint16:
        stored = f32_to_bf16(w)
        w = (stored.astype(np.uint32) << 16).view(np.float32)
    stored = np.ascontiguousarray(stored.T) if transposed else stored
    panels = packed(run, stored, transposed, dtype, 2 * LANES)
    np.testing.assert_array_equal(panels, reference.pack_panels(w, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "N"), SHAPES)
def test_unpack_panels_inverts_packing(rng, K, N, dtype):
    w = rng.standard_normal((K, N)).astype(np.float32)
    expected = w if dtype == np.float32 else f32_to_bf16(w)
    np.testing.assert_array_equal(unpack_panels(reference.pack_panels(w, dtype), K, N), expected)


def test_nan_stays_nan_in_bfloat16(run):
    w = np.array([np.nan, np.inf, -np.inf, 3.4e38], np.float32)
    w.view(np.uint32)[0] = 0x7FFFFFFF  # all ones: rounding up would carry into the sign
    panels = packed(run, w.reshape(1, 4), False, np.uint16, 1)
    nan, *infinities = unpack_panels(panels, 1, 4)[0]
    assert np.isnan(bf16_to_f32(nan[None]))
    assert infinities == [0x7F80, 0xFF80, 0x7F80]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "N"), [(1, 1), (5, 17), (33, 64), (130, 40)])
def test_pack_operand_overwrites_an_earlier_operand(run, rng, K, N, dtype):
    """From rows with a stride, and transposed."""
    w = rng.standard_normal((K, N + 3)).astype(np.float32)
    truth = unpack_panels(reference.pack_panels(w[:, :N], dtype), padded(K), N)
    for matrix, strides in ((w, (N + 3, 1)), (np.ascontiguousarray(w.T), (1, K))):
        panels = np.full(panels_size(K, N), 7, dtype)
        start = np.int64(2)
        flat = np.concatenate([np.zeros(2, np.float32), matrix.ravel()])
        run(pack_operand, panels, flat, start, K, N, *(np.int64(s) for s in strides))
        np.testing.assert_array_equal(unpack_panels(panels, padded(K), N), truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "N"), [(1, 1), (3, 20), (16, 16), (50, 33)])
def test_transposed_rows_are_padded_with_zeros(run, rng, M, N, dtype):
    x = rng.standard_normal((M, N + 2)).astype(np.float32)
    y = np.full((N, row_stride(M)), 7, dtype)
    run(transpose_rows, y.reshape(-1), row_stride(M), x.ravel(), N + 2, M, N)
    expected = x[:, :N].T if dtype == np.float32 else f32_to_bf16(x[:, :N].T)
    np.testing.assert_array_equal(y[:, :M], expected)
    assert not y[:, M : padded(M)].any()
