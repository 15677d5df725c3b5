"""The embedding, from packed and from plain tables, against reference.py."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import reference
from minigpt.kernels.embedding import (
    embedding_backward,
    embedding_forward,
    packed_embedding_forward,
)
from minigpt.kernels.layout import bf16_to_f32, f32_to_bf16
from minigpt.kernels.view import View

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_packed_forward_is_reference(run, rng, dtype):
    V, C, ld = 70, 5, 8
    wte, wpe = (rng.standard_normal((n, C)).astype(np.float32) for n in (V, 11))
    ids, positions = np.array([69, 0, 17, 17]), np.array([0, 1, 2, 10])
    x = np.full((4, ld), np.nan, np.float32)
    packed = reference.pack_panels(wte.T, dtype)
    scale = np.float32(0.25)
    run(
        packed_embedding_forward, View(x.reshape(-1), 4, C, ld), ids, positions, packed,
        wpe.ravel(), scale,
    )  # fmt: skip
    if dtype == np.uint16:
        wte = bf16_to_f32(f32_to_bf16(wte))
    expected = reference.embedding_forward(ids, positions, wte, wpe, scale)
    np.testing.assert_array_equal(x[:, :C], expected)
    assert np.isnan(x[:, C:]).all()


def test_forward_and_backward_are_reference(run, rng):
    """One token occurs twice; backward adds to the gradients."""
    V, C, ld, scale = 7, 19, 21, np.float32(0.5)
    wte, wpe, dwte, dwpe = (rng.standard_normal((n, C)).astype(np.float32) for n in (V, 5, V, 5))
    ids, positions = np.array([6, 0, 3, 3]), np.array([0, 1, 0, 4])
    x = np.full((4, ld), np.nan, np.float32)
    x_view = View(x.reshape(-1), 4, C, ld)
    run(embedding_forward, x_view, ids, positions, wte.ravel(), wpe.ravel(), scale)
    np.testing.assert_array_equal(
        x[:, :C], reference.embedding_forward(ids, positions, wte, wpe, scale)
    )
    before = dwte.copy(), dwpe.copy()
    dx = rng.standard_normal((4, ld)).astype(np.float32)
    tables = dwte.reshape(-1), dwpe.reshape(-1)
    run(embedding_backward, *tables, View(dx.ravel(), 4, C, ld), ids, positions, scale)
    expected = reference.embedding_backward(
        dx[:, :C].astype(np.float64), ids, positions, V, 5, scale
    )
    for after, start, added in zip((dwte, dwpe), before, expected, strict=True):
        np.testing.assert_allclose(after, start + added, rtol=1e-6, atol=1e-6)


def test_reference_backward_is_the_derivative(rng, derivatives):
    wte, wpe, dx = (rng.standard_normal((n, 2)) for n in (4, 3, 5))
    ids, positions = np.array([1, 1, 3, 0, 3]), np.array([0, 1, 2, 0, 1])
    dwte, dwpe = reference.embedding_backward(dx, ids, positions, 4, 3, 0.5)
    loss = lambda e, p: (dx * reference.embedding_forward(ids, positions, e, p, 0.5)).sum()  # noqa: E731
    np.testing.assert_allclose(dwte, derivatives(lambda e: loss(e, wpe), wte), atol=1e-8)
    np.testing.assert_allclose(dwpe, derivatives(lambda p: loss(wte, p), wpe), atol=1e-8)
