"""A value that took time to compute from files, kept on disk for the next process.

What is kept is numbers and texts in lists, tuples and dicts, in the form of Python's own module
`marshal`: the fifty thousand tokens and merges of GPT-2 are loaded from it five times faster
than they are read and checked.

It is never stale: it is named by a hash of all that it came from, the files, the code that read
them and the Python that wrote it. A damaged file counts as none; and where the user has no
private folder, or its disk is full, all is computed each time.
"""

from __future__ import annotations

import hashlib
import marshal
import sys
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint import write_file
from ..errors import SourceError
from ..kernels.cache_dir import private_folder

_WORTH_KEEPING = 1 << 18  # bytes of the files; fewer are read about as fast as found again
_SUM_BYTES = 4


def load_or_build(
    kind: str, code: str, files: Mapping[str, bytes], compute: Callable[[], Any]
) -> Any:
    """`compute()`, or what it gave in an earlier process for the same `files`.

    kind   what it is, and the name of a folder in the user's cache
    code   the path of the source that computes it
    files  name → content, all that it is computed from

    Raises what `compute` raises, and nothing else.
    """
    if sum(map(len, files.values())) < _WORTH_KEEPING:
        return compute()
    folder = private_folder(kind)
    if folder is None:
        return compute()
    path = folder / _fingerprint(code, files)
    with suppress(OSError, ValueError, EOFError):
        return _unpacked(path.read_bytes())
    value = compute()
    with suppress(OSError, SourceError):
        write_file(path, _packed(value))
    return value


def _fingerprint(code: str, files: Mapping[str, bytes]) -> str:
    """A hash of names and contents, of the code, and of the Python whose marshal form it is."""
    source = Path(code)
    known = {**files, "code": source.read_bytes() if source.is_file() else b""}  # not in a ZIP
    hashes = [(name, hashlib.sha256(known[name]).hexdigest()) for name in sorted(known)]
    return hashlib.sha256(repr((__version__, sys.version, hashes)).encode()).hexdigest()[:32]


def _packed(value: Any) -> bytes:
    data = marshal.dumps(value)
    return zlib.crc32(data).to_bytes(_SUM_BYTES, "little") + data


def _unpacked(content: bytes) -> Any:
    """The value in `content`; raises ValueError where a byte has changed, which `marshal`, made
    for files that are whole, would not survive."""
    data = memoryview(content)[_SUM_BYTES:]
    if zlib.crc32(data).to_bytes(_SUM_BYTES, "little") != content[:_SUM_BYTES]:
        raise ValueError("damaged")
    return marshal.loads(data)
