"""minigpt: run and understand GPT-2-architecture models with NumPy and hand-written Numba kernels.

The public API is what this file exports; it is imported when first used, so that
`import minigpt` alone stays quick (Numba is loaded with the first model).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import GPTModel
    from .config import GPTConfig
    from .errors import MinigptError
    from .tokenizer.tokenizer import GPTTokenizer
    from .training.config import TrainingConfig
    from .training.create import train

__version__ = "0.1.0"
__all__ = ["GPTConfig", "GPTModel", "GPTTokenizer", "MinigptError", "TrainingConfig", "train"]

_HOME = {
    "GPTConfig": ".config",
    "GPTModel": ".api",
    "GPTTokenizer": ".tokenizer.tokenizer",
    "MinigptError": ".errors",
    "TrainingConfig": ".training.config",
    "train": ".training.create",
}

# In a checkout, kernels/ and cli/ lie at its root, and symbolic links put them into this folder.
# Where the file system has no links (Git on Windows writes text files in their place), the root
# joins the folders in which Python looks for subpackages.
_ROOT = Path(__file__).resolve().parent.parent
if not (_ROOT / "minigpt" / "kernels").is_dir() and (_ROOT / "kernels" / "jit.py").is_file():
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
