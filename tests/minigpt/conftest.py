"""Lets the tests import what stands beside them: tiny_run.py, crash.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
