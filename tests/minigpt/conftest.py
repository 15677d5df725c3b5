"""Lets the tests import what stands beside them: numpy_learner.py, tiny_run.py."""

from __future__ import annotations

import sys
from pathlib import Path

for folder in ("model", "training"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
