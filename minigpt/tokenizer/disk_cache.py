"""A disk cache for values that take long to compute from files.

A value consists of numbers and strings in lists, tuples and dicts, stored in the format of Python's
`marshal`: GPT-2's fifty thousand tokens and merges load five times faster than they are parsed.

An entry is never stale: its name is a hash of everything the value depends on, which is the
contents of the files, the code that computes it, and the version of Python. A damaged entry counts
as absent: `marshal` trusts its input, and damaged data could crash the process. Without a safe
cache folder, or on a full disk, the value is computed each time (kernels/cache_dir.py).
"""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TypeVar

from .. import __version__
from ..kernels.cache_dir import load, save
from ..kernels.code_hash import hash_of_modules

Value = TypeVar("Value")

_MIN_BYTES = 1 << 18  # of the files; smaller ones are parsed about as fast as an entry is loaded


def load_or_build(
    kind: str, code: Iterable[str], files: Mapping[str, bytes], build: Callable[[], Value]
) -> Value:
    """`build()`, or the value it had in an earlier process for the same code and files.

    kind   what the value is; a folder of this name in the user's cache holds the entries
    code   names of all modules that the value depends on, besides this one
    files  {name: content} that the value is built from

    Raises only what `build` raises.
    """
    if sum(map(len, files.values())) < _MIN_BYTES:
        return build()
    name = _fingerprint(code, files)
    content = load(kind, name)
    if content is not None:
        value: Value = marshal.loads(content)
        return value
    value = build()
    with suppress(OSError):
        save(kind, name, marshal.dumps(value))  # type: ignore[arg-type]  # see above
    return value


def _fingerprint(code: Iterable[str], files: Mapping[str, bytes]) -> str:
    """A hash of the files, of the code, and of the version of Python, which defines `marshal`."""
    contents = [(name, hashlib.sha256(files[name]).hexdigest()) for name in sorted(files)]
    parts = (__version__, hash_of_modules({*code, __name__}), contents)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
