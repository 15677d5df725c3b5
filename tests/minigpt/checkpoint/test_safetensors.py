"""safetensors: read without copying, checked by every rule of the format, written atomically."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.checkpoint import TensorInfo, open_checkpoint, write_safetensors, write_tensors
from minigpt.checkpoint.safetensors import read_safetensors
from minigpt.checkpoint.tensors import NUMPY_DTYPE
from minigpt.errors import CheckpointError

ARRAYS = {
    "bits": np.arange(5, dtype=np.uint16),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "scalar": np.array(7, dtype=np.int64),
    "empty": np.empty((0, 3), dtype=np.float32),
    "mask": np.array([True, False, True]),
    "half": np.array([0.5, -2], dtype=np.float16),
}
F32_PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_written_tensors_are_read_back(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", ARRAYS)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == ARRAYS.keys()
    assert checkpoint.tensors["bits"].dtype == "BF16"
    for name, array in ARRAYS.items():
        read = checkpoint.read(name)
        assert read.dtype == array.dtype
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, array)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_reading_is_a_writable_view_and_never_changes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, ARRAYS)
    before = path.read_bytes()
    first, second = (open_checkpoint(tmp_path).read("matrix") for _ in range(2))
    assert not first.flags.owndata
    assert first.ctypes.data % 64 == second.ctypes.data % 64
    first[:] = -1
    np.testing.assert_array_equal(second, ARRAYS["matrix"])
    assert path.read_bytes() == before


def test_a_misaligned_tensor_is_copied(mapped, safetensors_bytes) -> None:
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (1 + -len(header) % 4)
    file = mapped(safetensors_bytes(header, struct.pack("<2f", 1, 2)))
    array = read_safetensors(file)["x"].read()
    assert array.flags.aligned
    assert array.tolist() == [1, 2]


def entry(**changes: object) -> dict[str, object]:
    return {"x": {**F32_PAIR, **changes}}


def two(first: list[int], second: list[int]) -> dict[str, object]:
    def count(span: list[int]) -> int:
        return (span[1] - span[0]) // 4

    return {
        "a": {"dtype": "F32", "shape": [count(first)], "data_offsets": first},
        "b": {"dtype": "F32", "shape": [count(second)], "data_offsets": second},
    }


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"", "does not begin with {"),
        (b" {}", "does not begin with {"),
        (b"[]", "does not begin with {"),
        (b'{"x"', "not valid JSON"),
        (b'{"\xff": 1}', "not UTF-8"),
        (b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', "NaN is not JSON"),
        (b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
        (b'{"x":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', "JSON"),
        (b'{"x":1,"x":1}', "occurs twice"),
        (b'{"x":[' + b"[]," * 1_000_001 + b"0]}", "values"),
        ({"x": 1}, "must have dtype, shape and data_offsets"),
        (entry(more=1), "must have dtype, shape and data_offsets"),
        (entry(dtype="F8_E4M3"), "cannot be read"),
        (entry(dtype=["F32"]), "cannot be read"),
        (entry(shape=2), "shape"),
        (entry(shape=[True, 2]), "shape"),
        (entry(shape=[-2]), "shape"),
        (entry(shape=[2.0]), "shape"),
        (entry(shape=[2**62]), "shape"),
        (entry(shape=[2**40, 2**40]), "too large"),
        (entry(shape=[0, 2**61, 2**61], data_offsets=[0, 0]), "too large"),
        (entry(shape=[1] * 33), "shape"),
        (entry(shape=[3]), "12 bytes"),
        (entry(dtype="F64"), "16 bytes"),
        (entry(data_offsets=[0]), "data_offsets"),
        (entry(data_offsets=[8, 0]), "data_offsets"),
        (entry(data_offsets=[-8, 0]), "data_offsets"),
        (entry(data_offsets=[0, 16], shape=[4]), "data_offsets"),
        (entry(data_offsets=[0, 10**30]), "data_offsets"),
        (entry(data_offsets=[0, 4], shape=[1]), "the file has"),
        (entry(data_offsets=[4, 8], shape=[1]), "leaves a gap"),
        (two([0, 8], [4, 8]), "overlaps"),
        (two([0, 8], [0, 8]), "overlaps"),
        ({}, "the file has"),
        ({**entry(), "__metadata__": {"n": 1}}, "__metadata__"),
        ({**entry(), "__metadata__": "pt"}, "__metadata__"),
    ],
)
def test_a_file_that_violates_the_format(header, problem, mapped, safetensors_bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(mapped(safetensors_bytes(header, bytes(8))))
    message = str(caught.value)
    assert problem in message
    assert message.startswith(str(Path("folder/weights")))
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("length", [55, 2**31, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file(length: int, mapped, safetensors_bytes) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        read_safetensors(mapped(safetensors_bytes(b"{}", bytes(8), length)))


def small_file(folder: Path) -> bytes:
    write_safetensors(folder / "small", {"a": np.ones((2, 2), np.float32), "b": np.ones(3, "f2")})
    return (folder / "small").read_bytes()


def test_truncated_anywhere(tmp_path: Path, mapped) -> None:
    data = small_file(tmp_path)
    assert len(read_safetensors(mapped(data))) == 2
    for length in range(1, len(data)):
        with pytest.raises(CheckpointError):
            read_safetensors(mapped(data[:length]))
    with pytest.raises(CheckpointError):
        read_safetensors(mapped(data + b"\0"))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_file_with_changed_bytes_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, mapped: Callable
) -> None:
    changed = bytearray(small_file(tmp_path_factory.getbasetemp()))
    offsets = st.integers(0, len(changed) - 1)
    for offset, value in data.draw(st.lists(st.tuples(offsets, st.integers(0, 255)), max_size=8)):
        changed[offset] = value
    try:
        for tensor in read_safetensors(mapped(bytes(changed))).values():
            assert tensor.read().dtype == NUMPY_DTYPE[tensor.info.dtype]
    except CheckpointError as error:
        assert "\n" not in str(error)


def test_an_array_of_another_dtype_is_not_cast(tmp_path: Path) -> None:
    """float32 written as BF16 would become integers; another byte order of the dtype is fine."""
    info = TensorInfo("x", "BF16", (2,), 4)
    with pytest.raises(TypeError, match="Cannot cast"):
        write_tensors(tmp_path / "x", [info], lambda info: [np.ones(2, np.float32)])
    assert not list(tmp_path.iterdir())
    write_tensors(tmp_path / "x", [info], lambda info: [np.array([1, 2], ">u2")])
    assert (tmp_path / "x").read_bytes()[-4:] == b"\1\0\2\0"


def test_only_dtypes_of_the_format_are_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="complex64"):
        write_safetensors(tmp_path / "x", {"z": np.zeros(2, np.complex64)})
    assert not list(tmp_path.iterdir())
