"""What is kept between processes: found again, never stale or damaged, never the reason to fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from minigpt.tokenizer.disk_cache import load_or_build

FILES = {"one": b"1" * 300_000, "two": b"2"}
VALUE = ([1, 2**40, "Ġlow"], {7 << 32 | 8: 0}, None, True, ("é", 0.5))


class Counted:
    """Gives VALUE, and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        return VALUE


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def calls_of_two(*runs: dict[str, Any]) -> int:
    """How often two calls compute; each run may change what they are called with."""
    compute = Counted()
    for changes in runs:
        arguments = {"kind": "kind", "code": __file__, "files": FILES, **changes}
        assert load_or_build(**arguments, compute=compute) == VALUE
    return compute.calls


def test_it_is_computed_once(cache: Path) -> None:
    assert calls_of_two({}, {}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"files": {**FILES, "one": b"0" * 300_000}},
        {"files": {"one": FILES["one"]}},
        {"files": {"one": FILES["one"], "three": b"2"}},
        {"kind": "other"},
        {"code": pytest.__file__},
    ],
    ids=["content", "one file less", "name", "kind", "code"],
)
def test_whatever_differs_is_computed(cache: Path, change: dict[str, Any]) -> None:
    assert calls_of_two({}, change) == 2


def test_small_files_are_not_worth_it(cache: Path) -> None:
    few = {"files": {"one": b"1"}}
    assert calls_of_two(few, few) == 2
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["empty", "zeros", "short", "one bit"])
def test_what_is_damaged_is_computed_and_mended(cache: Path, damage: str) -> None:
    assert calls_of_two({}) == 1
    (file,) = (cache / "kind").iterdir()
    data = file.read_bytes()
    bit = bytes([data[9] ^ 1])
    file.write_bytes(
        {
            "empty": b"",
            "zeros": b"\0\0\0\0",
            "short": data[:-1],
            "one bit": data[:9] + bit + data[10:],
        }[damage]
    )
    assert calls_of_two({}, {}) == 1
    assert file.read_bytes() == data


def test_without_a_cache_it_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", "")
    assert calls_of_two({}, {}) == 2
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "file"))
    assert calls_of_two({}, {}) == 2


def test_a_file_that_cannot_be_written_is_no_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minigpt.tokenizer.disk_cache.write_file", full)
    assert calls_of_two({}, {}) == 2


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
def test_what_others_could_have_written_is_not_loaded(cache: Path) -> None:
    assert calls_of_two({}) == 1
    (cache / "kind").chmod(0o777)
    assert calls_of_two({}) == 1
