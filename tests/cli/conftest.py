"""Fixtures: a tiny model on disk, and functions that run the command line as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from minigpt.checkpoint import write_safetensors
from minigpt.config import GPTConfig
from minigpt.tokenizer.bpe import byte_symbols
from minigpt.weights.table import tensor_shapes

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "minigpt"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w"]
N_POSITIONS = 2048  # enough to interrupt a generation
# Processes import the checkout's package from any working folder.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of 2 layers and 262 tokens: bytes, merges, <|endoftext|>."""
    folder = tmp_path_factory.mktemp("model")
    tokens = [*byte_symbols(), *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>"]
    data = {
        "model_type": "gpt2",
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "n_positions": N_POSITIONS,
        "vocab_size": len(tokens),
        "activation_function": "gelu",
        "eos_token_id": len(tokens) - 1,
    }
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in tensor_shapes(GPTConfig.from_dict(data, "config")).items()
    }
    # A row of zeros: <|endoftext|> is never the most likely token, and texts have full length.
    tensors["wte.weight"][-1] = 0
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(MERGES) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `minigpt ARGS…` in an empty folder; stdin is empty unless `input` is given."""

    def run(*args: str | bytes | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
        if "input" not in options:
            options = {"stdin": subprocess.DEVNULL, **options}
        environment = ENVIRONMENT | options.pop("env", {})  # type: ignore[operator]
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 300}
        return subprocess.run(
            [*COMMAND, *args], cwd=tmp_path, env=environment, check=False, **(settings | options)
        )

    return run


@pytest.fixture
def fails(run: Run) -> Callable[..., None]:
    """Run `minigpt ARGS…` and assert: no output, exit `code`, one line on stderr with `word`."""

    def fails(code: int, word: str, *args: str | bytes | Path, **options: object) -> None:
        done = run(*args, **options)
        error = done.stderr.decode()
        assert (done.returncode, done.stdout or b"") == (code, b""), error
        assert error.startswith("Error: ")
        assert error.endswith("\n")
        assert len(error.splitlines()) == 1
        assert word in error

    return fails


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `minigpt ARGS…` without waiting for it; it is killed at the end of the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*args: str | Path, **options: object) -> subprocess.Popen[bytes]:
        environment = ENVIRONMENT | options.pop("env", {})  # type: ignore[operator]
        settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        settings |= {"stderr": subprocess.PIPE, "cwd": tmp_path, "env": environment}
        processes.append(subprocess.Popen([*COMMAND, *args], **(settings | options)))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        with process:  # closes its pipes and waits for it
            pass
