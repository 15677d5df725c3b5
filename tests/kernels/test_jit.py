"""Compiled kernels in the cache: never stale, never another's, never the reason for a failure."""

from __future__ import annotations

import ast
import compileall
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from random import Random

import llvmlite
import numba
import numpy as np
import pytest

from minigpt.errors import MinigptWarning
from minigpt.kernels import events, jit

ROOT = Path(__file__).resolve().parents[2]

# Compiles one kernel; prints whether its folder was missing, cache hits, the result, the folder.
PROGRAM = """
import os
from minigpt.kernels import jit
from minigpt.kernels.cache_dir import cache_folder
cache = cache_folder()
missing = cache is None or not (cache / jit._folder()).exists()
@jit.entry
def add(a, b):
    return a + b
result = add(2, 3)
print(missing, sum(add.stats.cache_hits.values()), result, jit._folder())
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


@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", None], ids=["empty", "other", "cut"])
@pytest.mark.slow
def test_a_damaged_file_is_recompiled(tmp_path, content):
    cache = tmp_path / "cache"
    folder = cache / run(tmp_path, MINIGPT_CACHE=str(cache))[3]
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1] if content is None else content)
    assert run(tmp_path, MINIGPT_CACHE=str(cache))[1:3] == ["0", "5"]
    assert run(tmp_path, MINIGPT_CACHE=str(cache))[1:3] == ["1", "5"]


def test_an_empty_minigpt_cache_turns_the_cache_off(tmp_path):
    assert run(tmp_path, MINIGPT_CACHE="")[:3] == ["True", "0", "5"]


def test_a_folder_that_cannot_be_created_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    cache = str(tmp_path / "file" / "cache")
    assert run(tmp_path, MINIGPT_CACHE=cache)[:3] == ["True", "0", "5"]


def test_a_changed_entry_is_recompiled(tmp_path):
    cache = str(tmp_path / "cache")
    run(tmp_path, MINIGPT_CACHE=cache)
    changed = PROGRAM.replace("return a + b", "return a - b")
    assert run(tmp_path, changed, MINIGPT_CACHE=cache)[1:3] == ["0", "-1"]


def test_a_change_in_any_kernel_changes_the_folder(tmp_path, package):
    """Numba itself does not notice a change in a function that the entry calls."""
    copy = package
    cache = str(tmp_path / "cache")
    before = run(tmp_path, root=copy, MINIGPT_CACHE=cache)[3]
    assert run(tmp_path, root=copy, MINIGPT_CACHE=cache)[3] == before
    change_a_number(copy)
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


# What one process compiled with these settings, another without them must not load.
SETTINGS = [
    "OPT",
    "DEBUGINFO_DEFAULT",
    "BOUNDSCHECK",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "ENABLE_AVX",
    "CPU_NAME",
    "CPU_FEATURES",
    "LLVM_REFPRUNE_PASS",
    "LLVM_REFPRUNE_FLAGS",
    "EXTEND_VARIABLE_LIFETIMES",
    "DISABLE_INTEL_SVML",
    "USING_SVML",
    "DEBUG_NRT",
    "NRT_STATS",
    "ENABLE_PROFILING",
    "JIT_COVERAGE",
]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_compiler_changes_the_folder(monkeypatch, name):
    before = jit._folder()
    monkeypatch.setattr(numba.config, name, "changed")
    assert jit._folder() != before


@pytest.mark.parametrize("name", ["NUMBA_NUM_THREADS", "THREADING_LAYER", "CACHE_DIR"])
def test_other_settings_do_not_change_the_folder(monkeypatch, name):
    before = jit._folder()
    monkeypatch.setattr(numba.config, name, "changed")
    assert jit._folder() == before


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (numba, "__version__", "0"),
        (np, "__version__", "0"),
        (llvmlite, "__version__", "0"),
        (jit, "BOUNDS_CHECK", 2),
        (jit, "_CODE", ""),
    ],
    ids=["numba", "numpy", "llvmlite", "bounds", "code"],
)
def test_a_version_or_a_property_of_the_system_changes_the_folder(monkeypatch, module, name, value):
    before = jit._folder()
    monkeypatch.setattr(module, name, value)
    assert jit._folder() != before


def test_amx_counts_where_it_would_be_used(monkeypatch):
    """Kernels for processors without it can be shared with machines that have it."""

    class Target:
        """A target whose code may use these features, and a context that compiles for it."""

        def __init__(self, features):
            self.target_context, self.features = self, features

        def codegen(self):
            return self

        def magic_tuple(self):
            return ("triple", "name", self.features)

    for features, names in (("+avx2,+amx-tile", 2), ("+avx2,-amx-tile", 1)):
        monkeypatch.setattr(jit, "cpu_target", Target(features))
        found = set()
        for allowed in (True, False):
            monkeypatch.setattr(jit, "amx_allowed", lambda allowed=allowed: allowed)
            found.add(jit._folder())
        assert len(found) == names


def test_the_environment_reaches_the_folder(tmp_path):
    program = "from minigpt.kernels import jit; print(jit._folder())"
    names = [run(tmp_path, program, **{k: v}) for k, v in (("A", ""), ("NUMBA_OPT", "0"))]
    assert names[0] != names[1]


def name_of(function, *arguments):
    """The name of the entry of a function for the types of the arguments."""
    return jit._KernelCache(function)._name(tuple(numba.typeof(a) for a in arguments))


def test_the_name_of_an_entry_depends_on_signature_and_code():
    def first(a):
        return a + 1

    def second(a):
        return a + 1

    def third(a):
        return a + 2

    second.__qualname__ = second.__name__ = third.__name__ = first.__name__
    third.__qualname__ = first.__qualname__
    array = np.zeros(1, np.float32)
    read_only = array.copy()
    read_only.flags.writeable = False
    names = [name_of(first, a) for a in (1, 1.0, np.float32(1), array, read_only, array[None])]
    assert len({*names, name_of(second, 1), name_of(third, 1)}) == len(names) + 2
    assert name_of(first, 1) == names[0]


def test_the_entry_of_another_signature_is_not_loaded(monkeypatch, tmp_path):
    """Even where both have one name, as types of two classes of one name can have."""
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(jit._KernelCache, "_name", lambda cache, sig: "name")
    assert [jit.entry(add)(2, 3), jit.entry(add)(2.5, 3.5), jit.entry(add)(2.5, 3.5)] == [5, 6, 6]
    other, same = jit.entry(add), jit.entry(add)
    assert [other(2, 3), same(2, 3)] == [5, 5]
    assert [sum(f.stats.cache_hits.values()) for f in (other, same)] == [0, 1]


def add(a, b):
    return a + b


def test_what_an_entry_encloses_is_not_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))

    def make(number):
        @jit.entry
        def add_number(a):
            return a + number

        return add_number

    assert [make(1)(1), make(2)(1)] == [2, 3]
    assert not list(tmp_path.iterdir())


def test_code_that_cannot_be_read_is_not_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(jit, "_CODE", "")
    monkeypatch.setattr(jit, "_warned", False)
    with pytest.warns(MinigptWarning, match="code cannot be read"):
        assert jit.entry(add)(1, 2) == 3
    assert not list(tmp_path.iterdir())


def test_a_program_learns_that_kernels_are_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    calls = []
    token = events.on_compile.set(lambda: calls.append(1))
    try:
        jit.entry(add)(1, 2)
        assert len(calls) == 1
        jit.entry(add)(1, 2)  # from the cache
        assert len(calls) == 1
    finally:
        events.on_compile.reset(token)


def test_a_program_learns_once_that_nothing_can_be_kept(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(jit, "_warned", False)
    with pytest.warns(MinigptWarning) as warned:
        assert jit.entry(add)(1, 2) == 3
        assert jit.entry(add)(1.5, 2) == 3.5
    (warning,) = warned
    assert str(tmp_path / "file") in str(warning.message)
    assert "MINIGPT_CACHE" in str(warning.message)
    monkeypatch.setattr(jit, "_warned", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jit.entry(add)(1, 2) == 3  # a warning that is an error changes no result


# Adds numbers of several types, each by machine code of its own; prints the results.
MIXED = """
import sys
from minigpt.kernels import jit
@jit.entry
def add(a, b):
    return a + b
