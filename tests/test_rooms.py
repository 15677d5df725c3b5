"""The rooms of the source: imports go one way, setup.cfg lists every package, a file ships once."""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "minigpt" / "tales-6m"

# From the bottom to the top: a room imports only from rooms on lines above its own. A folder is a
# room, and so is a file that lies directly in minigpt/.
ORDER = """
kernels
errors bundled processors
arguments encodings
texts
checkpoint
config
weights
source
tokenizer
reference_gpt
model
generation
conversion
api description gguf
evaluation training
benchmark evaluate precompile questions tasks
cli
__main__
"""
RANK = {room: rank for rank, line in enumerate(ORDER.splitlines()) for room in line.split()}

# Imports that go up all the same, each with its reason.
ALLOWED_UP: dict[tuple[str, str], str] = {}

# Names from before the rooms; the second column is the name to use.
OLD_NAMES = {
    "Codes": "QuantizedMatrix",
    "quantize_rows": "quantize_activations",
    "rounded_factor": "to_bf16",
    "add_products": "gemm_accumulate",
    "sum_of_products": "microkernel",
    "begin_products": "configure_tiles",
    "end_products": "release_tiles",
    "HELD": "STORAGE_DTYPE",
    "BESIDE": "AUX_DTYPE",
    "turn_square": "transpose_16x16",
    "foretell": "predict",
    "judged": "scored",
    "hire": "start",
    "dismiss": "stop",
    "take_grads": "pop_grads",
    "flaw": "error",
    "told": "reported",
    "slope": "derivative",
    "turned": "transposed",
    "worth": "scale",
    "piece": "chunk",
    "place": "offset",
    "held": "stored",
    "shown": "short_repr",
    "least": "minimum",
    "most": "maximum",
    "greatest": "maximum",
}


@cache
def modules() -> dict[str, Path]:
    """{dotted name: file} of every module that ships; kernels/ and cli/ are found at the root."""
    found = {}
    for folder in ("minigpt", "kernels", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            if parts[:2] in (["minigpt", "kernels"], ["minigpt", "cli"]):
                continue  # seen through a symbolic link
            parts = parts if folder == "minigpt" else ["minigpt", *parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def room(module: str) -> str:
    """minigpt.model.engine → model, minigpt.api → api, minigpt → ""."""
    return module.split(".")[1] if "." in module else ""


@cache
def imports(module: str) -> tuple[str, ...]:
    """The modules of minigpt that a module imports when it runs, at its top or inside functions."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []
    for node in running_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join(base if node.level else []) or ""
            source = ".".join(part for part in (base, node.module) if part)
            names = [f"{source}.{alias.name}" for alias in node.names]
            found += [name if name in modules() else source for name in names]
    return tuple(name for name in found if name in modules() and name != module)


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, but those under `if TYPE_CHECKING:`, which never run."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from running_nodes(child)


def edges() -> Iterator[tuple[str, str]]:
    """(importer, imported), without those of minigpt/__init__.py, which exports from every room."""
    for module in modules():
        if module != "minigpt":
            yield from ((module, name) for name in imports(module) if name != "minigpt")


def test_the_parser_finds_the_imports() -> None:
    """With no module or no edge found, the tests below would pass."""
    assert len(modules()) > 80
    assert "minigpt.kernels.jit" in modules()
    assert "minigpt.source" in imports("minigpt.api")
    assert "minigpt.kernels.team" in imports("minigpt.model.engine")
    assert len(list(edges())) > 200


def test_every_room_has_a_rank() -> None:
    assert {room(module) for module in modules()} - {""} <= set(RANK)


def test_imports_go_down() -> None:
    up = {
        (importer, imported)
        for importer, imported in edges()
        if room(importer) != room(imported) and RANK[room(imported)] >= RANK[room(importer)]
    }
    assert up == set(ALLOWED_UP)


def test_no_import_is_part_of_a_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for importer, imported in edges():
        if (importer, imported) not in ALLOWED_UP:
            graph.setdefault(importer, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_only_simd_knows_llvm() -> None:
    """LLVM's types and instructions are written in one folder; the rest is Numba."""
    knowing = {
        module
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llvmlite"))
        or (isinstance(node, ast.Import) and node.names[0].name.startswith("llvmlite"))
    }
    assert knowing
    assert {module for module in knowing if ".kernels.simd." not in module} == set()


def test_only_jit_and_simd_know_numba() -> None:
    """Numba's flags are in kernels/jit.py, its types and intrinsics in kernels/simd/."""
    knowing = {
        module
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numba")
        or (isinstance(node, ast.Import) and node.names[0].name.split(".")[0] == "numba")
    }
    assert "minigpt.kernels.jit" in knowing
    outside = {module for module in knowing if ".kernels.simd." not in module}
    assert outside == {"minigpt.kernels.jit"}


def test_old_names_do_not_return() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}; write {OLD_NAMES[name]}"
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in names_of(node)
        if name in OLD_NAMES
    ]
    assert found == []


