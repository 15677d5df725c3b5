"""Compiling with Numba: the decorators of this package, every flag with its reason, the disk cache.

    entry               a function that Python calls; its machine code is cached on disk
    jit                 a function that only compiled code calls: a part of the entries that call it
    inline              as jit, but LLVM always inlines it
    expand              as jit, but Numba copies its body into the caller
    python_too          as jit, for a function that Python calls, too
    dispatch_on_types   a function whose implementation is chosen by the types of its arguments

The flags:
  nogil=True           the threads of a team run at the same time (team.py)
  error_model="numpy"  x / 0 is inf, as in NumPy: a division does not test its divisor
  fastmath=False       kernels fix the order of every sum, so that a row has the same bits alone, in
                       a batch, and with any number of threads; a compiler that may reassociate
                       would choose another order in every function
  no_rewrites=True     skips Numba's rewriting of array expressions: kernels contain none
  no_…_wrapper=True    no wrapper for calls from C, or from Python: only compiled code calls it
  no references        to arrays are counted: the caller keeps their memory alive, and no kernel
                       allocates an array
NUMBA_BOUNDSCHECK=1 turns bounds checks on, for arrays and for the vectors of simd/.

LLVM optimizes an entry once, together with all functions that it calls. Numba would optimize each
function with all that it calls, again in each of its callers, and generate machine code for all of
them: four times the work.

The machine code of an entry is cached, a file for each signature (cache_dir.py). Numba's own cache
would not do: its key has the source of the entry alone, not of the functions that it calls, nor the
settings that change the code; its index loses entries, or mixes them up, when two processes write
at once; and it imports most of the compiler before it loads an entry, which doubles the time to the
first token.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from . import cache_dir, events
from .amx_permission import amx_allowed
from .code_hash import bytecode_text, hash_of_folders
from .events import CompilerError, import_failure

try:
    import numba
except Exception as error:
    raise import_failure(error) from error
from numba.core import llvm_bindings, types
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import NullCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps
from numba.core.typed_passes import NativeLowering
from numba.extending import overload
from numba.np.numpy_support import as_dtype

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

# Held by a thread while it compiles, or loads machine code; it can take it again.
compiler_lock = global_compiler_lock


# ---- how Numba compiles ----------------------------------------------------------------------


class _EntryLibrary(JITCodeLibrary):
    """The LLVM module of an entry, and those of all functions that it calls."""

    def add_linking_library(self, library: Any) -> None:
        """Link the module of a function that this one calls, and those of its own callees."""
        if not isinstance(library, _PartLibrary):
            super().add_linking_library(library)
            return
        libraries = [*self._linking_libraries, library, *library._linking_libraries]
        self._linking_libraries = list(dict.fromkeys(libraries))

    def _optimize_functions(self, ll_module: Any) -> None:
        """Leave a function as it is: it is optimized with its callees."""
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        """Optimize all functions. Kernels are vectorized, and unrolled as far as registers go,
        by hand; what LLVM would unroll further spills registers."""
        level: int = numba.config.OPT  # type: ignore[attr-defined]  # not in the stubs
        llvm: Any = llvm_bindings.llvm  # type: ignore[attr-defined]  # llvmlite.binding
        tuning = llvm.create_pipeline_tuning_options(speed_level=level)
        tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_unrolling = False
        passes = llvm.create_pass_builder(self._codegen._tm, tuning)
        passes.getModulePassManager().run(self._final_module, passes)


class _PartLibrary(_EntryLibrary):
    """The LLVM module of a function that only compiled code calls: a part of entries."""

    def get_pointer_to_function(self, name: str) -> int:
        """0, for none: a part has no machine code of its own."""
        return 0

    @property
    def codegen(self) -> Any:
        """What Numba would have set the address of the function's environment; parts need none."""
        return _NO_ENVIRONMENT

    def _get_module_for_linking(self) -> Any:
        if self._shared_module is None:
            for function in self._final_module.functions:
                if not function.is_declaration:
                    function.linkage = "linkonce_odr"  # several libraries may contain it
            self._shared_module = self._final_module
        return self._shared_module

    def finalize(self) -> None:
        """Numba's own functions count references and call no kernels, which do not."""
        raise TypeError(f"{self.name} is a part of entries; a function of numba.njit calls it")


