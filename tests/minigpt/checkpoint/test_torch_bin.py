"""pytorch_model.bin: files of torch are read exactly; damaged and hostile ones are refused."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.checkpoint.tensors import NUMPY_DTYPE
from minigpt.checkpoint.torch_bin import read_torch_bin
from minigpt.errors import CheckpointError

FORMS = ["zip.bin", "zip-protocol-4.bin", "legacy.bin"]


def numbers(array: np.ndarray, dtype: str) -> list[float]:
    if dtype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64).ravel().tolist()


@pytest.mark.parametrize("form", FORMS)
def test_every_dtype_and_layout_that_torch_wrote(form: str, golden: Path, mapped) -> None:
    expected = json.loads((golden / "expected.json").read_text(encoding="utf-8"))
    tensors = read_torch_bin(mapped((golden / form).read_bytes()))
    assert list(tensors) == list(expected)
    for name, right in expected.items():
        array = tensors[name].read()
        assert (tensors[name].info.dtype, list(array.shape)) == (right["dtype"], right["shape"])
        assert array.dtype == NUMPY_DTYPE[right["dtype"]]
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert numbers(array, right["dtype"]) == right["values"]


def test_the_state_dict_of_a_module(golden: Path, mapped) -> None:
    tensors = read_torch_bin(mapped((golden / "module.bin").read_bytes()))
    assert tensors["weight"].read().tolist() == [[0, 1], [2, 3], [4, 5]]
    assert not tensors["weight"].read().flags.owndata  # a view of the file


# A state dict {"w": float32 [2, 3]} by hand, storage "0" of 6 elements.
PICKLE = (
    b"\x80\2}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
    b"X\1\0\0\x000X\3\0\0\0cpuK\6tQK\0K\2K\3\x86K\3K\1\x86\x89}tRs."
)
DATA = np.arange(6, dtype=np.float32).tobytes()
ENTRIES = {"m/data.pkl": PICKLE, "m/byteorder": b"little", "m/data/0": DATA}


@pytest.mark.parametrize("wide", [False, True])
def test_an_archive_by_hand(wide: bool, mapped, zip_bytes) -> None:
    tensors = read_torch_bin(mapped(zip_bytes(ENTRIES, wide=wide)))
    assert tensors["w"].read().tolist() == [[0, 1, 2], [3, 4, 5]]
    del_order = {name: data for name, data in ENTRIES.items() if name != "m/byteorder"}
    assert read_torch_bin(mapped(zip_bytes(del_order)))["w"].info.shape == (2, 3)


@pytest.mark.parametrize(
    ("entries", "change", "problem"),
    [
        ({"m/byteorder": b"big"}, {}, "byte order"),
        ({"m/data/0": DATA[:-1]}, {}, "23 bytes"),
        ({"m/data/0": DATA + b"\0"}, {}, "25 bytes"),
        ({"m/data/0": None}, {}, "not in the file"),
        ({"m/data.pkl": None}, {}, "0 entries"),
        ({"n/data.pkl": PICKLE}, {}, "2 entries"),
        ({"m/data.pkl": b"\x80\2}."}, {}, "no tensors by name"),
        ({"m/data.pkl": b"\x80\2]."}, {}, "no tensors by name"),
        ({"m/data.pkl": b"\x80\2" + b"N0" * 2**21 + b"N."}, {}, "data.pkl has"),
        ({"m/data.pkl": PICKLE + b"N"}, {}, "after its end"),
        ({"m/data.pkl": PICKLE.replace(b"K\0K\2", b"K\1K\2")}, {}, "reaches past"),
        ({"m/data.pkl": PICKLE.replace(b"K\2K\3\x86", b"K\3K\3\x86")}, {}, "reaches past"),
        ({"m/data.pkl": PICKLE.replace(b"K\3K\1\x86", b"K\4K\1\x86")}, {}, "reaches past"),
        ({"m/data.pkl": PICKLE.replace(b"K\6tQ", b"K\7tQ")}, {}, "do not agree"),
        ({"m/data.pkl": PICKLE.replace(b"Float", b"Double")}, {}, "do not agree"),
        ({"m/data.pkl": PICKLE.replace(b"X\1\0\0\0w", b"K\1")}, {}, "must be text"),
        # 2**31 elements of stride 0 over a few bytes
        (
            {
                "m/data.pkl": PICKLE.replace(
                    b"K\2K\3\x86K\3K\1\x86", b"J\xff\xff\xff\x7f\x85K\0\x85"
                )
            },
            {},
            "share so much",
        ),
        ({"m/data/0*": DATA}, {}, "two entries"),
        ({}, {"m/data/0": {"method": 8}}, "compressed"),
        ({}, {"m/data/0": {"flags": 1}}, "encrypted"),
        ({}, {"m/data/0": {"stored": 23}}, "two sizes"),
        ({}, {"m/data/0": {"stored": 10**6, "size": 10**6}}, "into the directory"),
        ({}, {"m/data/0": {"header": 10**6}}, "past the archive"),
        ({}, {"m/data/0": {"header": 1}}, "overlaps|not where"),
        ({}, {"m/data/0": {"header": 0}}, "overlaps|not where"),
        ({}, {"m/data.pkl": {"stored": 200, "size": 200}}, "overlaps"),
        ({}, {"m/data/0": {"size": 0xFFFFFFFF}}, "lacks its ZIP64"),
        ({}, {"m/data/0": {"disk": 1}}, "another disk"),
    ],
)
def test_a_hostile_archive(entries, change, problem, mapped, zip_bytes) -> None:
    merged = {**ENTRIES, **entries}
    present = {name: data for name, data in merged.items() if data is not None}
    refused(mapped(zip_bytes(present, change)), problem)


def refused(file, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem) as caught:
        read_torch_bin(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_hostile_ends_of_an_archive(mapped, zip_bytes) -> None:
    refused(mapped(zip_bytes(ENTRIES, comment=b"comment")), "end is missing")
    # A comment that is itself an end: the outer one is not the last, the inner one is a lie.
    archive = zip_bytes(ENTRIES)
    refused(mapped(zip_bytes(ENTRIES, comment=archive[-22:])), "directory is not where")
    refused(mapped(b"PK\3\4" + archive), "directory is not where")
    numbers = bytearray(archive)
    struct.pack_into("<HH", numbers, len(archive) - 14, 0xFFFF, 0xFFFF)
    refused(mapped(bytes(numbers)), "cut short")
    wide = bytearray(zip_bytes(ENTRIES, wide=True))
    struct.pack_into("<H", wide, len(wide) - 12, 2)
    refused(mapped(bytes(wide)), "do not agree")
    struct.pack_into("<Q", wide, len(wide) - 22 - 12, 2**63)
    refused(mapped(bytes(wide)), "ZIP64 end is not where")


def legacy(
    magic: bytes = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
    protocol: bytes = b"M\xe9\x03.",
    system: bytes = b"}X\r\0\0\0little_endian\x88s.",
    keys: bytes = b"]X\1\0\0\x000a.",
    storages: bytes = struct.pack("<q", 6) + DATA,
) -> bytes:
    pickles = [b"\x80\2" + part for part in (magic, protocol, system)]
    return b"".join([*pickles, PICKLE, b"\x80\2" + keys, storages])


def test_a_legacy_file_by_hand(mapped) -> None:
    assert read_torch_bin(mapped(legacy()))["w"].read().tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"magic": b"K\1."}, "not one of torch.save"),
        ({"magic": b"}."}, "not one of torch.save"),
        ({"protocol": b"K\1."}, "protocol is 1"),
        ({"system": b"}X\r\0\0\0little_endian\x89s."}, "byte order"),
        ({"system": b"N."}, "byte order"),
        ({"keys": b"N."}, "list of its storages"),
        ({"keys": b"]Na."}, "list of its storages"),
        ({"keys": b"]."}, "follow its last storage"),
        ({"keys": b"]X\1\0\0\x001a."}, "the storage of no tensor"),
        ({"keys": b"](X\1\0\0\x000X\1\0\0\x000e."}, "the storage of no tensor"),
        ({"storages": struct.pack("<q", 5) + DATA}, "cut short or damaged"),
        ({"storages": struct.pack("<q", -1) + DATA}, "cut short or damaged"),
        ({"storages": struct.pack("<q", 6) + DATA[:-1]}, "cut short or damaged"),
        ({"storages": struct.pack("<q", 6) + DATA + b"\0"}, "follow its last storage"),
        ({"storages": b""}, "cut short or damaged"),
    ],
)
def test_a_hostile_legacy_file(changes: dict[str, bytes], problem: str, mapped) -> None:
    refused(mapped(legacy(**changes)), problem)


@pytest.mark.parametrize("stride", [b"K\0", b"\x8a\x08" + b"\0" * 7 + b"\x40"], ids=["0", "2**62"])
def test_the_stride_of_a_dimension_of_one_element_is_ignored(
    stride: bytes, mapped, zip_bytes
) -> None:
    """Multiplied by the size of an element, 2**62 would overflow NumPy's strides."""
    shape = PICKLE.replace(b"K\2K\3\x86K\3K\1\x86", b"K\1K\6\x86" + stride + b"K\1\x86")
    tensors = read_torch_bin(mapped(zip_bytes({**ENTRIES, "m/data.pkl": shape})))
    assert tensors["w"].read().tolist() == [[0, 1, 2, 3, 4, 5]]


def test_other_files(mapped) -> None:
    for data in (b"\0", b"PK", b"not a model at all", b"\x80\2", b"\x93NUMPY", b"GGUF" + bytes(99)):
        with pytest.raises(CheckpointError):
            read_torch_bin(mapped(data))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    refused(mapped(tar.getvalue()), "TAR")


def test_truncated_anywhere(golden: Path, mapped) -> None:
    for data in ((golden / "module.bin").read_bytes(), legacy()):
        for length in range(1, len(data)):
            with pytest.raises(CheckpointError):
                read_torch_bin(mapped(data[:length]))


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_file_with_changed_bytes_is_read_or_refused(
    form: str, data: st.DataObject, golden: Path, mapped: Callable
) -> None:
    changed = bytearray((golden / form).read_bytes())
    offsets = st.integers(0, len(changed) - 1)
    edits = st.lists(st.tuples(offsets, st.integers(0, 255)), min_size=1, max_size=8)
    for offset, value in data.draw(edits):
        changed[offset] = value
    try:
        for tensor in read_torch_bin(mapped(bytes(changed))).values():
            assert tensor.read().dtype == NUMPY_DTYPE[tensor.info.dtype]
    except CheckpointError as error:
        assert "\n" not in str(error)
