"""The bundled model: a small model that ships with the package, the default of every source.

It is a folder of int8, as `minigpt convert` writes it, and is dequantized for any other dtype.
docs/model-card.md says what it is, what it was trained on, and how.
"""

from __future__ import annotations

from pathlib import Path

BUNDLED_MODEL = Path(__file__).resolve().parent / "tales-6m"
