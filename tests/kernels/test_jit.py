"""The cache of compiled kernels: private, fresh, and never the reason that something fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Compiles one kernel, and says whether that was needed and what came out.
PROGRAM = """
from minigpt.kernels import jit
first = jit.must_compile()
@jit.entry
def add(a, b):
    return a + b
result = add(2, 3)
print(first, sum(add.stats.cache_hits.values()), result, jit.cache_folder())
"""


def run(tmp_path: Path, text: str = PROGRAM, **environment: str) -> list[str]:
    """The words that the program prints: first use, cache hits, result, folder."""
    program = tmp_path / "program.py"
    program.write_text(text)
    clean = {k: v for k, v in os.environ.items() if k not in ("MINIGPT_CACHE", "XDG_CACHE_HOME")}
    process = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split()


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    folder = str(tmp_path / "cache")
    assert run(tmp_path, MINIGPT_CACHE=folder)[:3] == ["True", "0", "5"]
    assert run(tmp_path, MINIGPT_CACHE=folder)[:3] == ["False", "1", "5"]


def test_what_is_found_runs_without_the_compiler(tmp_path):
    """Arrays and tuples of them go in, are counted and freed; the compiler is not loaded for it."""
    program = """
import sys
import numpy as np
from minigpt.kernels import jit
from minigpt.kernels.team import Member
@jit.entry
def add(team, number):
    team.scratch[0] += team.sync[0] * number
team = Member(0, 1, np.ones(3, np.int64), np.ones(3, np.float32))
before = sys.getrefcount(team.scratch)
add(team, 3)
add(team, 3)
compiler = "numba.np.arraymath" in sys.modules
print(compiler, sum(add.stats.cache_hits.values()), int(team.scratch[0]))
print(sys.getrefcount(team.scratch) - before)
add(team, 0.5)  # of another type: now it is needed
print(team.scratch[0])
"""
    cache = str(tmp_path / "cache")
    assert run(tmp_path, program, MINIGPT_CACHE=cache) == ["True", "0", "7", "0", "7.5"]
    assert run(tmp_path, program, MINIGPT_CACHE=cache) == ["False", "1", "7", "0", "7.5"]


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
def test_the_folder_is_the_users_alone(tmp_path):
    folder = Path(run(tmp_path, MINIGPT_CACHE=str(tmp_path / "cache"))[3])
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
def test_code_in_a_folder_that_others_can_write_is_not_loaded(tmp_path):
    cache = str(tmp_path / "cache")
    Path(run(tmp_path, MINIGPT_CACHE=cache)[3]).chmod(0o777)
    assert run(tmp_path, MINIGPT_CACHE=cache) == ["True", "0", "5", "None"]


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", b"\x80\x04N."])
def test_a_damaged_file_is_compiled_anew(tmp_path, ending, content):
    cache = str(tmp_path / "cache")
    folder = Path(run(tmp_path, MINIGPT_CACHE=cache)[3])
    for file in folder.glob(f"*.{ending}"):
        file.write_bytes(content)
    assert run(tmp_path, MINIGPT_CACHE=cache)[1:3] == ["0", "5"]
    assert run(tmp_path, MINIGPT_CACHE=cache)[1:3] == ["1", "5"]


def test_the_empty_string_turns_it_off(tmp_path):
    assert run(tmp_path, MINIGPT_CACHE="") == ["True", "0", "5", "None"]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(tmp_path, MINIGPT_CACHE=str(tmp_path / "file" / "cache"))[1:] == ["0", "5", "None"]


@pytest.mark.skipif(sys.platform != "linux", reason="XDG folders are Linux's")
def test_the_default_is_the_users_cache_folder(tmp_path):
    folder = run(tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg"))[3]
    assert Path(folder).parent == tmp_path / "xdg" / "minigpt"


def test_a_change_in_the_function_itself_is_seen(tmp_path):
    cache = str(tmp_path / "cache")
    run(tmp_path, MINIGPT_CACHE=cache)
    changed = PROGRAM.replace("return a + b", "return a - b")
    assert run(tmp_path, changed, MINIGPT_CACHE=cache)[1:3] == ["0", "-1"]


def test_a_change_in_any_kernel_changes_the_folder(tmp_path):
    """Numba alone would not see that a function which the compiled one calls has changed."""
    copy = tmp_path / "copy"
    for name in ("minigpt", "kernels"):
        shutil.copytree(
            ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "setup.cfg", copy)
    cache, path = str(tmp_path / "cache"), str(copy)
    before = run(tmp_path, MINIGPT_CACHE=cache, PYTHONPATH=path)[3]
    assert run(tmp_path, MINIGPT_CACHE=cache, PYTHONPATH=path)[3] == before
    with (copy / "kernels" / "simd" / "vectors.py").open("a") as file:
        file.write("# changed\n")
    after = run(tmp_path, MINIGPT_CACHE=cache, PYTHONPATH=path)
    assert after[:3] == ["True", "0", "5"]
    assert after[3] != before


def test_a_change_in_a_file_beside_the_entry_is_seen(tmp_path):
    """An entry of minigpt/model may call functions of its neighbours."""
    cache = str(tmp_path / "cache")
    (tmp_path / "neighbour.py").write_text("VALUE = 1\n")
    run(tmp_path, MINIGPT_CACHE=cache)
    assert run(tmp_path, MINIGPT_CACHE=cache)[1:3] == ["1", "5"]
    (tmp_path / "neighbour.py").write_text("VALUE = 2\n")
    assert run(tmp_path, MINIGPT_CACHE=cache)[1:3] == ["0", "5"]


def test_no_two_processes_give_a_function_the_same_name(tmp_path):
    """LLVM would take one from the disk and one compiled here, of the same name, for the same: as
    functions that are made in kinds share their name, it would run the wrong one, in silence."""
    program = """
import numba
from minigpt.kernels import jit
def made(kind):
    @jit.jit
    def part(x):
        return x * kind
    return part
three = made(3)
@jit.entry
def add(a, b):
    return three(a) + b
add(2, 3)
names = [overload.fndesc.mangled_name for overload in three.overloads.values()]
print(*names)
"""
    names = [run(tmp_path, program, MINIGPT_CACHE="")[0] for _ in range(2)]
    assert names[0] != names[1]
