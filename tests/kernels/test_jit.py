"""The cache of compiled kernels: private, never stale, and never the reason for a failure."""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Compiles one kernel; prints whether the cache was empty, cache hits, the result and the folder.
PROGRAM = """
from minigpt.kernels import jit
empty = jit.must_compile()
@jit.entry
def add(a, b):
    return a + b
result = add(2, 3)
print(empty, sum(add.stats.cache_hits.values()), result, jit.cache_folder())
"""


def run(tmp_path: Path, text: str = PROGRAM, root: Path = ROOT, **environment: str) -> list[str]:
    """The words that a program prints, run with the minigpt in `root`."""
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(root)!r})\n{text}")
    clean = {k: v for k, v in os.environ.items() if k not in ("MINIGPT_CACHE", "XDG_CACHE_HOME")}
    process = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env={**clean, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split()


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    folder = str(tmp_path / "cache")
    assert run(tmp_path, MINIGPT_CACHE=folder)[:3] == ["True", "0", "5"]
    assert run(tmp_path, MINIGPT_CACHE=folder)[:3] == ["False", "1", "5"]


def test_a_cached_entry_runs_without_the_compiler(tmp_path):
    """Its arguments, arrays and tuples of them, are counted and freed without leaks."""
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
add(team, 0.5)  # another type: now the compiler is needed
print(team.scratch[0])
"""
    cache = str(tmp_path / "cache")
    assert run(tmp_path, program, MINIGPT_CACHE=cache) == ["True", "0", "7", "0", "7.5"]
    assert run(tmp_path, program, MINIGPT_CACHE=cache) == ["False", "1", "7", "0", "7.5"]


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
def test_the_folder_is_private_to_the_user(tmp_path):
    folder = Path(run(tmp_path, MINIGPT_CACHE=str(tmp_path / "cache"))[3])
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
@pytest.mark.slow
def test_a_folder_that_others_can_write_is_not_used(tmp_path):
    cache = str(tmp_path / "cache")
    Path(run(tmp_path, MINIGPT_CACHE=cache)[3]).chmod(0o777)
    assert run(tmp_path, MINIGPT_CACHE=cache) == ["True", "0", "5", "None"]


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", b"\x80\x04N."])
@pytest.mark.slow
def test_a_damaged_file_is_recompiled(tmp_path, ending, content):
    cache = str(tmp_path / "cache")
    folder = Path(run(tmp_path, MINIGPT_CACHE=cache)[3])
    for file in folder.glob(f"*.{ending}"):
        file.write_bytes(content)
    assert run(tmp_path, MINIGPT_CACHE=cache)[1:3] == ["0", "5"]
    assert run(tmp_path, MINIGPT_CACHE=cache)[1:3] == ["1", "5"]


def test_an_empty_minigpt_cache_turns_the_cache_off(tmp_path):
    assert run(tmp_path, MINIGPT_CACHE="") == ["True", "0", "5", "None"]


def test_a_folder_that_cannot_be_created_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(tmp_path, MINIGPT_CACHE=str(tmp_path / "file" / "cache"))[1:] == ["0", "5", "None"]


@pytest.mark.skipif(sys.platform != "linux", reason="XDG folders are Linux's")
def test_the_default_is_the_cache_folder_of_the_user(tmp_path):
    folder = run(tmp_path, XDG_CACHE_HOME=str(tmp_path / "xdg"))[3]
    assert Path(folder).parent == tmp_path / "xdg" / "minigpt"


def test_a_changed_entry_is_recompiled(tmp_path):
    cache = str(tmp_path / "cache")
    run(tmp_path, MINIGPT_CACHE=cache)
    changed = PROGRAM.replace("return a + b", "return a - b")
    assert run(tmp_path, changed, MINIGPT_CACHE=cache)[1:3] == ["0", "-1"]


def test_a_change_in_any_kernel_changes_the_folder(tmp_path):
    """Numba itself does not notice a change in a function that the entry calls."""
    copy = tmp_path / "copy"
    for name in ("minigpt", "kernels"):
        shutil.copytree(
            ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "setup.cfg", copy)
    cache = str(tmp_path / "cache")
    before = run(tmp_path, root=copy, MINIGPT_CACHE=cache)[3]
    assert run(tmp_path, root=copy, MINIGPT_CACHE=cache)[3] == before
    with (copy / "kernels" / "simd" / "vectors.py").open("a") as file:
        file.write("# changed\n")
    after = run(tmp_path, root=copy, MINIGPT_CACHE=cache)
    assert after[:3] == ["True", "0", "5"]
    assert after[3] != before


def test_a_change_in_a_file_beside_the_entry_recompiles_it(tmp_path):
    """The new value of a constant of a neighbouring file reaches the compiled code."""
    program = """
from minigpt.kernels import jit
from neighbour import VALUE
@jit.entry
def add(a):
    return a + VALUE
print(add(2), sum(add.stats.cache_hits.values()))
"""
    cache = str(tmp_path / "cache")
    (tmp_path / "neighbour.py").write_text("VALUE = 1\n")
    assert run(tmp_path, program, MINIGPT_CACHE=cache) == ["3", "0"]
    assert run(tmp_path, program, MINIGPT_CACHE=cache) == ["3", "1"]
    (tmp_path / "neighbour.py").write_text("VALUE = 20\n")
    assert run(tmp_path, program, MINIGPT_CACHE=cache) == ["22", "0"]


def test_bounds_checks_and_amx_change_the_folder(tmp_path):
    program = """
from minigpt.kernels import amx_permission
allowed = amx_permission.amx_allowed()
amx_permission.amx_allowed = lambda: {}
from minigpt.kernels import jit
print(jit.cache_folder())
"""
    cache = str(tmp_path / "cache")
    as_it_is, with_amx, without_amx = (
        run(tmp_path, program.format(amx), MINIGPT_CACHE=cache)
        for amx in ("allowed", "True", "False")
    )
    assert with_amx != without_amx
    assert as_it_is in (with_amx, without_amx)
    checked = run(tmp_path, program.format("allowed"), MINIGPT_CACHE=cache, NUMBA_BOUNDSCHECK="1")
    assert checked != as_it_is


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the processor is x86's"
)
@pytest.mark.slow
def test_code_for_another_processor_is_not_loaded(tmp_path):
    cache = str(tmp_path / "cache")
    older = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}
    assert run(tmp_path, MINIGPT_CACHE=cache)[1:3] == ["0", "5"]
    assert run(tmp_path, MINIGPT_CACHE=cache, **older)[1:3] == ["0", "5"]
    assert run(tmp_path, MINIGPT_CACHE=cache)[1:3] == ["1", "5"]


def imported_names(module: ast.Module) -> dict[str, str]:
    """{name: dotted module} of the `from … import …` statements, with their leading dots."""
    return {
        alias.asname or alias.name: "." * statement.level + (statement.module or "")
        for statement in module.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def compiled_functions(module: ast.Module) -> list[ast.FunctionDef]:
    return [
        function
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef)
        and {d.id for d in function.decorator_list if isinstance(d, ast.Name)}
        & {"entry", "jit", "inline", "dispatch_on_types"}
    ]


def test_compiled_code_uses_nothing_that_the_cache_does_not_cover():
    """The key of a cached entry covers kernels/ and the folder of the entry, and no other file."""
    files = [
        file
        for file in (ROOT / "minigpt").rglob("*.py")
        if not {"kernels", "cli"} & set(file.relative_to(ROOT / "minigpt").parts)
    ]
    checked = 0
    for file in files:
        module = ast.parse(file.read_text(encoding="utf-8"))
        origins = imported_names(module)
        for function in compiled_functions(module):
            checked += 1
            names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
            for name in names & origins.keys():
                origin = origins[name]
                in_its_folder = re.match(r"\.\w", origin)
                assert in_its_folder or origin.startswith("..kernels."), (
                    f"{file}: {function.name} uses {name} of {origin}"
                )
    assert checked >= 5


def test_no_two_processes_give_a_function_the_same_name(tmp_path):
    """LLVM takes functions of one name for the same, even if one was loaded from the cache.

    As functions made in several variants share a name, the wrong one would run.
    """
    program = """
from minigpt.kernels import jit
def make(factor):
    @jit.jit
    def multiply(x):
        return x * factor
    return multiply
triple = make(3)
@jit.entry
def add(a, b):
    return triple(a) + b
add(2, 3)
names = [overload.fndesc.mangled_name for overload in triple.overloads.values()]
print(*names)
"""
    names = [run(tmp_path, program, MINIGPT_CACHE="")[0] for _ in range(2)]
    assert names[0] != names[1]
