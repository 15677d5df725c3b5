"""Lets the tests import what stands beside them: training/tiny_run.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "training"))
