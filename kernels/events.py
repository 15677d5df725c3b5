"""What a program can learn about its kernels. Imports no Numba, so that it can be set up early."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar

# Called before each kernel that must be compiled, which takes seconds. A program sets it for its
# own context.
on_compile: ContextVar[Callable[[], None] | None] = ContextVar("on_compile", default=None)

# Called once with the reason why compiled kernels cannot be kept. minigpt/errors.py sets it.
on_unsaved: Callable[[str], None] | None = None


class CompilerError(ImportError):
    """Kernels cannot be compiled; the message names the setting that prevents it."""


def import_failure(error: Exception) -> CompilerError:
    """That Numba cannot be imported, why, and the settings that may be the reason."""
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    settings = [
        f"{name}={value}" for name, value in os.environ.items() if name.startswith("NUMBA_")
    ]
    cause = f" (the environment has {', '.join(settings)})" if settings else ""
    return CompilerError(f"Numba cannot be imported: {reason}{cause}")
