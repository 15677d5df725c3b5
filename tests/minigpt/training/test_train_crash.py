"""kill -9 at any moment: the run resumes from a complete checkpoint and ends with the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import CONFIG, create, resume

from minigpt.training.metrics import read_metrics
from minigpt.training.run_folder import newest_step

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HERE.parents[2]), "OPENBLAS_NUM_THREADS": "1"}


def command(what: str, folder: Path) -> list[str]:
    return [sys.executable, str(HERE / "crash.py"), what, str(folder)]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("what", ["create", "resume"])
def test_killed_before_each_file_operation(tmp_path: Path, what: str) -> None:
    done = subprocess.run(
        command(what, tmp_path), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 40


def test_killed_while_saving_after_every_step(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=30, save_every=1, eval_every=10)
    create(tmp_path / "whole", config)
    resume(tmp_path / "whole")
    run = tmp_path / "run"
    create(run, config)
    reached = 0
    for delay in (0.0, 0.017):
        process = subprocess.Popen(command("train", run), env=ENVIRONMENT)
        deadline = time.monotonic() + 60
        while process.poll() is None and newest_step(run) <= reached + 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.wait()
        reached = newest_step(run)
    assert 4 < reached < 30
    resume(run)
    for name in ("model.safetensors", "step-00000030/model.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert untimed(run) == untimed(tmp_path / "whole")


def untimed(run: Path) -> list[dict]:
    return [{**line, "seconds": 0} for line in read_metrics(run / "metrics.jsonl")]