@jit.entry
def subtract(a, b):
    return a - b
kinds = (int, float, complex)
shift = int(sys.argv[1])
for kind in kinds[shift:] + kinds[:shift]:
    print(add(kind(2), kind(3)), subtract(kind(2), kind(3)))
"""


@pytest.mark.skipif(os.name != "posix", reason="kills processes by a signal")
@pytest.mark.slow
def test_processes_that_compile_at_once_share_a_cache(tmp_path):
    """Some are killed, and files are damaged: no process ever runs the code of another type."""
    random = Random(13)
    cache, program = tmp_path / "cache", tmp_path / "program.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{MIXED}")
    environment = {**os.environ, "MINIGPT_CACHE": str(cache)}

    def start(shift):
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(program), str(shift)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    for _ in range(3):
        processes = [start(shift) for shift in (0, 1, 2, 0)]
        time.sleep(random.uniform(0.5, 3))
        processes[0].kill()
        for file in random.sample(found := sorted(cache.rglob("*.bin")), len(found) // 2):
            data = file.read_bytes()
            file.write_bytes(data[: random.randrange(len(data) + 1)])
        for process in processes:
            lines = process.communicate()[0].splitlines()
            was_killed = process is processes[0]
            assert process.returncode in ((0, -signal.SIGKILL) if was_killed else (0,))
            assert set(lines) <= {"5 -1", "5.0 -1.0", "(5+0j) (-1+0j)"}
            assert len(lines) == 3 or was_killed
    assert len(list(cache.rglob("*.bin"))) == 6


# ---- code without source -----------------------------------------------------------------------


@pytest.fixture
def package(tmp_path):
    """A copy of the package, without links, which tests can change."""
    copy = tmp_path / "copy"
    shutil.copytree(
        ROOT / "minigpt",
        copy / "minigpt",
        ignore=shutil.ignore_patterns("__pycache__", "model.safetensors"),
    )
    return copy


def change_a_number(package):
    file = package / "minigpt" / "kernels" / "simd" / "atomics.py"
    text = file.read_text(encoding="utf-8")
    changed = re.sub(r"SLEEP_TIME = \d+", "SLEEP_TIME = 7", text)
    assert changed != text
    file.write_text(changed, encoding="utf-8")


def without_source(package):
    """The package as bytecode alone."""
    compileall.compile_dir(package, quiet=2, legacy=True)
    for file in package.rglob("*.py"):
        file.unlink()


def test_without_source_the_cache_goes_by_the_bytecode(tmp_path, package):
    compiled, changed = tmp_path / "compiled", tmp_path / "changed"
    shutil.copytree(package, changed)
    without_source(package.rename(compiled))
    change_a_number(changed)
    without_source(changed)
    cache = str(tmp_path / "cache")
    first = run(tmp_path, root=compiled, MINIGPT_CACHE=cache, PYTHONHASHSEED="1")
    again = run(tmp_path, root=compiled, MINIGPT_CACHE=cache, PYTHONHASHSEED="2")
    other = run(tmp_path, root=changed, MINIGPT_CACHE=cache)
    assert first[:3] == ["True", "0", "5"]
    assert again == ["False", "1", "5", first[3]]
    assert other[:3] == ["True", "0", "5"]
    assert other[3] != first[3]


def test_an_archive_has_the_folder_of_its_source(tmp_path, package):
    """zipapp and zipimport: the same code, the same kernels."""
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", package)
    cache = str(tmp_path / "cache")
    first = run(tmp_path, root=Path(archive), MINIGPT_CACHE=cache)
    assert first[:3] == ["True", "0", "5"]
    assert run(tmp_path, root=Path(archive), MINIGPT_CACHE=cache) == ["False", "1", "5", first[3]]
    assert run(tmp_path, root=package, MINIGPT_CACHE=cache)[3] == first[3]


def test_the_bundled_model_of_an_archive_is_an_error_of_one_line(tmp_path, package):
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", package)
    program = """
from minigpt import GPTModel, GPTTokenizer, SourceError
for kind in (GPTModel, GPTTokenizer):
    try:
        kind.from_pretrained()
    except SourceError as error:
        print(str(error).count("bundled model is missing"), len(str(error).splitlines()))
"""
    assert run(tmp_path, program, root=Path(archive)) == ["1", "1", "1", "1"]


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
