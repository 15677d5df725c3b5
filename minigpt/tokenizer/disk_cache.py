"""A disk cache for values that take long to compute from files.

A value consists of numbers and strings in lists, tuples and dicts, stored in the format of Python's
`marshal`: GPT-2's fifty thousand tokens and merges load five times faster than they are parsed.

An entry is never stale: its name is a hash of everything the value depends on, which is the
contents of the files, the source code that computes it, and the version of Python. A damaged entry
counts as absent. Without a private cache folder, or on a full disk, the value is computed each
time.
"""

from __future__ import annotations

import hashlib
import marshal
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from .. import __version__
from ..checkpoint import write_file
from ..errors import SourceError
from ..kernels.cache_dir import private_folder

Value = TypeVar("Value")

_MIN_BYTES = 1 << 18  # of the files; smaller ones are parsed about as fast as an entry is loaded
_CHECKSUM_BYTES = 4


def load_or_build(
    kind: str, code: Iterable[str], files: Mapping[str, bytes], build: Callable[[], Value]
) -> Value:
    """`build()`, or the value it had in an earlier process for the same code and files.

    kind   what the value is; a folder of this name in the user's cache holds the entries
    code   paths of all source files that the value depends on, besides this one
    files  {name: content} that the value is built from

    Raises only what `build` raises.
    """
    if sum(map(len, files.values())) < _MIN_BYTES:
        return build()
    folder = private_folder(kind)
    if folder is None:
        return build()
    path = folder / _fingerprint(code, files)
    with suppress(OSError, ValueError, EOFError):
        value: Value = _unpack(path.read_bytes())
        return value
    value = build()
    with suppress(OSError, SourceError):
        write_file(path, _pack(value))
    return value


def _fingerprint(code: Iterable[str], files: Mapping[str, bytes]) -> str:
    """A hash of the files, the source code, and the version of Python, which defines `marshal`."""
    paths = [Path(path) for path in sorted({*code, __file__})]
    # Inside a ZIP archive there is no file to read; there the version stands for the code.
    sources = [(path.name, path.read_bytes() if path.is_file() else b"") for path in paths]
    parts = [_hashes(sources), _hashes(sorted(files.items()))]
    return hashlib.sha256(repr((__version__, sys.version, parts)).encode()).hexdigest()[:32]


def _hashes(contents: list[tuple[str, bytes]]) -> list[tuple[str, str]]:
    return [(name, hashlib.sha256(content).hexdigest()) for name, content in contents]


def _pack(value: Any) -> bytes:
    data = marshal.dumps(value)
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little") + data


def _unpack(content: bytes) -> Any:
    """The value of an entry; raises ValueError where its checksum is wrong.

    `marshal` trusts its input: damaged data could crash the process.
    """
    data = memoryview(content)[_CHECKSUM_BYTES:]
    if zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little") != content[:_CHECKSUM_BYTES]:
        raise ValueError("damaged")
    return marshal.loads(data)
