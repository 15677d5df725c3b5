"""The disk cache: entries are found again, never stale or damaged, and no error is raised."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from minigpt.tokenizer.disk_cache import load_or_build

FILES = {"one": b"1" * 300_000, "two": b"2"}
VALUE = ([1, 2**40, "Ġlow"], {7 << 32 | 8: 0}, None, True, ("é", 0.5))


class Counted:
    """Returns VALUE, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        return VALUE


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def builds(*runs: dict[str, Any]) -> int:
    """How often `build` is called by calls of load_or_build with these changes of arguments."""
    build = Counted()
    for changes in runs:
        arguments = {"kind": "kind", "code": ["ast"], "files": FILES, **changes}
        assert load_or_build(**arguments, build=build) == VALUE
    return build.calls


def test_a_value_is_built_once(cache: Path) -> None:
    assert builds({}, {}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"files": {**FILES, "one": b"0" * 300_000}},
        {"files": {"one": FILES["one"]}},
        {"files": {"one": FILES["one"], "three": b"2"}},
        {"kind": "other"},
        {"code": ["pytest"]},
        {"code": ["ast", "pytest"]},
    ],
    ids=["content", "one file less", "name", "kind", "other code", "more code"],
)
def test_a_change_of_any_argument_builds_anew(cache: Path, change: dict[str, Any]) -> None:
    assert builds({}, change) == 2


def test_small_files_are_not_cached(cache: Path) -> None:
    few = {"files": {"one": b"1"}}
    assert builds(few, few) == 2
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["empty", "zeros", "short", "one bit"])
def test_a_damaged_entry_is_built_and_written_anew(cache: Path, damage: str) -> None:
    assert builds({}) == 1
    (file,) = (cache / "kind").iterdir()
    data = file.read_bytes()
    bit = bytes([data[40] ^ 1])
    file.write_bytes(
        {
            "empty": b"",
            "zeros": b"\0\0\0\0",
            "short": data[:-1],
            "one bit": data[:40] + bit + data[41:],
        }[damage]
    )
    assert builds({}, {}) == 1
    assert file.read_bytes() == data


def test_without_a_cache_every_call_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", "")
    assert builds({}, {}) == 2
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "file"))
    assert builds({}, {}) == 2


def test_a_full_disk_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minigpt.kernels.cache_dir._write_new", full)
    assert builds({}, {}) == 2


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
def test_a_folder_others_can_write_to_is_not_used(cache: Path) -> None:
    assert builds({}) == 1
    (cache / "kind").chmod(0o777)
    assert builds({}) == 1


def test_a_change_of_the_code_builds_anew(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    parser = tmp_path / "a_parser.py"
    parser.write_text("tokens = 1")
    importlib.import_module("a_parser")
    code = {"code": ["ast", "a_parser"]}
    assert builds(code, code) == 1
    parser.write_text("tokens = 2")
    assert builds(code, code) == 1
