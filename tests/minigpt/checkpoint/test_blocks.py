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
    Q8_0,
    EncodedTensor,
    Encoding,
    all_finite,
    encode,
)
from minigpt.checkpoint.tensors import TensorInfo

NAMES = {encoding.name: encoding for encoding in ENCODINGS.values()}
IN_BLOCKS = [encoding for encoding in ENCODINGS.values() if encoding.decode is not None]
# of F16: zeros, the smallest, subnormal and normal, the largest
EXTREME = [0.0, -0.0, 6e-8, -6e-8, 5.9e-5, 6.2e-5, -65504.0, 65504.0]


def random_blocks(encoding: Encoding, lines: int, length: int) -> np.ndarray:
    """Blocks of random bits with ordinary and extreme scales; else small integers."""
    rng = np.random.default_rng(encoding.type)
    count = lines * length // encoding.length
    if encoding.decode is None:
        return rng.integers(0, 100, count).astype(encoding.block)
    blocks = np.frombuffer(rng.bytes(count * encoding.block.itemsize), encoding.block).copy()
    for scale in {"d", "m"} & set(encoding.block.names or ()):
        blocks[scale] = rng.normal(size=count)
        blocks[scale][: len(EXTREME)] = rng.permutation(EXTREME)[:count]
    return blocks


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=NAMES)
def test_types_and_sizes_equal_llama_cpps(encoding: Encoding) -> None:
    theirs = GGMLQuantizationType[encoding.name]
    assert encoding.type == theirs
    assert (encoding.length, encoding.block.itemsize) == GGML_QUANT_SIZES[theirs]


@pytest.mark.parametrize("encoding", IN_BLOCKS, ids=lambda encoding: encoding.name)
def test_blocks_decode_as_llama_cpp_decodes_them(encoding: Encoding) -> None:
    """Bit for bit, zeros' signs included."""
    blocks = random_blocks(encoding, 20, 512)
    expected = dequantize(blocks.view(np.uint8), GGMLQuantizationType[encoding.name])
    assert encoding.decode is not None
    decoded = encoding.decode(blocks)
    assert decoded.dtype == np.float32
    assert decoded.tobytes() == expected.tobytes()


def test_q4_k_by_its_formula() -> None:
    """A block by hand: part 0 has s 1 and t 2, part 5 the s 63 and t 33; the others 0."""
    encoding = NAMES["Q4_K"]
    block = np.zeros(1, encoding.block)
    block["d"], block["m"] = 2, 0.5
    block["st"][0] = [1, 0b11 << 6, 0, 0, 2, 0b10 << 6, 0, 0, 0, 0b0001_1111, 0, 0]
    block["q"][0, :32] = 7  # part 0 in the low halves of the first 32 bytes
    block["q"][0, 64:96] = 9 << 4  # part 5 in the high halves of the third
    assert encoding.decode is not None
    parts = encoding.decode(block).reshape(8, 32)
    assert parts[0].tolist() == [2 * 1 * 7 - 0.5 * 2] * 32
    assert parts[5].tolist() == [2 * 63 * 9 - 0.5 * 33] * 32
    assert not parts[[1, 2, 3, 4, 6, 7]].any()


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
