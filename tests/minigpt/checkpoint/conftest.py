"""Files in memory, and builders of safetensors and ZIP files that can also build wrong ones."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from minigpt.checkpoint.tensors import MappedFile


@pytest.fixture(scope="session")
def mapped() -> Callable[[bytes], MappedFile]:
    """Bytes as if they were a file of weights."""

    def build(data: bytes) -> MappedFile:
        memory = mmap.mmap(-1, len(data))
        memory[:] = data
        return MappedFile(Path("folder/weights"), memory)

    return build


@pytest.fixture(scope="session")
def safetensors_bytes() -> Callable[..., bytes]:
    """Builds a safetensors file from a header (an object or raw bytes) and the bytes of tensors."""

    def build(header: object, data: bytes = b"", length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    return build


@pytest.fixture(scope="session")
def zip_bytes() -> Callable[..., bytes]:
    """Builds a ZIP archive of stored entries; `change` overwrites header fields of entries."""

    def build(
        entries: Mapping[str, bytes],
        change: Mapping[str, Mapping[str, int]] | None = None,
        wide: bool = False,
        comment: bytes = b"",
    ) -> bytes:
        body, directory = b"", b""
        for name, data in entries.items():
            raw = name.rstrip("*").encode()  # a trailing * lets a name occur twice
            field = {
                "flags": 0,
                "method": 0,
                "stored": len(data),
                "size": len(data),
                "header": len(body),
                "disk": 0,
                **(change or {}).get(name, {}),
            }
            extra = b""
            narrow = (field["stored"], field["size"], field["header"])
            if wide:
                values = (field["size"], field["stored"], field["header"])
                extra = struct.pack("<HHQQQ", 1, 24, *values)
                narrow = (0xFFFFFFFF,) * 3
            local = (b"PK\3\4", 20, field["flags"], field["method"], 0, 0, 0)
            body += struct.pack("<4sHHHHHIIIHH", *local, len(data), len(data), len(raw), 0)
            body += raw + data
            directory += struct.pack(
                "<4sHHHHHHIIIHHHHHII",
                *(b"PK\1\2", 20, 20, field["flags"], field["method"], 0, 0, 0),
                *narrow[:2],
                *(len(raw), len(extra), 0, field["disk"], 0, 0, narrow[2]),
            )
            directory += raw + extra
        count, size, start = len(entries), len(directory), len(body)
        end = b""
        if wide:
            numbers = (45, 45, 0, 0, count, count, size, start)
            end += struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, *numbers)
            end += struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
            count, size, start = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
        numbers = (0, 0, count, count, size, start, len(comment))
        return body + directory + end + struct.pack("<4sHHHHIIH", b"PK\5\6", *numbers) + comment

    return build


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of files that torch wrote."""
    return Path(__file__).resolve().parents[2] / "golden" / "torch"
