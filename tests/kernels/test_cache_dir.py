"""The cache folder: entries are whole and unchanged, and come from trusted users only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt.kernels import cache_dir
from minigpt.kernels.cache_dir import load, save

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes of files are POSIX's")
root_only = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can be several users"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_entry_is_read_as_it_was_written(cache: Path) -> None:
    assert load("kind", "name") is None
    assert not cache.exists()  # reading creates nothing
    save("kind", "name", b"content")
    save("kind", "empty", b"")
    assert load("kind", "name") == b"content"
    assert load("kind", "empty") == b""
    save("kind", "name", b"other")
    assert load("kind", "name") == b"other"
    assert sorted(path.name for path in (cache / "kind").iterdir()) == ["empty", "name"]


@pytest.mark.parametrize("damage", ["empty", "zeros", "cut", "longer", "one bit"])
def test_a_damaged_entry_is_absent(cache: Path, damage: str) -> None:
    save("kind", "name", b"content")
    data = (cache / "kind" / "name").read_bytes()
    (cache / "kind" / "name").write_bytes(
        {
            "empty": b"",
            "zeros": bytes(len(data)),
            "cut": data[:-1],
            "longer": data + b"\0",
            "one bit": data[:-1] + bytes([data[-1] ^ 1]),
        }[damage]
    )
    assert load("kind", "name") is None


def test_an_entry_in_the_place_of_another_is_absent(cache: Path) -> None:
    save("kind", "name", b"content")
    save("kind", "other", b"other")
    save("other", "name", b"other")
    for source in (cache / "kind" / "other", cache / "other" / "name"):
        shutil.copy(source, cache / "kind" / "name")
        assert load("kind", "name") is None


def test_a_failure_leaves_the_old_entry_and_nothing_else(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("kind", "name", b"old")

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_dir, "_write_new", full)
    with pytest.raises(OSError, match="No space left") as raised:
        save("kind", "name", b"new")
    assert raised.value.filename == str(cache / "kind")
    assert load("kind", "name") == b"old"
    assert len(list((cache / "kind").iterdir())) == 1


def test_what_killed_processes_left_behind_is_removed(cache: Path) -> None:
    save("kind", "name", b"")
    old, new = cache / "kind" / "name.1.tmp", cache / "kind" / "name.2.tmp"
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (0, time.time() - 7200))
    save("kind", "other", b"")
    assert not old.exists()
    assert new.exists()  # another process may be writing it


def test_without_a_cache_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", "")
    save("kind", "name", b"content")
    assert load("kind", "name") is None


@pytest.mark.skipif(sys.platform != "linux", reason="XDG folders are Linux's")
def test_the_default_is_the_cache_folder_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MINIGPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir.cache_folder() == tmp_path / "minigpt"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir.cache_folder() == tmp_path / ".cache" / "minigpt"


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said why, which an application can report."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MINIGPT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert load("kind", "name") is None
    with pytest.raises(OSError, match="no home folder"):
        save("kind", "name", b"content")


# ---- who can write there ---------------------------------------------------------------------


@posix
def test_others_cannot_write_whatever_the_umask_is(cache: Path) -> None:
    before = os.umask(0)
    try:
        save("kind", "name", b"content")
    finally:
        os.umask(before)
    assert (cache / "kind").stat().st_mode & 0o777 == 0o700
    assert (cache / "kind" / "name").stat().st_mode & 0o777 == 0o644


@posix
@pytest.mark.parametrize(
    ("path", "mode", "usable"),
    [
        ("kind/name", 0o666, False),
        ("kind/name", 0o664, False),
        ("kind", 0o777, False),
        ("kind", 0o775, False),
        ("kind", 0o1777, False),
        ("", 0o777, False),
        ("", 0o775, True),  # what its members put there belongs to them, and is refused for that
        ("", 0o1777, True),  # as /tmp is
        ("kind", 0o555, True),
        ("kind/name", 0o444, True),
    ],
)
def test_what_others_can_write_is_not_used(cache: Path, path: str, mode: int, usable: bool) -> None:
    save("kind", "name", b"content")
    (cache / path).chmod(mode)
    try:
        assert (load("kind", "name") is not None) == usable
        if not usable and path != "kind/name":
            with pytest.raises(PermissionError) as raised:
                save("kind", "name", b"content")
            assert raised.value.filename == str((cache / path).resolve())
    finally:
        (cache / path).chmod(0o700)


@posix
def test_links_of_ones_own_are_followed(cache: Path, tmp_path: Path) -> None:
    save("kind", "name", b"content")
    cache.rename(tmp_path / "elsewhere")
    cache.symlink_to(tmp_path / "elsewhere")
    assert load("kind", "name") == b"content"
    cache.unlink()
    cache.symlink_to(cache)  # in a circle
    assert load("kind", "name") is None
    with pytest.raises(OSError):
        save("kind", "name", b"content")


OTHER_USER = 54321


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that all users can reach, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@root_only
@pytest.mark.parametrize("path", ["kind/name", "kind", "."])
def test_what_belongs_to_another_user_is_not_used(
    public: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(public))
    save("kind", "name", b"content")
    os.chown(public / path, OTHER_USER, -1)
    assert load("kind", "name") is None
    monkeypatch.setattr(cache_dir, "_trusted_users", lambda: {0, OTHER_USER})  # it owns the package
    assert load("kind", "name") == b"content"


@root_only
def test_a_link_of_another_user_is_not_followed(
    public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(public / "cache"))
    save("kind", "name", b"content")
    (public / "cache" / "kind").rename(public / "mine")
    (public / "cache" / "kind").symlink_to(public / "mine")
    assert load("kind", "name") == b"content"
    os.chown(public / "cache" / "kind", OTHER_USER, -1, follow_symlinks=False)
    assert load("kind", "name") is None


# Adds two numbers by a compiled entry, as another user; prints the result, how often the entry was
# loaded, and the warnings. Before that, the compiler is used once: it imports more of itself.
PROGRAM = """
import os, sys, warnings
sys.path.insert(0, sys.argv[2])
import minigpt.errors
from minigpt.kernels import jit
def use_compiler(number):
    jit.entry(lambda x: x + number)(1.5)
use_compiler(1)
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
@jit.entry
def add(a, b):
    return a + b
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    result = add(2, 3)
print(result, sum(add.stats.cache_hits.values()), *(warning.message for warning in warned))
"""


@root_only
@pytest.mark.parametrize("owner", [0, OTHER_USER], ids=["root's", "one's own, made read-only"])
def test_another_user_reads_kernels_that_were_compiled_before(public: Path, owner: int) -> None:
    """As in a container: compiled by root in its image, run by another user on a read-only disk."""
    cache, program = public / "cache", public / "program.py"
    program.write_text(PROGRAM)

    def run(user: int) -> str:
        done = subprocess.run(
            [sys.executable, str(program), str(user), str(ROOT)],
            env={**os.environ, "MINIGPT_CACHE": str(cache)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run(0) == "5 0"
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o555)
        os.chown(path, owner, -1)
    assert run(OTHER_USER) == "5 1"
    for path in cache.rglob("*.bin"):
        path.unlink()
    compiled = run(OTHER_USER)
    assert compiled.startswith("5 0 ")
    assert compiled.count("Permission denied; compiled kernels cannot be kept") == 1
