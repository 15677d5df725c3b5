"""README.md against the tree: its commands run, its counts, names and figures are right."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import minigpt
from minigpt.cli.commands import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def between(text: str, start: str, end: str) -> str:
    """The part of a text between two markers, each of which must be there."""
    _, found, rest = text.partition(start)
    part, closed, _ = rest.partition(end)
    assert found, start
    assert closed, end
    return part


def blocks(language: str, text: str = README) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def table(text: str) -> list[list[str]]:
    """The cells of all Markdown rows but heads and rules."""
    rows = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    rules = [i for i, row in enumerate(cells) if set("".join(row)) <= set("-:")]
    return [row for i, row in enumerate(cells) if not {i, i + 1} & set(rules)]


# ---- commands -------------------------------------------------------------------------------

QUICK = blocks("sh", README.partition("<!-- run:")[2])[0].splitlines()


def test_there_are_commands_to_run() -> None:
    assert len(QUICK) >= 5


@pytest.mark.skipif(sys.platform == "win32", reason="the lines are for a POSIX shell")
@pytest.mark.parametrize("line", QUICK)
def test_a_quick_command_runs(line: str, tmp_path: Path) -> None:
    """As typed, in an empty folder, with the installed command's module in its place."""
    command = re.sub(r"\bminigpt\b", f"{shlex.quote(sys.executable)} -m minigpt", line, count=1)
    shell = ["/bin/sh", "-c", command]
    done = subprocess.run(shell, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


LINES = [
    line.partition("  #")[0].strip()
    for block in blocks("sh")
    for line in block.splitlines()
    if re.search(r"(^|[|&] )minigpt ", line)
]


@pytest.mark.parametrize("line", LINES)
def test_a_commands_options_exist(line: str) -> None:
    """Parsed only: their files are a reader's own."""
    words = shlex.split(re.split(r"[|&]", line)[-1])
    assert words[0] == "minigpt"
    command = cli.commands[words[1]]
    try:
        command.make_context(words[1], words[2:])
    except click.BadParameter as error:
        assert "does not exist" in error.format_message()


def test_every_command_is_shown() -> None:
    shown = {shlex.split(re.split(r"[|&]", line)[-1])[1] for line in LINES}
    assert shown == set(cli.commands)


def test_the_python_example_runs(tmp_path: Path) -> None:
    example = blocks("python", README.partition("## In Python")[2])[0]
    python = [sys.executable, "-c", example]
    done = subprocess.run(python, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.split()) == 16


# ---- counts, names, links -------------------------------------------------------------------


def lines_of(cell: str) -> int:
    """The lines of a file, of `functions` in a file, or of a "section" in a Markdown file."""
    path = ROOT / re.search(r"\]\(([^)]+)\)", cell)[1]  # type: ignore[index]
    text = path.read_text(encoding="utf-8")
    what = cell.partition("[")[0]
    if section := re.search(r'"([^"]+)"', what):
        return len(between(text, f"\n## {section[1]}\n", "\n## ").splitlines()) + 1
    names = re.findall(r"`(\w+)`", what)
    if not names:
        return len(text.splitlines())
    functions = {
        node.name: node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)
    }
    return sum(functions[name].end_lineno - functions[name].lineno + 1 for name in names)  # type: ignore[operator]


AFTERNOON = table(between(README, "<!-- afternoon -->", "<!-- end of afternoon -->"))


@pytest.mark.parametrize("row", AFTERNOON, ids=lambda row: row[0])
def test_the_lines_of_the_afternoon(row: list[str]) -> None:
    assert lines_of(row[0]) == pytest.approx(int(row[1]), rel=0.1)


def test_the_sum_of_the_afternoon() -> None:
    stated = re.search(r"\*\*An afternoon\*\*: about ([\d,]+) lines", README)
    assert stated
    total = sum(lines_of(row[0]) for row in AFTERNOON)
    assert total == pytest.approx(int(stated[1].replace(",", "")), rel=0.05)


def test_the_public_names_are_those_of_all() -> None:
    rows = table(between(README, "<!-- public names -->", "<!-- end of public names -->"))
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(names) == sorted(minigpt.__all__)


@pytest.mark.parametrize("part", ["where", "tensor"])
def test_the_index_of_docs_names_what_exists(part: str) -> None:
    """The names in a row or a step occur in the files that it links."""
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    text = between(text, f"<!-- {part} -->", f"<!-- end of {part} -->")
    items = [item for item in re.split(r"\n(?=\|)|\n(?=\d\. )", text) if "](../" in item]
    assert len(items) >= 6
    for item in items:
        files = [ROOT / path for path in re.findall(r"\]\(\.\./([^)]+)\)", item)]
        source = "".join(file.read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(\w+)`", item):
            assert re.search(rf"\b{name}\b", source), name


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    missing = [
        link
        for link in links
        if not link.startswith(("http:", "https:")) and not (page.parent / link).exists()
    ]
    assert missing == []


def test_the_worked_example_names_what_exists() -> None:
    """Each step of CONTRIBUTING's example: a file, and identifiers that occur in it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = between(text, "## Worked example", "Nothing else changes")
    steps = re.split(r"\n\d\. ", part)[1:]
    assert len(steps) >= 6
    for words in (re.findall(r"`([^`]+)`", step) for step in steps):
        file = (ROOT / words[0]).read_text(encoding="utf-8")
        for word in words[1:]:
            if (ROOT / word).is_file():
                file = (ROOT / word).read_text(encoding="utf-8")
            elif "relu2" not in word.lower():
                assert re.search(rf"\b{word}\b", file), word


# ---- figures --------------------------------------------------------------------------------


def figures(text: str, machine: str, size: str) -> dict[str, list[float]]:
    """{engine and dtype: speeds and ratios} of the first table after a machine and a size."""
    part = text[text.index(machine) :]
    part = part[part.index(size) + len(size) :]
    rows = table(
        "|  |\n| --- |\n" + part[part.index("\n|") : part.index("\n\n", part.index("\n|"))]
    )
    return {
        re.sub(r"[*,]| 5\.\d+ on PyTorch [\d.]+", "", row[0]).lower(): [
            float(number)
            for cell in row[1:]
            for number in re.findall(r"[\d.]+", cell.replace(",", ""))
        ]
        for row in rows
        if "(" in "".join(row[1:]) or row[0].startswith("**")
    }


@pytest.mark.parametrize(
    ("machine", "heading", "size"),
    [
        ("Intel Xeon", "## Intel", "111M"),
        ("AMD EPYC (AVX2", "## AMD EPYC, avx2", "111M"),
        ("AMD EPYC (AVX2", "## AMD EPYC, avx2", "1.3B"),
    ],
)
def test_speeds_are_those_of_the_benchmarks(machine: str, heading: str, size: str) -> None:
    stated = figures(README[README.index("## How fast") :], machine, f"| {size} |")
    measured = figures(BENCHMARKS, heading, f"### {size}")
    assert len(stated) >= 8
    for engine, numbers in stated.items():
        assert numbers == measured[engine], engine


def test_generated_tables_are_those_of_the_benchmarks() -> None:
    """bench/page.py writes them in both files."""
    marked = r"<!-- speeds: .*? -->\n(.*?)<!-- end of speeds -->"
    for rows in re.findall(marked, README, re.DOTALL):
        assert len(rows.splitlines()) > 4
        assert rows in BENCHMARKS
