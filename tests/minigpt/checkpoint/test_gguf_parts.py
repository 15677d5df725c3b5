"""Models split into several GGUF files, and files that have no suffix to be known by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from minigpt.checkpoint.gguf_parts import gguf_models, is_gguf, open_parts
from minigpt.errors import CheckpointError


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The files of a model in three parts, as llama.cpp's package writes it."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2", split_max_tensors=2)
    writer.add_context_length(9)
    for number in range(5):
        writer.add_tensor(f"t{number}", np.full((2, 3), number, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [tmp_path / f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def test_any_part_opens_all(parts: list[Path]) -> None:
    for path in parts:
        opened = open_parts(path)
        assert opened.file.path == parts[0]
        assert opened.values["gpt2.context_length"] == 9
        found = {name: tensor.read().tolist() for name, tensor in opened.tensors.items()}
        assert found == {f"t{number}": [[number] * 3] * 2 for number in range(5)}
        assert [opened.tensors[f"t{n}"].file.path for n in (0, 2, 4)] == parts


@pytest.mark.parametrize("named", [0, 1])
def test_a_missing_part_is_named(named: int, parts: list[Path]) -> None:
    parts[2].unlink()
    parts[1 - named].unlink()
    with pytest.raises(CheckpointError, match="one of 3 parts") as caught:
        open_parts(parts[named])
    assert str(caught.value).startswith(str(parts[named]))
    assert str(caught.value).endswith(f"missing are {parts[1 - named].name}, {parts[2].name}")


def renamed(parts: list[Path]) -> Path:
    return parts[0].rename(parts[0].with_name("m.gguf"))


def swapped(parts: list[Path]) -> Path:
    data = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    parts[2].write_bytes(data)
    return parts[0]


def of_another_count(parts: list[Path]) -> Path:
    return parts[0].rename(parts[0].with_name("m-00001-of-00004.gguf"))


def twice(parts: list[Path]) -> Path:
    parts[1].write_bytes(parts[1].read_bytes().replace(b"t2", b"t1"))
    return parts[2]


def of_another_model(parts: list[Path]) -> Path:
    key = b"split.tensors.count\5\0\0\0"
    data = parts[0].read_bytes()
    assert key in data
    parts[0].write_bytes(data.replace(key + b"\5", key + b"\6"))
    return parts[0]


def cut(parts: list[Path]) -> Path:
    parts[2].write_bytes(parts[2].read_bytes()[:50])
    return parts[0]


def huge(parts: list[Path]) -> Path:
    key = b"split.count\2\0\0\0"
    data = parts[0].read_bytes()
    assert key in data
    parts[0].write_bytes(data.replace(key + b"\3\0", key + b"\xff\xff"))
    return parts[0]


@pytest.mark.parametrize(
    ("spoilt", "problem"),
    [
        (renamed, "names must end in -00001-of-00003.gguf"),
        (of_another_count, "names must end in -00001-of-00003.gguf"),
        (swapped, "by its name they must be [1, 3]"),
        (twice, "'t1' is in another part, too"),
        (of_another_model, "split.tensors.count is 6"),
        (cut, "cut short"),
        (huge, "split.count is 65535"),
    ],
)
def test_parts_that_do_not_fit(
    spoilt: Callable[[list[Path]], Path], problem: str, parts: list[Path]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_parts(spoilt(parts))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_models_among_the_files_of_a_folder() -> None:
    names = ["b.GGUF", "a-00002-of-00002.gguf", "a-00001-of-00002.gguf", "config.json", "c.bin"]
    assert gguf_models(names) == [["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"], ["b.GGUF"]]
    assert gguf_models(["x-00002-of-00002.gguf"]) == [["x-00002-of-00002.gguf"]]


def test_a_file_is_known_by_its_suffix_or_its_first_bytes(tmp_path: Path) -> None:
    for name, content, known in (
        ("a", b"GGUF\3\0\0\0", True),
        ("sha256-0a1b", b"GGUF", True),
        ("b", b"GGU", False),
        ("c", b"", False),
        ("d.gguf", b"anything", True),  # opening it says what is wrong
        ("e.bin", b"PK\3\4", False),
    ):
        (tmp_path / name).write_bytes(content)
        assert is_gguf(tmp_path / name) is known, name
    assert not is_gguf(tmp_path)
    assert not is_gguf(tmp_path / "absent")
