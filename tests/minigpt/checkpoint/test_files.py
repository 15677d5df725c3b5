"""Safe opening of files, strict JSON, and atomic writes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import minigpt
from minigpt.checkpoint import write_file
from minigpt.checkpoint.atomic import creating_folder, replacing
from minigpt.checkpoint.files import map_file, read_small_file
from minigpt.checkpoint.strict_json import parse_json_object, read_json_object
from minigpt.errors import CheckpointError, ConfigError

POSIX = pytest.mark.skipif(os.name != "posix", reason="a POSIX system's own")


def test_a_small_file_and_its_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_small_file(tmp_path / "x", 5, ConfigError) == b"12345"
    with pytest.raises(ConfigError, match="larger than 4 bytes"):
        read_small_file(tmp_path / "x", 4, ConfigError)


def test_a_missing_or_empty_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="is a folder"):
        map_file(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        map_file(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="is empty"):
        map_file(tmp_path / "empty")
    with pytest.raises(CheckpointError):
        map_file(tmp_path / "zero\0byte")


@POSIX
def test_a_pipe_or_device_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="pipe or device"):
            map_file(path)


@POSIX
def test_a_file_larger_than_memory_maps(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        try:
            file.truncate(2**37)  # 128 GiB, of which nothing is on the disk
        except OSError:
            pytest.skip("this file system has no such large files")
    with map_file(path) as data:
        assert data[2**37 - 1] == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"[1]", "holds a JSON list"),
        (b"null", "holds a JSON NoneType"),
        (b'{"a": 1, "a": 1}', "'a' occurs twice"),
        (b'{"b": {"a": 1, "c": 2, "a": 3}}', "'a' occurs twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 text .byte 7"),
        (b"{\0}", "not valid JSON"),
        (b'{"a": [' + b"[]," * 2_000_001 + b"]}", "more than 2000000 values"),
    ],
)
def test_json_that_is_not_strict(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_json_object(data, "config.json", ConfigError)
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


def test_json_that_is_strict(tmp_path: Path) -> None:
    write_file(tmp_path / "x.json", b'{"a": [1, 2.5, "\xc3\xa9", null, true, {}]}')
    assert read_json_object(tmp_path / "x.json", 99, ConfigError) == {
        "a": [1, 2.5, "é", None, True, {}]
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_file(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["x"]


@POSIX
def test_a_full_disk_leaves_the_old_file() -> None:
    program = """
        import resource, signal, sys, tempfile
        from pathlib import Path
        from minigpt.checkpoint import write_file
        from minigpt.errors import CheckpointError
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x"
            write_file(path, b"old")
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # "disk full" past 1000 bytes
            try:
                write_file(path, bytes(100_000))
            except CheckpointError as error:
                assert "x: cannot be written: " in str(error), error
                assert path.read_bytes() == b"old"
                assert [p.name for p in path.parent.iterdir()] == ["x"]
                print("left as it was")
    """
    assert run_python(program) == "left as it was\n"


def test_a_missing_folder_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_file(tmp_path / "absent" / "x", b"")


def test_temporary_files_of_a_killed_process_are_removed(
    tmp_path: Path,
) -> None:
    stale = tmp_path / ".x.00000000.tmp"
    stale.write_bytes(b"half")
    bystander = tmp_path / ".y.00000000.tmp"
    bystander.touch()
    with replacing(tmp_path / "x") as file:
        file.write(b"first")
        write_file(tmp_path / "x", b"second")
        assert (tmp_path / "x").read_bytes() == b"second"
    assert (tmp_path / "x").read_bytes() == b"first"
    assert names(tmp_path) == [bystander.name, "x"]


@POSIX
def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_file(tmp_path / "x", b"")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def run_python(program: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(minigpt.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/..", "a\0b"])
def test_a_path_that_names_nothing_new(name: str) -> None:
    for write in (creating_folder, replacing):
        with (
            pytest.raises(CheckpointError, match="does not name a new folder or file"),
            write(Path(name)),
        ):
            raise AssertionError("never comes here")
