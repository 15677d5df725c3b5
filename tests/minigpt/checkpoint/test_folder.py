"""The files of a folder that are read; an index cannot point outside it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from minigpt.checkpoint import open_checkpoint, write_safetensors
from minigpt.errors import CheckpointError, SourceError


def save(path: Path, **values: float) -> None:
    write_safetensors(path, {name: np.full(2, value, "f4") for name, value in values.items()})


def save_index(folder: Path, weight_map: object, name: str = "model.safetensors") -> None:
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / f"{name}.index.json").write_text(text, encoding="utf-8")


def test_the_precedence_of_files(tmp_path: Path, golden: Path) -> None:
    shutil.copy(golden / "module.bin", tmp_path / "shard.bin")
    save_index(tmp_path, {"weight": "shard.bin", "bias": "shard.bin"}, "pytorch_model.bin")
    assert open_checkpoint(tmp_path).files == (tmp_path / "shard.bin",)
    shutil.copy(golden / "module.bin", tmp_path / "pytorch_model.bin")
    assert open_checkpoint(tmp_path).files == (tmp_path / "pytorch_model.bin",)
    save(tmp_path / "shard.safetensors", a=1)
    save_index(tmp_path, {"a": "shard.safetensors"})
    assert open_checkpoint(tmp_path).files == (tmp_path / "shard.safetensors",)
    save(tmp_path / "model.safetensors", b=2)
    assert open_checkpoint(tmp_path).tensors.keys() == {"b"}


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", a=1, b=2)
    save(tmp_path / "2.safetensors", c=3)
    save_index(tmp_path, {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    checkpoint = open_checkpoint(tmp_path)
    assert [checkpoint.read(name).tolist() for name in "abc"] == [[1, 1], [2, 2], [3, 3]]
    with pytest.raises(CheckpointError, match="holds no tensor 'd'"):
        checkpoint.read("d")


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "C:x",
        "..",
        ".",
        "",
        "a\0b",
        "a\nb",
        1,
        None,
    ],
)
def test_an_index_cannot_point_outside_the_folder(shard: object, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    save(tmp_path / "x.safetensors", a=1)
    save_index(folder, {"a": shard})
    with pytest.raises(CheckpointError, match="only files of the same folder") as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_map(weight_map: object, tmp_path: Path) -> None:
    save_index(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match="weight_map"):
        open_checkpoint(tmp_path)


def test_shards_that_contradict_the_index(tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", a=1)
    save_index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    with pytest.raises(CheckpointError, match=r"2\.safetensors: is missing"):
        open_checkpoint(tmp_path)
    save(tmp_path / "2.safetensors", c=1)
    with pytest.raises(CheckpointError, match="lacks 'b'"):
        open_checkpoint(tmp_path)
    save(tmp_path / "2.safetensors", a=1, b=1)
    with pytest.raises(CheckpointError, match=r"'a' is in 1[.]safetensors as well"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no weights; needed: model[.]safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(SourceError, match=r"'model[.]onnx', which cannot be read"):
        open_checkpoint(tmp_path)
    with pytest.raises(SourceError, match="is not a folder"):
        open_checkpoint(tmp_path / "absent")


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (tmp_path / "pytorch_model.bin").write_bytes(pointer)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_checkpoint(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_symbolic_links_are_followed_as_in_the_hub_s_cache(tmp_path: Path) -> None:
    save(tmp_path / "blob", a=1)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to("../blob")
    assert open_checkpoint(folder).read("a").tolist() == [1, 1]
    (tmp_path / "blob").unlink()
    with pytest.raises(CheckpointError, match=r"model[.]safetensors: no such file"):
        open_checkpoint(folder)
