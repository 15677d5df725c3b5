"""Transposes of 16 × 16 elements, to rows and to panels, in both dtypes."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt.kernels import layout
from minigpt.kernels.jit import entry
from minigpt.kernels.layout import LANES, f32_to_bf16, panels_size, unpack_panels
from minigpt.kernels.simd import transpose_16x16, transpose_16x16_to_panel

pytestmark = pytest.mark.kernel


@entry
def transpose(x, y, panel):
    """To rows 18 apart from element 2 on, and to rows 16 … 31 of a panel."""
    transpose_16x16(x, 3, 21, y, 2, 18)
    transpose_16x16_to_panel(x, 3, 21, panel, LANES * LANES)


@pytest.mark.parametrize("to", [np.float32, np.uint16])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_transposes_are_numpys_and_leave_other_elements_alone(rng, dtype, to):
    x = rng.standard_normal((16, 21)).astype(np.float32)  # rows 21 apart, from element 3 on
    stored = x if dtype == np.float32 else f32_to_bf16(x)
    flat = np.concatenate([np.zeros(3, dtype), stored.ravel()])
    y, panel = np.full(2 + 16 * 18, 7, to), np.full(panels_size(32, 16), 7, to)
    transpose(flat, y, panel)
    expected = stored[:, :16].T
    if to != dtype:
        wide = x if dtype == np.float32 else layout.bf16_to_f32(stored)
        expected = wide[:, :16].T if to == np.float32 else f32_to_bf16(x[:, :16].T)
    rows = y[2:].reshape(16, 18)
    np.testing.assert_array_equal(rows[:, :16], expected)
    assert (y[:2] == 7).all()
    assert (rows[:, 16:] == 7).all()
    unpacked = unpack_panels(panel, 32, 16)
    np.testing.assert_array_equal(unpacked[16:], expected)
    assert (unpacked[:16] == 7).all()