def names_of(node: ast.AST) -> Iterator[str]:
    """The identifiers that a node of the syntax tree carries."""
    for field in ("id", "attr", "name", "arg"):
        value = getattr(node, field, None)
        if isinstance(value, str):
            yield value


def setup() -> configparser.ConfigParser:
    """The parsed setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_setup_lists_every_package_once() -> None:
    listed = setup()["options"]["packages"].split()
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert sorted(listed) == sorted(packages)


def test_setup_says_where_packages_lie() -> None:
    lines = setup()["options"]["package_dir"].strip().splitlines()
    places = dict(line.replace(" ", "").split("=") for line in lines)
    for name, path in modules().items():
        if path.name == "__init__.py" and (name == "minigpt" or room(name) in ("kernels", "cli")):
            assert ROOT / places[name] == path.parent


@pytest.mark.skipif(os.name == "nt", reason="Git on Windows writes text files in place of links")
@pytest.mark.parametrize("name", ["kernels", "cli"])
def test_a_link_leads_from_the_package_to_a_folder_of_the_root(name: str) -> None:
    link = ROOT / "minigpt" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)


# ---- what is built --------------------------------------------------------------------------


def has_build() -> bool:
    """Whether the package `build` is installed (a folder build/ is importable, too)."""
    try:
        return bool(version("build"))
    except PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and a source distribution, built from a copy of the checkout."""
    if not has_build():
        pytest.skip("needs the package `build`, of the extra `dev`")
    copy, dist = tmp_path_factory.mktemp("source") / "minigpt", tmp_path_factory.mktemp("dist")
    left_out = ("build", "dist", "*.egg-info", "__pycache__", ".*", "venv*", "tests", "bench")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
    command = [sys.executable, "-m", "build", "--outdir", str(dist), str(copy)]
    done = subprocess.run(command, cwd=dist, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return dist


def expected_files() -> list[str]:
    """What an installed minigpt consists of, below site-packages."""
    files = []
    for name, path in modules().items():
        stem = name.replace(".", "/")
        files.append(f"{stem}/__init__.py" if path.name == "__init__.py" else f"{stem}.py")
    files += [f"{name}/py.typed" for name in ("minigpt", "minigpt/kernels", "minigpt/cli")]
    files += [f"minigpt/tales-6m/{path.name}" for path in BUNDLED.iterdir()]
    return sorted(files)


@pytest.mark.slow
def test_a_wheel_holds_each_file_once_and_works(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        archive.extractall(tmp_path)
    assert sorted(names) == expected_files()
    program = (
        "import minigpt.kernels.layout as a, minigpt.cli.main as b; print(a.__file__, b.__file__)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=True,
    )
    inside = [Path(word).resolve() for word in done.stdout.decode().split()]
    package = tmp_path.resolve() / "minigpt"
    assert inside == [package / "kernels" / "layout.py", package / "cli" / "main.py"]


@pytest.mark.slow
def test_a_source_distribution_holds_each_file_once(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()]
    code = [name for name in names if name.endswith(".py")]
    expected = [path.relative_to(ROOT).as_posix() for path in modules().values()]
    assert sorted(code) == sorted(expected)
    assert [name for name in names if name.endswith(".safetensors")] == [
        "minigpt/tales-6m/model.safetensors"
    ]
