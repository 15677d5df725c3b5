"""A hash of the code that a cached result depends on."""

from __future__ import annotations

import hashlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any


def hash_of_folders(folders: Iterable[str]) -> str:
    """A hash of all modules in folders, such as a package's `__path__`, and of its subpackages.

    Raises ImportError where there are none: a hash of nothing would never change.
    """
    texts = sorted(_texts(list(folders)))
    if not texts:
        raise ImportError(f"no code in {folders}")
    return _hash(texts)


def hash_of_modules(names: Iterable[str]) -> str:
    """A hash of imported modules, by their names."""
    specs = (sys.modules[name].__spec__ for name in names)
    return _hash(sorted(_text(spec) for spec in specs))


def bytecode_text(code: CodeType) -> str:
    """What a code object does, as text: without its file and its lines, alike in every process."""
    constants = [
        bytecode_text(constant)
        if isinstance(constant, CodeType)
        else sorted(map(repr, constant))
        if isinstance(constant, frozenset)  # in an order that differs from process to process
        else repr(constant)
        for constant in code.co_consts
    ]
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    return repr((code.co_name, code.co_flags, code.co_code, constants, names))


def _texts(folders: list[str]) -> Iterator[tuple[str, str]]:
    for module in pkgutil.iter_modules(folders):
        spec: Any = module.module_finder.find_spec(module.name, None)
        yield _text(spec)
        if module.ispkg:
            yield from _texts(list(spec.submodule_search_locations))


def _text(spec: Any) -> tuple[str, str]:
    """A module's name and source; its bytecode where there is no source, as in a bundle."""
    source = spec.loader.get_source(spec.name)
    if source is not None:
        return spec.name, source
    code = spec.loader.get_code(spec.name)
    return spec.name, "" if code is None else bytecode_text(code)  # None: a module written in C


def _hash(texts: list[tuple[str, str]]) -> str:
    return hashlib.sha256(repr((sys.version, sys.flags.optimize, texts)).encode()).hexdigest()