class _NoEnvironment:
    def set_env(self, name: str, environment: object) -> None:
        """Do nothing."""


_NO_ENVIRONMENT = _NoEnvironment()


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    """Generates a function's LLVM module, without instructions that count references."""

    _name = "lowering_without_references"

    def run_pass(self, state: Any) -> bool:
        if not BOUNDS_CHECK:  # to raise an exception, Numba counts
            state.targetctx = state.targetctx.subtarget(enable_nrt=False)
            vars(state.targetctx).pop("nrt", None)  # what counts in the context copied here
        return bool(super().run_pass(state))


class _EntryCompiler(Compiler):
    """Numba's compiler, for entries."""

    _library: type[_EntryLibrary] = _EntryLibrary

    def define_pipelines(self) -> list[Any]:
        state = self.state
        state.library = self._library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        pipelines: list[Any] = super().define_pipelines()
        for pipeline in pipelines:
            pipeline.passes = [
                (_Lowering if kind is NativeLowering else kind, description)
                for kind, description in pipeline.passes
            ]
            pipeline.finalize()
        return pipelines


class _PartCompiler(_EntryCompiler):
    """Numba's compiler, for parts."""

    _library = _PartLibrary


_FLAGS = {"nogil": True, "error_model": "numpy", "fastmath": False, "no_rewrites": True}
_ENTRY_FLAGS = {**_FLAGS, "no_cfunc_wrapper": True, "pipeline_class": _EntryCompiler}
_PART_FLAGS = {
    **_FLAGS,
    "no_cfunc_wrapper": True,
    "no_cpython_wrapper": True,
    "pipeline_class": _PartCompiler,
}
_njit: Any = numba.njit  # Any: the stubs do not list all of these flags
_overload: Any = overload
_DISABLED: int = numba.config.DISABLE_JIT  # type: ignore[attr-defined]  # then _njit does nothing


def jit(function: _Function) -> _Function:
    """Compile `function` as a part of the compiled functions that call it."""
    return cast(_Function, _njit(**_PART_FLAGS)(function))


def inline(function: _Function) -> _Function:
    """As `jit`, for one-liners that LLVM must always inline."""
    return cast(_Function, _njit(forceinline=True, **_PART_FLAGS)(function))


def expand(function: _Function) -> _Function:
    """As `jit`, for functions that do little but call large ones: Numba has one function less."""
    return cast(_Function, _njit(inline="always", **_PART_FLAGS)(function))


def python_too(function: _Function) -> _Function:
    """`function` itself, which compiled code can call, too."""
    _overload(function, jit_options=_PART_FLAGS, strict=False)(lambda *_, **__: function)
    return function


def entry(function: _Function) -> _Function:
    """Compile `function` for calls from Python, without the GIL, and cache its machine code."""
    dispatcher = _njit(**_ENTRY_FLAGS)(function)
    if function.__closure__ is None:  # the key of an entry does not cover what is enclosed
        dispatcher._cache = _KernelCache(function)
    return cast(_Function, dispatcher)


def check_compiler() -> None:
    """Raise CompilerError where Numba compiles nothing: kernels do not run as Python."""
    if _DISABLED or numba.config.DISABLE_JIT:  # type: ignore[attr-defined]  # not in the stubs
        raise CompilerError("NUMBA_DISABLE_JIT is set, but kernels only run compiled: unset it")


def dispatch_on_types(choose: Callable[_Parameters, Any]) -> Callable[_Parameters, Any]:
    """A function for compiled code whose implementation depends on the types of its arguments.

    The compiler calls `choose` with the Numba types of the arguments. `choose` returns the Python
    function to compile for them, with the same parameters. A branch inside one function would
    compile both sides for every type.
    """

    @functools.wraps(choose)
    def stub(*_: _Parameters.args, **__: _Parameters.kwargs) -> Any:
        raise TypeError(f"{choose.__name__} is called by compiled code only")

    _overload(stub, jit_options=_PART_FLAGS)(choose)
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


