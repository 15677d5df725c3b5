"""GGUF files: read and written as by llama.cpp's Python package; wrong ones refused quickly."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.checkpoint.blocks import F16, F32, Q8_0
from minigpt.checkpoint.gguf import NUMBERS, read_gguf
from minigpt.checkpoint.gguf_writing import NewTensor, write_gguf
from minigpt.errors import CheckpointError

U8, I8, U32, I32, F32_VALUE, BOOL, TEXT, ARRAY = 0, 1, 4, 5, 6, 7, 8, 9


def text(content: bytes | str, length: int | None = None) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(data) if length is None else length) + data


def value(key: bytes | str, kind: int, content: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + content


def array(key: str, kind: int, content: bytes, count: int) -> bytes:
    return value(key, ARRAY, struct.pack("<IQ", kind, count) + content)


def tensor(
    name: bytes | str = "x",
    dimensions: Iterable[int] = (4,),
    kind: int = F32.type,
    offset: int = 0,
    count: int | None = None,
) -> bytes:
    sizes = list(dimensions)
    count = len(sizes) if count is None else count
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", count, *sizes, kind, offset)


def file_of(
    values: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = bytes(64),
    *,
    magic: bytes = b"GGUF",
    version: bytes = b"\3\0\0\0",
    value_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """Builds a GGUF file, also a wrong one."""
    values, tensors = list(values), list(tensors)
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(values) if value_count is None else value_count,
    )
    head = magic + version + struct.pack("<QQ", *counts) + b"".join(values) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


# ---- reading and writing ----


def test_every_type_of_value(mapped) -> None:
    numbers = {0: 200, 1: -3, 2: 60_000, 3: -9, 4: 2**31, 5: -5, 7: True, 10: 2**63, 11: -(2**40)}
    numbers |= {6: 0.5, 12: 1e300}
    assert numbers.keys() == NUMBERS.keys()
    values = [
        value(f"n{kind}", kind, struct.pack("<" + NUMBERS[kind], number))
        for kind, number in numbers.items()
    ]
    values += [
        value("text", TEXT, text("größer")),
        array("texts", TEXT, text("a") + text("") + text("Ġb"), 3),
        array("numbers", I8, b"\xff\x01", 2),
        array("none", TEXT, b"", 0),
    ]
    read = read_gguf(mapped(file_of(values)))
    assert {kind: read.values[f"n{kind}"] for kind in numbers} == numbers
    assert read.values["text"] == "größer"
    assert read.texts("texts") == ["a", "", "Ġb"]
    assert read.texts("none") == []
    assert read.numbers("numbers") == [-1, 1]
    assert read.texts("absent") is None
    assert read.numbers("absent") is None
    for wrong in (lambda: read.texts("numbers"), lambda: read.numbers("texts")):
        with pytest.raises(CheckpointError, match="must be an array of"):
            wrong()


def test_tensors_may_lie_in_any_order_with_gaps_and_other_alignments(mapped) -> None:
    data = np.arange(32, dtype="<f4").tobytes()
    values = [value("general.alignment", U32, struct.pack("<I", 8))]
    tensors = [tensor("late", (2, 3), offset=40), tensor("early", (4,), offset=8)]
    read = read_gguf(mapped(file_of(values, tensors, data, alignment=8)))
    assert read.tensors["late"].read().tolist() == [[10, 11], [12, 13], [14, 15]]
    assert read.tensors["early"].read().tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("version", [2, 3])
def test_versions(version: int, mapped) -> None:
    assert not read_gguf(mapped(file_of(version=struct.pack("<I", version)))).tensors


def test_a_file_of_llama_cpps_package(tmp_path: Path, mapped) -> None:
    """Values, names, shapes and contents are those given to its writer."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "gpt2")
    writer.add_context_length(77)
    writer.add_layer_norm_eps(0.25)
    writer.add_token_list(["a", "Ġb"])
    writer.add_token_types([1, 3])
    writer.add_add_bos_token(False)
    tensors = {
        "matrix": rng.normal(size=(3, 64)).astype(np.float32),
        "half": rng.normal(size=(5, 2)).astype(np.float16),
    }
    for name, content in tensors.items():
        writer.add_tensor(name, content)
    kind = gguf.GGMLQuantizationType.Q8_0
    blocks = gguf.quants.quantize(tensors["matrix"], kind)
    writer.add_tensor("blocks", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    read = read_gguf(mapped((tmp_path / "x.gguf").read_bytes()))
    assert read.values["general.architecture"] == "gpt2"
    assert read.values["gpt2.context_length"] == 77
    assert read.values["gpt2.attention.layer_norm_epsilon"] == 0.25
    assert read.values["tokenizer.ggml.add_bos_token"] is False
    assert read.texts("tokenizer.ggml.tokens") == ["a", "Ġb"]
    assert read.numbers("tokenizer.ggml.token_type") == [1, 3]
    for name, content in tensors.items():
        assert np.array_equal(read.tensors[name].read(), content)
    decoded = gguf.quants.dequantize(blocks, kind)
    assert np.array_equal(read.tensors["blocks"].read(), decoded)


def written(path: Path) -> Path:
    values = {"general.architecture": "gpt2", "n": 7, "eps": 1e-5, "yes": True}
    values |= {"texts": ["a", "Ġb"], "types": [1, -3]}
    tensors = [
        NewTensor("f32", (3, 2), F32),
        NewTensor("f16", (5,), F16),
        NewTensor("q8_0", (2, 64), Q8_0),
    ]

    def blocks(new: NewTensor) -> list[np.ndarray]:
        zeros = np.zeros(new.nbytes // new.encoding.block.itemsize, new.encoding.block)
        return [zeros[:1], zeros[1:]]

    write_gguf(path, values, tensors, blocks)
    return path


def test_llama_cpps_package_reads_our_files(tmp_path: Path) -> None:
    read = gguf.GGUFReader(written(tmp_path / "x.gguf"))
    found = {name: field.contents() for name, field in read.fields.items()}
    assert found["n"] == 7
    assert found["eps"] == float(np.float32(1e-5))
    assert found["yes"] is True
    assert found["texts"] == ["a", "Ġb"]
    assert found["types"] == [1, -3]
    table = {x.name: (x.tensor_type.name, x.shape.tolist()) for x in read.tensors}
    assert table == {"f32": ("F32", [2, 3]), "f16": ("F16", [5]), "q8_0": ("Q8_0", [64, 2])}
    assert (tmp_path / "x.gguf").stat().st_size % 32 == 0


def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"before")

    def blocks(new: NewTensor) -> Iterable[np.ndarray]:
        yield np.zeros(1, np.float32)
        raise CheckpointError("no more")

    with pytest.raises(CheckpointError, match="no more"):
        write_gguf(path, {}, [NewTensor("x", (2,), F32)], blocks)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


# ---- wrong files are refused, with one line, in little time and memory ----

MANY = b"".join(text(f"{n}") + struct.pack("<IB", U8, 0) for n in range(10_001))

WRONG_FILES = {
    "magic": (file_of(magic=b"PK\3\4"), "is not a GGUF file"),
    "empty": (b"GGU", "cut short"),
    "version 1": (file_of(version=b"\1\0\0\0"), "version 1"),
    "version 4": (file_of(version=b"\4\0\0\0"), "version 4"),
    "big-endian": (file_of(version=b"\0\0\0\3"), "big-endian"),
    "count of values": (file_of(data=b"", value_count=2), "cut short"),
    "count of values, huge": (file_of(value_count=2**64 - 1), "values"),
    "count of values, many": (file_of([MANY], value_count=10_001), "values"),
    "count of tensors": (file_of(tensor_count=9), "dimensions"),
    "count of tensors, huge": (file_of(tensor_count=2**63), "tensors"),
    "length of a key": (file_of([text("key", 2**63)], value_count=1), "takes 9223372036854775808"),
    "length of a text": (file_of([value("key", TEXT, text("a", 2**40))]), "cut short"),
    "key is no UTF-8": (file_of([value(b"\xff\xfe", U8, b"\0")]), "not UTF-8"),
    "text is no UTF-8": (file_of([value("key", TEXT, text(b"\xff"))]), "not UTF-8"),
    "name is no UTF-8": (file_of(tensors=[tensor(b"\x80")]), "not UTF-8"),
    "key twice": (file_of([value("key", U8, b"\0")] * 2), "occurs twice"),
    "type of a value": (file_of([value("key", 13, b"\0")]), "type 13"),
    "type of an array": (file_of([array("key", 2**31, b"", 1)]), "does not exist"),
    "nested arrays": (
        file_of([array("key", ARRAY, struct.pack("<IQ", ARRAY, 1) * 50_000, 1)]),
        "array of arrays",
    ),
    "count of numbers": (file_of([array("key", I32, b"", 2**62)]), "takes"),
    "count of numbers, wrapping": (file_of([array("key", I32, b"", 2**63 + 2**62)]), "takes"),
    "count of texts": (file_of([array("key", TEXT, b"", 1000)]), "1000 strings"),
    "count of texts, huge": (file_of([array("key", TEXT, b"", 2**62)]), "more than"),
    "length in an array": (file_of([array("key", TEXT, text("a", 2**62), 1)]), "takes"),
    "alignment 0": (file_of([value("general.alignment", U32, bytes(4))]), "power of two"),
    "alignment 48": (file_of([value("general.alignment", U32, b"0\0\0\0")]), "power of two"),
    "alignment text": (file_of([value("general.alignment", TEXT, text("8"))]), "power of two"),
    "alignment true": (file_of([value("general.alignment", BOOL, b"\1")]), "power of two"),
    "alignment huge": (
        file_of([value("general.alignment", U32, b"\0\0\0\x80")], [tensor()]),
        "from its offset on there are 0",
    ),
    "name twice": (file_of(tensors=[tensor(), tensor(offset=32)]), "occurs twice"),
    "no dimensions": (file_of(tensors=[tensor(dimensions=())]), "0 dimensions"),
    "dimensions": (file_of(tensors=[tensor(dimensions=[1] * 5)]), "5 dimensions"),
    "dimensions, huge": (file_of(tensors=[tensor(count=2**32 - 1)]), "dimensions"),
    "size 0": (file_of(tensors=[tensor(dimensions=(4, 0))]), "at least 1"),
    "sizes that wrap": (file_of(tensors=[tensor(dimensions=(2**32, 2**32))]), "too large"),
    "sizes that wrap to 4": (file_of(tensors=[tensor(dimensions=(2**62 + 1, 4))]), "too large"),
    "size": (file_of(tensors=[tensor(dimensions=(17,))]), "takes 68 bytes"),
    "half a block": (file_of(tensors=[tensor(dimensions=(33,), kind=8)]), "multiple of 32"),
    "half a K-block": (file_of(tensors=[tensor(dimensions=(128,), kind=12)]), "multiple of 256"),
    "type IQ3_S": (file_of(tensors=[tensor(dimensions=(256,), kind=21)]), "IQ3_S; it must be"),
    "type MXFP4": (file_of(tensors=[tensor(dimensions=(256,), kind=39)]), "MXFP4; it must be"),
    "type that is none": (file_of(tensors=[tensor(kind=2**32 - 1)]), "number 4294967295"),
    "offset past the end": (file_of(tensors=[tensor(offset=64)]), "there are 0"),
    "offset huge": (file_of(tensors=[tensor(offset=2**64 - 32)]), "there are 0"),
    "offset askew": (file_of(tensors=[tensor(offset=4)]), "must be a multiple of 32"),
    "overlap": (file_of(tensors=[tensor("x", (9,)), tensor("y", (4,), offset=32)]), "overlaps"),
    "same offset": (file_of(tensors=[tensor("x"), tensor("y")]), "overlaps"),
}


@pytest.mark.parametrize(("data", "problem"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_file(data: bytes, problem: str, mapped) -> None:
    file = mapped(data)
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        read_gguf(file)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    message = str(caught.value)
    assert problem in message
    assert message.startswith(str(Path("folder/weights")))
    assert "\n" not in message
    assert len(message) < 400
    assert peak < 16 << 20
    assert seconds < 10


def test_truncated_anywhere(tmp_path: Path, mapped) -> None:
    data = written(tmp_path / "x.gguf").read_bytes()
    assert len(read_gguf(mapped(data)).tensors) == 3
    last_byte = len(data) - 28  # the last tensor takes 4 · 34 bytes, the rest is padding
    for length in range(1, last_byte + 1):
        try:
            read_gguf(mapped(data[:length]))
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:
            assert length == len(data) - 24


def test_an_array_is_not_read_until_asked_for(mapped) -> None:
    """Parsing a file that is one array of ten megabytes takes little memory."""
    file = mapped(file_of([array("bytes", U8, bytes(10_000_000), 10_000_000)]))
    tracemalloc.start()
    read_gguf(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("valid") / "x.gguf").read_bytes()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_file_with_changed_bytes_is_read_or_refused(
    data: st.DataObject, valid: bytes, mapped: Callable
) -> None:
    changed = bytearray(valid)
    offsets = st.integers(0, len(changed) - 1)
    for offset, byte in data.draw(st.lists(st.tuples(offsets, st.integers(0, 255)), max_size=8)):
        changed[offset] = byte
    try:
        read = read_gguf(mapped(bytes(changed)))
        for stored in read.tensors.values():
            assert stored.read().shape == stored.info.shape
        for key in read.values:
            for ask in (read.texts, read.numbers):
                try:
                    ask(key)
                except CheckpointError as error:
                    assert "\n" not in str(error)
    except CheckpointError as error:
        assert "\n" not in str(error)
