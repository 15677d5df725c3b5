"""How functions are compiled: every Numba flag, with its reason, and the cache on disk.

`jit` is for the parts of a kernel: they are compiled into whatever calls them. `entry` is for
the few functions that Python calls: they release the GIL, and their machine code is kept on
disk for the next process.

The flags:
  nogil=True           the threads of a team run at once (see team.py)
  error_model="numpy"  a division tests for no zero: x / 0 is inf, as in NumPy
  fastmath=False       the kernels fix the order of every sum themselves, so that one row, a
                       batch and any number of threads give the same bits; a compiler that may
                       reassociate would choose another order in every place
  no_rewrites=True     Numba's own rewriting of array expressions: we write none
  no_…_wrapper=True    parts are called by compiled code alone
Bounds checks follow NUMBA_BOUNDSCHECK, which simd/memory.py obeys too.

The cache differs from Numba's own in four ways. Its folder is the user's, private, and may be
absent (see folder.py). Its key holds the text of all kernels, so that a function is compiled anew
when one that it calls has changed. A damaged entry is compiled anew, too. And what is found in it
runs without the compiler, most of which is then never loaded: half of the time to the first token.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.runtime import rtsys

from .amx_permission import amx_allowed
from .cache_dir import private_folder

# Numba numbers the functions that it compiles, in each process from 1 on, and LLVM takes two of one
# name, types and number, the one compiled here and the other come from the disk, for the same.
# Functions that are made in several kinds, such as tiles, share their name: so no two processes may
# share numbers.
FunctionIdentity._unique_ids = itertools.count(int.from_bytes(os.urandom(7), "little"))

_FLAGS = {"nogil": True, "error_model": "numpy", "fastmath": False, "no_rewrites": True}
_PART = {**_FLAGS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def jit(function: Callable[..., Any]) -> Any:
    """Compile `function` as a part of the compiled functions that call it."""
    return numba.njit(**_PART)(function)


def inline(function: Callable[..., Any]) -> Any:
    """As `jit`, for one-liners: LLVM is told to inline them always."""
    return numba.njit(forceinline=True, **_PART)(function)


def entry(function: Callable[..., Any]) -> Any:
    """Compile `function` for calls from Python, and keep the machine code on disk."""
    dispatcher = numba.njit(**_FLAGS)(function)
    if cache_folder() is not None:
        dispatcher._cache = _KernelCache(function)
    return dispatcher


@cache
def cache_folder() -> Path | None:
    """The user's folder for these kernels, compiled; None where there is none."""
    return private_folder(f"kernels-{_fingerprint()}")


def must_compile() -> bool:
    """Nothing compiled is on disk: the first call of a kernel will take its time."""
    folder = cache_folder()
    return folder is None or not any(folder.glob("*.nbc"))


@cache
def _fingerprint() -> str:
    """A short hash of what all compiled code depends on.

    The text of the kernels, whether the system permits AMX, and whether bounds are checked. Numba
    adds the processor and its own version.
    """
    chosen = repr((amx_allowed(), numba.config.BOUNDSCHECK))
    return hashlib.sha256((_text_below(Path(__file__).parent) + chosen).encode()).hexdigest()[:16]


@cache
def _text_below(folder: Path) -> str:
    """A hash of every Python file in a folder and its subfolders."""
    texts = hashlib.sha256()
    for file in sorted(folder.resolve().rglob("*.py")):
        texts.update(file.read_bytes())
    return texts.hexdigest()


class _KernelLocator(_CacheLocator):
    """Tells Numba's cache machinery where: in `cache_folder()`; and how fresh: as the file is."""

    def __init__(self, file: str, line: int) -> None:
        self._file = file
        self._line = line

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        # The folder's name covers the kernels. An entry elsewhere (minigpt/model/forward.py)
        # may call functions of the files beside it, so the stamp covers these, too.
        return _text_below(Path(self._file).parent)

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _KernelLocator:
        return cls(py_file, py_func.__code__.co_firstlineno)


class _KernelCacheImpl(CompileResultCacheImpl):
    _locator_classes = [_KernelLocator]  # noqa: RUF012  (Numba's own form)


class _KernelCache(FunctionCache):
    """Numba's cache of one function, for which a bad file is no entry and a full disk no error."""

    _impl_class = _KernelCacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            # Numba would load all that its compiler knows first. Machine code needs no more than
            # the functions that count the references to its arguments.
            rtsys.initialize(target_context)
            return self._load_overload(sig, target_context)
        except Exception:  # unpickling a damaged file can raise anything
            with suppress(Exception):
                self.flush()  # else the damaged index would stay, and nothing be saved beside it
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:  # a full disk, or an index that cannot be read: compile next time
            return