# ---- the cache -------------------------------------------------------------------------------


class _KernelCache(NullCache):
    """The machine code of one entry in the cache: a file for each signature."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        # An entry elsewhere, such as that of minigpt/model/forward.py, may call functions of the
        # files beside it.
        package = sys.modules.get(function.__globals__.get("__package__") or "")
        beside = getattr(package, "__path__", [str(Path(function.__code__.co_filename).parent)])
        self._beside = _hash_of(*beside)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled entry for a signature; None where there is none that can be used."""
        with suppress(Exception):  # what can be wrong with a file is no reason to fail
            content = cache_dir.load(_folder(), self._name(sig))
            if content is not None:
                # Numba would first load everything that its compiler needs. Machine code needs only
                # the functions that count the references to its arguments.
                rtsys.initialize(target_context)
                compiled = CompileResult._rebuild(target_context, *pickle.loads(content))
                if compiled.signature.args == tuple(sig):  # types of other classes may look alike
                    return compiled
        if (on_compile := events.on_compile.get()) is not None:
            on_compile()
        return None

    def save_overload(self, sig: Any, compiled: Any) -> None:
        """Write the entry for a signature; if that fails, say so once."""
        if compiled.library.has_dynamic_globals:  # addresses of this process
            return
        try:
            cache_dir.save(_folder(), self._name(sig), dumps(compiled._reduce()))
        except Exception as error:
            _warn_once(error)

    def _name(self, sig: Any) -> str:
        """The name of the entry for a signature: a hash of what the folder's name leaves out."""
        if not (_CODE and self._beside):
            raise LookupError("kernels: their code cannot be read")
        function = self._function
        code = (bytecode_text(function.__code__), self._beside)
        key = (function.__module__, function.__qualname__, code, str(sig))
        return f"{function.__name__}-{_short_hash(key)}.bin"


def _folder() -> str:
    """The folder in the cache for these kernels; its name is a hash of what all entries depend on.

    That is the code of the kernels, the processor, whether the system permits AMX, the compiler,
    and its settings, whether they come from the environment, from a file, or from the program.
    """
    compiler = (numba.__version__, sys.modules["llvmlite"].__version__, np.__version__)
    target = cpu_target.target_context.codegen().magic_tuple()  # triple, processor, its features
    amx = "+amx-tile" in target[2] and amx_allowed()
    settings = sorted(
        (name, repr(value))
        for name, value in vars(numba.config).items()
        if name.isupper() and not name.startswith(_OTHER_SETTINGS)
    )
    return f"kernels-{_short_hash((_CODE, compiler, target, amx, BOUNDS_CHECK, settings))}"


# Beginnings of the names of settings that no compiled code depends on: numbers of threads, which
# kernels take from elsewhere, caches, paths, and other devices. Other settings that do not matter,
# such as those for messages, are few and rarely set.
_OTHER_SETTINGS = ("_", "NUMBA_", "THREADING_", "CACHE_", "GDB_", "CUDA_")


@cache
def _hash_of(*folders: str) -> str:
    """A hash of the modules in folders; "" where an importer does not show their code.

    It is taken when they are imported: afterwards somebody may edit the files.
    """
    with suppress(Exception):
        return hash_of_folders(folders)
    return ""


_CODE = _hash_of(*sys.modules[__package__].__path__)


def _short_hash(key: object) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def _warn_once(error: Exception) -> None:
    """Report that compiled kernels cannot be kept, and why."""
    global _warned
    if _warned or events.on_unsaved is None:
        return
    _warned = True
    reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    with suppress(Exception):  # where warnings are errors, the results are still right
        events.on_unsaved(
            f"{reason}; compiled kernels cannot be kept, so that each process compiles its own: "
            "let MINIGPT_CACHE name a folder for them"
        )


_warned = False
