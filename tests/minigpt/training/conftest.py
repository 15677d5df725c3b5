"""Fixtures of training runs that take milliseconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from minigpt.training import train

_EXPECTED: dict[str, Any] = {}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No flushes to disk, which would take most of the time, and two micro-batches a step."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(train, "_MICRO_BATCH_TOKENS", 16)


@pytest.fixture
def expected(fast: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of an uninterrupted run."""
    if not _EXPECTED:
        folder = tmp_path_factory.mktemp("uninterrupted") / "run"
        _EXPECTED.update(tiny_run.uninterrupted(folder))
    return _EXPECTED


@pytest.fixture
def run(fast: None, tmp_path: Path) -> Path:
    """A new run of twelve steps."""
    tiny_run.create(tmp_path / "run")
    return tmp_path / "run"
