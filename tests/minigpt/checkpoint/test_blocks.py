"""The encodings of GGUF files, compared bit for bit with those of llama.cpp's Python package."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from minigpt.checkpoint.blocks import (
    BF16,
    ENCODINGS,
    F16,
    F32,
    Q4_0,
    Q6_K,
    Q8_0,
    EncodedTensor,
    Encoding,
    all_finite,
    encode,
)
from minigpt.checkpoint.tensors import TensorInfo

NAMES = {encoding.name: encoding for encoding in ENCODINGS.values()}


def random_blocks(encoding: Encoding, lines: int, length: int) -> np.ndarray:
    """Blocks of random bits with ordinary scales; small integers for encodings without blocks."""
    rng = np.random.default_rng(encoding.type)
    count = lines * length // encoding.length
    if encoding.decode is None:
        return rng.integers(0, 100, count).astype(encoding.block)
    blocks = np.frombuffer(rng.bytes(count * encoding.block.itemsize), encoding.block).copy()
    blocks["d"] = rng.normal(size=count)
    return blocks


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=NAMES)
def test_types_and_sizes_equal_llama_cpps(encoding: Encoding) -> None:
    theirs = GGMLQuantizationType[encoding.name]
    assert encoding.type == theirs
    assert (encoding.length, encoding.block.itemsize) == GGML_QUANT_SIZES[theirs]


@pytest.mark.parametrize("encoding", [Q8_0, Q4_0, Q6_K], ids=lambda encoding: encoding.name)
def test_blocks_decode_as_llama_cpp_decodes_them(encoding: Encoding) -> None:
    blocks = random_blocks(encoding, 5, 512)
    expected = dequantize(blocks.view(np.uint8), GGMLQuantizationType[encoding.name])
    assert encoding.decode is not None
    decoded = encoding.decode(blocks)
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded.reshape(-1), expected.reshape(-1))


def test_q8_0_is_rounded_as_llama_cpp_rounds_it() -> None:
    rng = np.random.default_rng(8)
    numbers = rng.normal(size=(64, 96)).astype(np.float32)
    numbers[0] = 0
    numbers[1, :32] = 1e-39  # a scale that 16 bits cannot hold: 0
    numbers[2] = np.linspace(-127, 127, 96).round() / 2  # halves
    numbers[2, ::32] = 127
    ours = encode(numbers, Q8_0)
    theirs = quantize(numbers[2:], GGMLQuantizationType.Q8_0)
    assert ours[6:].tobytes() == theirs.tobytes()
    assert not Q8_0.decode(ours[:4]).any()  # type: ignore[misc]


def test_f16_and_f32_equal_numpys() -> None:
    numbers = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert encode(numbers, F16).tobytes() == numbers.astype("<f2").tobytes()
    assert encode(numbers, F32).tobytes() == numbers.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_all_finite_notices_nan_infinity_and_overflow(bad: float) -> None:
    numbers = np.ones((1, 32), np.float32)
    assert all_finite(encode(numbers, F16))
    assert all_finite(encode(numbers, Q8_0))
    numbers[0, 7] = bad
    assert not all_finite(encode(numbers, F16))
    assert not all_finite(encode(numbers, Q8_0))


def stored(mapped, encoding: Encoding, lines: int, length: int, transposed: bool) -> EncodedTensor:
    """A matrix at an odd byte of a file, which is aligned for no type."""
    blocks = random_blocks(encoding, lines, length)
    shape = (length, lines) if transposed else (lines, length)
    info = TensorInfo("x", encoding.name, shape, blocks.nbytes)
    return EncodedTensor(info, mapped(b"-" + blocks.tobytes()), 1, encoding, transposed)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=NAMES)
def test_chunks_cover_the_matrix(encoding: Encoding, transposed: bool, mapped) -> None:
    tensor = stored(mapped, encoding, 200, 256, transposed)
    matrix = tensor.read()
    assert matrix.shape == tensor.info.shape
    assert matrix.flags.aligned
    expected = {F16: np.float16, BF16: np.uint16}.get(encoding, np.float32)
    assert matrix.dtype == expected
    assembled = np.zeros_like(matrix)
    chunks = list(tensor.chunks(64 * 256 * matrix.itemsize))
    for row, column, chunk in chunks:
        assert (chunk.T if transposed else chunk).flags.c_contiguous
        assembled[row : row + len(chunk), column : column + chunk.shape[1]] += chunk
    assert [(row, column) for row, column, _ in chunks] == [
        (0, first) if transposed else (first, 0) for first in (0, 64, 128, 192)
    ]
    assert np.array_equal(assembled, matrix)


def test_a_float_matrix_is_a_view(mapped) -> None:
    numbers = np.arange(6, dtype=np.float32)
    tensor = EncodedTensor(TensorInfo("x", "F32", (3, 2), 24), mapped(numbers.tobytes()), 0, F32)
    assert not tensor.read().flags.owndata
    transposed = EncodedTensor(tensor.info, tensor.file, 0, F32, transposed=True)
    assert np.array_equal(transposed.read(), numbers.reshape(2, 3).T)


def test_an_infinite_scale_gives_nan_without_a_warning(mapped) -> None:
    blocks = random_blocks(Q8_0, 1, 32)
    blocks["d"] = np.inf
    blocks["q"][0, 0] = 0
    info = TensorInfo("x", "Q8_0", (32,), 34)
    file = mapped(blocks.tobytes())
    assert np.isnan(EncodedTensor(info, file, 0, Q8_0).read()[0])
