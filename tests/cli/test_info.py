"""`minigpt info`, run as a process."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from minigpt.cli.info import _size

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_json(run: Run, model: Path) -> None:
    done = run("info", model, "--json")
    facts = json.loads(done.stdout)
    V, T, C, L = 262, 2048, 16, 2
    layer = 2 * 2 * C + (C * 3 * C + 3 * C) + (C * C + C) + (C * 4 * C + 4 * C) + (4 * C * C + C)
    assert facts["parameters"] == V * C + T * C + L * layer + 2 * C
    assert (facts["n_layer"], facts["n_embd"], facts["vocab_size"]) == (L, C, V)
    assert (facts["dtype"], facts["files"]) == ("f32", ["model.safetensors"])
    assert facts["disk_bytes"] == (model / "model.safetensors").stat().st_size
    assert facts["weights_bytes"] == 4 * facts["parameters"]
    assert facts["kv_cache_bytes"] >= 2 * 4 * L * T * C
    assert facts["memory_bytes"] == facts["weights_bytes"] + facts["kv_cache_bytes"]


def test_table(run: Run, model: Path) -> None:
    text = run("info", model).stdout.decode()
    assert "2 of width 16" in text
    assert "2048 tokens" in text
    assert "tied head" in text


def test_a_damaged_file(fails: Callable[..., None], model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    fails(1, "model.safetensors", "info", broken)


def test_units_of_sizes() -> None:
    assert [_size(n) for n in (0, 999, 1000, 1_234_567, 999_960_000, 51 * 10**9)] == [
        "0 bytes", "999 bytes", "1.0 kB", "1.2 MB", "1.0 GB", "51.0 GB",
    ]  # fmt: skip
