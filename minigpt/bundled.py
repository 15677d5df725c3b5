"""The model in the box: a small one of our own, which stands in where no source is named.

It comes with the package, in the form that `minigpt convert --dtype int8` writes. What it is, what
it has read and how it was trained: docs/model-card.md.
"""

from __future__ import annotations

from pathlib import Path

BUNDLED_MODEL = Path(__file__).resolve().parent / "tales-6m"
