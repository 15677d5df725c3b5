"""The data-only pickle machine reads state dicts, calls nothing, and refuses hostile pickles."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.checkpoint.unpickle import Name, Storage, Tensor, read_pickle
from minigpt.errors import CheckpointError

STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\6tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n"
TENSOR = REBUILD + b"(" + STORAGE + b"K\0K\2K\3\x86K\3K\1\x86\x89" + ORDERED + b")RtR"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def read(program: bytes) -> object:
    value, end = read_pickle(program, 0, "weights")
    assert end == len(program)
    return value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_of_python_s_own_pickles(protocol: int) -> None:
    long = [1, -1, 255, 256, 65536, -(2**31), 2**31, 2**80, -(2**80)]
    data = {"a": [None, True, False, 1.5, ""], "b": (), "c": ((1,), (1, 2), (1, 2, 3), tuple(long))}
    data |= {"ü" * 300: long, 5: {}, "long": list(range(1500)), "dict": OrderedDict()}
    assert read(pickle.dumps(data, protocol)) == data


def test_a_tensor_of_a_state_dict() -> None:
    tensor = Tensor(Storage("F32", "0", 6), 0, (2, 3), (3, 1))
    program = b"\x80\2" + ORDERED + b")R(" + text("weight") + TENSOR + b"u}" + text("_metadata")
    assert read(program + ORDERED + b")Rsb.") == {"weight": tensor}


def test_a_global_is_an_inert_name() -> None:
    assert read(b"\x80\2cos\nsystem\n.") == Name("os", "system")


HOSTILE = {
    "REDUCE of another function": b"cos\nsystem\n" + text("true") + b"\x85R.",
    "REDUCE of eval": b"c__builtin__\neval\n" + text("1") + b"\x85R.",
    "REDUCE by STACK_GLOBAL": text("os") + text("system") + b"\x93" + text("true") + b"\x85R.",
    "REDUCE of a dotted attribute": text("collections") + text("OrderedDict.x") + b"\x93)R.",
    "REDUCE of another module": text("os") + text("OrderedDict") + b"\x93)R.",
    "REDUCE of OrderedDict with arguments": ORDERED + b"]\x85R.",
    "REDUCE of a storage": STORAGE + b")R.",
    "REDUCE of text": text("eval") + b")R.",
    "REDUCE without a tuple": ORDERED + b"]R.",
    "torch.load within": b"ctorch.serialization\nload\n" + text("x") + b"\x85R.",
    "GET": b"g0\n.",
    "INST": b"(ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\no.",
    "NEWOBJ": b"ccollections\nOrderedDict\n)\x81.",
    "NEWOBJ_EX": b"ccollections\nOrderedDict\n)}\x92.",
    "BUILD of a tensor": TENSOR + b"}b.",
    "BUILD of a name": b"cos\nsystem\n}b.",
    "EXT1": b"\x82\1.",
    "EXT2": b"\x83\1\0.",
    "EXT4": b"\x84\1\0\0\0.",
    "PERSID": b"Pstorage\n.",
    "BINPERSID of text": text("storage") + b"Q.",
    "BINPERSID of a module": b"(" + text("module") + b"NNNtQ.",
    "BINPERSID, another class": STORAGE.replace(b"FloatStorage", b"QInt8Storage") + b".",
    "BINPERSID, another module": STORAGE.replace(b"ctorch", b"cos") + b".",
    "BINPERSID, a negative size": STORAGE.replace(b"K\6", b"J\xff\xff\xff\xff") + b".",
    "BINPERSID, a view": STORAGE.replace(b"K\6", b"K\6)") + b".",
    "BINPERSID, size true": STORAGE.replace(b"K\6", b"\x88") + b".",
    "READONLY_BUFFER": b"\x98.",
    "NEXT_BUFFER": b"\x97.",
    "LONG4, huge": b"\x8b\xff\xff\xff\x7f.",
    "LONG in decimal": b"L1\n.",
    "BINUNICODE, longer than the file": b"X\xff\xff\xff\xffabc.",
    "BINUNICODE8, huge": b"\x8d" + b"\xff" * 8 + b"abc.",
    "BINBYTES8, huge": b"\x8e" + b"\xff" * 8 + b"abc.",
    "BYTEARRAY8, huge": b"\x96" + b"\xff" * 8 + b"abc.",
    "FRAME, longer than the file": b"\x95" + struct.pack("<Q", 2**40) + b"N.",
    "not UTF-8": b"X\1\0\0\0\xff.",
    "a surrogate": b"X\3\0\0\0\xed\xa0\x80.",
    "GLOBAL without an end": b"cos",
    "GLOBAL, very long": b"c" + b"a" * 5000 + b"\nb\n.",
    "STACK_GLOBAL of numbers": b"K\1K\2\x93.",
    "protocol 6": b"\x80\6N.",
    "protocol 0": b"\x80\0N.",
    "an empty stack at the end": b".",
    "a mark at the end": b"(.",
    "no STOP": b"N",
    "TUPLE1 of nothing": b"\x85.",
    "TUPLE2 over a mark": b"N(N\x86.",
    "TUPLE without a mark": b"Nt.",
    "APPEND to nothing": b"Na.",
    "APPEND to a number": b"K\1Na.",
    "APPENDS to a tuple": b")(Ne.",
    "SETITEM on a list": b"]NNs.",
    "SETITEMS of three": b"}(NNNu.",
    "a key that is a list": b"}]Ns.",
    "a key that is a tuple": b"})Ns.",
    "a key that is a name": b"}cos\nsystem\nNs.",
    "a key twice": b"}(K\1NK\1Nu.",
    "a memo not written": b"h\0.",
    "a long memo not written": b"j\xff\xff\xff\xff.",
    "PUT of nothing": b"q\0.",
    "MEMOIZE of a mark": b"(\x94.",
    "a tensor without a storage": REBUILD + b"(NK\0)))\x89)tR.",
    "a tensor of too few values": REBUILD + STORAGE + b"\x85R.",
    "a tensor, offset below 0": TENSOR.replace(b"K\0K\2", b"J\xff\xff\xff\xffK\2") + b".",
    "a tensor, shape a list": TENSOR.replace(b"K\2K\3\x86", b"]") + b".",
    "a tensor, shape of true": TENSOR.replace(b"K\2K\3\x86", b"\x88K\3\x86") + b".",
    "a tensor, shape of text": TENSOR.replace(b"K\2K\3\x86", b"K\2" + text("3") + b"\x86") + b".",
    "a tensor, shape huge": TENSOR.replace(b"K\2", b"\x8a\x09" + b"\xff" * 8 + b"\0") + b".",
    "a tensor, strides of another length": TENSOR.replace(b"K\3K\1\x86", b"K\1\x85") + b".",
    "a tensor, strides below 0": TENSOR.replace(b"K\3K\1\x86", b"K\3J\xff\xff\xff\xff\x86") + b".",
    "a parameter of a number": b"ctorch._utils\n_rebuild_parameter\nK\1\x88)\x87R.",
    "a parameter with state": b"ctorch._utils\n_rebuild_parameter_with_state\n"
    + TENSOR
    + b"\x88)\x87R.",
    "a tensor of 33 dimensions": TENSOR.replace(b"K\2K\3\x86", b"(" + b"K\1" * 33 + b"t").replace(
        b"K\3K\1\x86", b"(" + b"K\1" * 33 + b"t"
    )
    + b".",
    "unknown opcode": b"\xff.",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_pickle(b"\x80\2" + HOSTILE[name] if HOSTILE[name] else b"", 0, "weights")
    message = str(caught.value)
    assert message.startswith("weights: at byte ")
    assert "\n" not in message
    assert len(message) < 400


def test_nothing_runs(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    for protocol in range(2, 6):
        with pytest.raises(CheckpointError):
            read_pickle(pickle.dumps({"x": Payload()}, protocol), 0, "weights")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "program",
    [
        b")" + b"\x85" * 30_000 + b".",  # tuples, each in the next
        b"]" * 30_000 + b"a" * 29_999 + b".",  # lists, each in the next
        b"]q\0h\0a.",  # a list in itself
        b"}q\0K\1h\0s.",  # a dict in itself
        b"]" + b"q\0h\0\x86" * 10_000 + b".",  # doubling: 2**100000 leaves
        b"N" + b"\x94" * 30_000 + b".",  # memo entries
    ],
)
def test_depth_and_cycles_do_no_harm(program: bytes) -> None:
    value = read(b"\x80\2" + program)
    assert type(value) in (tuple, list, dict, type(None))
    # As arguments, as a key, as a storage: refused without being walked.
    for misuse in (b"R.", b"Q.", b"\x93.", b"Ns."):
        with pytest.raises(CheckpointError):
            read_pickle(b"\x80\2}" + program[:-1] + misuse, 0, "weights")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(
    st.lists(st.sampled_from([*HOSTILE.values(), TENSOR, STORAGE, ORDERED, b"}", b"(", b"\x86"]))
)
def test_any_sequence_of_instructions_is_read_or_refused(parts: list[bytes]) -> None:
    try:
        read_pickle(b"\x80\2" + b"".join(part.rstrip(b".") for part in parts) + b".", 0, "weights")
    except CheckpointError as error:
        assert "\n" not in str(error)
