"""Commands on a GGUF file in place of a folder, run as processes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from minigpt.conversion.gguf_export import save_gguf

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="module")
def file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    save_gguf(model, path, "f32")
    return path


def test_generate_and_tokenize_equal_those_of_the_folder(run: Run, model: Path, file: Path) -> None:
    for command in (["generate", "hello w", "--seed", "7", "-n", "20"], ["tokenize", "hello w"]):
        of_file, of_folder = (run(*command, "-m", source) for source in (file, model))
        assert of_file.stdout == of_folder.stdout
        assert of_file.stdout
        assert of_file.returncode == 0


def test_info_differs_from_the_folders_in_names_only(run: Run, model: Path, file: Path) -> None:
    of_file, of_folder = (
        json.loads(run("info", source, "--json").stdout) for source in (file, model)
    )
    assert of_file["files"] == ["model.gguf"]
    for name in ("source", "files", "disk_bytes"):
        del of_file[name], of_folder[name]
    assert of_file == of_folder


def test_a_truncated_file(fails: Callable[..., None], file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:20_000])
    fails(1, "cut.gguf", "info", tmp_path / "cut.gguf")
    fails(1, "cut.gguf", "generate", "hello", "-m", tmp_path / "cut.gguf")
