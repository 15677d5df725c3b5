"""Compiling with Numba: the decorators of this package, every flag with its reason, the disk cache.

    entry               a function that Python calls; its machine code is cached on disk
    jit                 a function that only compiled code calls: a part of the entries that call it
    inline              as jit, but LLVM always inlines it
    expand              as jit, but Numba copies its body into the caller
    dispatch_on_types   a function whose implementation is chosen by the types of its arguments

The flags:
  nogil=True           the threads of a team run at the same time (team.py)
  error_model="numpy"  x / 0 is inf, as in NumPy: a division does not test its divisor
  fastmath=False       kernels fix the order of every sum, so that a row has the same bits alone, in
                       a batch, and with any number of threads; a compiler that may reassociate
                       would choose another order in every function
  no_rewrites=True     skips Numba's rewriting of array expressions: kernels contain none
  no_…_wrapper=True    no wrapper for calls from Python or C: only compiled code calls this function
NUMBA_BOUNDSCHECK=1 turns bounds checks on, for arrays and for the vectors of simd/.

The cache differs from Numba's own in four ways. Its folder is private to the user and may be
missing (cache_dir.py). Its key contains the source of all kernels, because an entry must be
recompiled when a function that it calls has changed. A damaged file is recompiled, not reported.
And a cached entry runs before most of Numba's compiler is imported, which halves the time to the
first token.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numba.core import types
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.runtime.nrt import rtsys
from numba.extending import overload
from numba.np.numpy_support import as_dtype

from .amx_permission import amx_allowed
from .cache_dir import private_folder

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Parameters = ParamSpec("_Parameters")

# Whether array and vector accesses check their bounds: what NUMBA_BOUNDSCHECK says.
BOUNDS_CHECK: int | None = numba.config.BOUNDSCHECK  # type: ignore[attr-defined]  # not in the stubs

# 0 and 1 as integer arguments of compiled functions. Numba types a Python int that it finds among
# the globals as the literal 0 or 1, and would compile the callee once for each value.
I64_0, I64_1 = np.int64(0), np.int64(1)

# Numba numbers the functions that it compiles, from 1 in every process. LLVM takes two functions of
# one name, type and number for the same, although one was compiled here and the other loaded from
# disk. Functions made in several variants, such as tiles, share a name, so processes must not share
# numbers.
FunctionIdentity._unique_ids = itertools.count(int.from_bytes(os.urandom(7), "little"))

_FLAGS = {"nogil": True, "error_model": "numpy", "fastmath": False, "no_rewrites": True}
_PART_FLAGS = {**_FLAGS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_njit: Any = numba.njit  # Any: the stubs do not list all of these flags


def jit(function: _Function) -> _Function:
    """Compile `function` as a part of the compiled functions that call it."""
    return cast(_Function, _njit(**_PART_FLAGS)(function))


def inline(function: _Function) -> _Function:
    """As `jit`, for one-liners that LLVM must always inline."""
    return cast(_Function, _njit(forceinline=True, **_PART_FLAGS)(function))


def expand(function: _Function) -> _Function:
    """As `jit`, for functions that do little but call large ones: that compiles a fifth faster.

    LLVM optimizes a function of its own together with all that it calls, and once more in its
    caller. A function that is copied into its caller is optimized there alone.
    """
    return cast(_Function, _njit(inline="always", **_PART_FLAGS)(function))


def entry(function: _Function) -> _Function:
    """Compile `function` for calls from Python, without the GIL, and cache its machine code."""
    dispatcher = _njit(**_FLAGS)(function)
    if cache_folder() is not None:
        dispatcher._cache = _KernelCache(function)
    return cast(_Function, dispatcher)


def dispatch_on_types(choose: Callable[_Parameters, Any]) -> Callable[_Parameters, Any]:
    """A function for compiled code whose implementation depends on the types of its arguments.

    The compiler calls `choose` with the Numba types of the arguments. `choose` returns the Python
    function to compile for them, with the same parameters. A branch inside one function would
    compile both sides for every type.
    """

    @functools.wraps(choose)
    def stub(*_: _Parameters.args, **__: _Parameters.kwargs) -> Any:
        raise TypeError(f"{choose.__name__} is called by compiled code only")

    overload(stub)(choose)
    return stub


def dtype_of(array: Any) -> np.dtype[Any]:
    """The dtype of an array argument, from the Numba type that `dispatch_on_types` passes."""
    return as_dtype(array.dtype)


def is_instance(numba_type: Any, named_tuple: type) -> bool:
    """Whether arguments of a Numba type are instances of the NamedTuple class `named_tuple`."""
    return isinstance(numba_type, types.NamedTuple) and numba_type.instance_class is named_tuple


def compile_for(function: Any, arguments: tuple[Any, ...]) -> None:
    """Compile an entry for the types of `arguments`, or load it from the cache, without a call."""
    function.compile(tuple(numba.typeof(argument) for argument in arguments))


@cache
def cache_folder() -> Path | None:
    """The user's folder for the machine code of these kernels; None where there is no cache."""
    return private_folder(f"kernels-{_fingerprint()}")


def must_compile() -> bool:
    """Whether the cache is empty, so that the first call of a kernel will take seconds."""
    folder = cache_folder()
    return folder is None or not any(folder.glob("*.nbc"))


@cache
def _fingerprint() -> str:
    """A short hash of everything that machine code depends on, except what Numba adds to its keys.

    It covers the source of the kernels, whether the system permits AMX, and whether bounds are
    checked. Numba adds the processor, its features, and its own version.
    """
    settings = repr((amx_allowed(), BOUNDS_CHECK))
    source = _source_hash(Path(__file__).parent)
    return hashlib.sha256((source + settings).encode()).hexdigest()[:16]


@cache
def _source_hash(folder: Path) -> str:
    """A hash of every Python file in a folder and its subfolders."""
    source = hashlib.sha256()
    for file in sorted(folder.resolve().rglob("*.py")):
        source.update(file.read_bytes())
    return source.hexdigest()


class _KernelLocator(_CacheLocator):
    """Tells Numba's cache where its files are and which version of the source they belong to."""

    def __init__(self, file: str, line: int) -> None:
        self._file = file
        self._line = line

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        # The folder's name covers the kernels. An entry elsewhere (minigpt/model/forward.py)
        # may call functions of the files beside it, so the stamp covers these, too.
        return _source_hash(Path(self._file).parent)

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _KernelLocator:
        return cls(py_file, py_func.__code__.co_firstlineno)


class _KernelCacheImpl(CompileResultCacheImpl):
    _locator_classes = [_KernelLocator]  # noqa: RUF012  (Numba's own form)


class _KernelCache(FunctionCache):
    """Numba's cache of one function; a damaged file is a miss, and a full disk is no error."""

    _impl_class = _KernelCacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            # Numba would first load everything that its compiler needs. Machine code needs only the
            # functions that count the references to its arguments.
            rtsys.initialize(target_context)
            return self._load_overload(sig, target_context)
        except Exception:  # unpickling a damaged file can raise anything
            with suppress(Exception):
                self.flush()  # otherwise the damaged index would stay, and nothing could be saved
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:  # a full disk, or an index that cannot be read: compile again next time
            return
