"""The programs in examples/, run as a reader runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}


def run(program: str, *arguments: str | Path) -> list[str]:
    """Run an example, which must succeed without a word on stderr; return its lines."""
    command = [sys.executable, str(EXAMPLES / program), *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().splitlines()


def test_every_program_is_short_listed_and_tested() -> None:
    programs = sorted(path.name for path in EXAMPLES.glob("*.py"))
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tests = Path(__file__).read_text(encoding="utf-8")
    assert len(programs) == 5
    for name in programs:
        assert f"({name})" in index
        assert f'"{name}"' in tests
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 60
    assert set(re.findall(r"\((\w+\.py)\)", index)) == set(programs)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal to send")
def test_web_stream() -> None:
    command = [sys.executable, str(EXAMPLES / "web_stream.py"), "0"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().decode().strip()
        with urllib.request.urlopen(address, timeout=120) as response:
            text = response.read().decode()
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    assert text.startswith("Once upon a time")
    assert len(text) > 100


def test_score_texts_of_its_own() -> None:
    head, *lines = run("score_texts.py")
    assert head.split() == ["perplexity", "bits/byte", "text"]
    texts = [line.split(maxsplit=2)[2] for line in lines]
    assert [text.split()[0] for text in texts] == ["Once", "The", "king"]


def test_score_texts_of_files(tmp_path: Path) -> None:
    files = [tmp_path / "tale.txt", tmp_path / "noise.txt"]
    files[0].write_text("There was once a poor man who had a little daughter.", encoding="utf-8")
    files[1].write_text("zq vx jk qqq zzz xv kj wq pz", encoding="utf-8")
    _, tale, noise = run("score_texts.py", *files)
    assert tale.endswith("tale.txt")
    assert noise.endswith("noise.txt")


def test_attention_weights_add_up_to_one() -> None:
    _, head, *lines = run("attention_weights.py", "2", "The king gave the queen a crown")
    assert head.split()[:3] == ["The", "king", "gave"]
    rows = [[int(weight) for weight in line.split()[1:]] for line in lines]
    assert [len(row) for row in rows] == list(range(1, len(rows) + 1))  # the causal mask
    assert rows[0] == [100]
    assert all(abs(sum(row) - 100) <= len(row) for row in rows)  # each is rounded


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("batch_file.py", []),
        ("batch_file.py", ["nowhere.txt"]),
        ("batch_file.py", [__file__, "many"]),
        ("batch_file.py", [__file__, "-1"]),
        ("score_texts.py", ["nowhere.txt"]),
        ("score_texts.py", [os.devnull]),
        ("attention_weights.py", ["one"]),
        ("attention_weights.py", ["99"]),
        ("fine_tune.py", []),
        ("fine_tune.py", [__file__, "folder", "many"]),
        ("fine_tune.py", ["nowhere.txt", "folder"]),
        ("web_stream.py", ["99999"]),
    ],
)
def test_a_wrong_argument_is_one_line_on_stderr(
    program: str, arguments: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, str(EXAMPLES / program), *arguments]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, check=False, timeout=300, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert len(done.stderr.splitlines()) == 1
    assert b"Traceback" not in done.stderr


def test_batch_file_gives_each_line_its_own_continuation(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    prompts = ["Once upon a time", "The old woman", "In the forest there lived", *["A king"] * 7]
    file.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    found = [json.loads(line) for line in run("batch_file.py", file, "8")]
    assert sorted(result["prompt"] for result in found) == sorted(prompts)
    assert all(result["text"] for result in found)
    file.write_text("The old woman\n", encoding="utf-8")
    (alone,) = (json.loads(line) for line in run("batch_file.py", file, "8"))
    assert alone in found


@pytest.mark.slow
def test_fine_tune_lowers_the_perplexity(tmp_path: Path) -> None:
    file, folder = tmp_path / "sea.txt", tmp_path / "sea"
    line = "The brig rolled in the swell while the bosun cursed the cook and the gulls wheeled.\n"
    file.write_text(80 * line, encoding="utf-8")
    before, after = run("fine_tune.py", file, folder, "4")
    assert before.startswith("perplexity before: ")
    assert after.startswith("perplexity after: ")
    assert float(after.split()[-1]) < 0.8 * float(before.split()[-1])
    assert (folder / "config.json").is_file()
