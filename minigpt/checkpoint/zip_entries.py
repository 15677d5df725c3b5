"""The entries of a ZIP archive without compression, as torch writes it: their offsets and sizes.

Python's zipfile reads a directory of any size into memory and returns copies of the entries. This
reader checks the directory in place, within limits, and returns an offset and a size for each.

    [local header, name, extra, bytes] …        one per entry
    [directory header, name, extra, comment] …  one per entry; its sizes are authoritative
    [ZIP64 end, ZIP64 locator]                  the same numbers as below in 64 bits
    [end]                                       22 bytes: offset of the directory, entries in it

Format: PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.
"""

from __future__ import annotations

import struct

from ..errors import CheckpointError, short_repr
from .tensors import MappedFile

ZIP_MAGIC = b"PK\x03\x04"
_MAX_ENTRIES = 100_000
_MAX_DIRECTORY = 64 * 2**20  # bytes

_LOCAL = struct.Struct("<4s22xHH")  # magic, lengths of name and extra
_ENTRY = struct.Struct("<4s4xHH8xIIHHHH6xI")
_END = struct.Struct("<4sHHHHIIH")
_LOCATOR64 = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ4xIIQQQQ")


def read_zip_entries(file: MappedFile) -> dict[str, tuple[int, int]]:
    """{entry name: (offset, size) of its data, in bytes}

    Raises CheckpointError when the archive is damaged or split, has a comment, or an entry is
    compressed, encrypted, named like another, or overlaps another.
    """
    count, start, end = _directory(file)
    headers: dict[str, tuple[int, int]] = {}  # {name: (offset of its local header, size)}
    position = start
    for _ in range(count):
        name, header, size, position = _entry(file, position, end)
        if name in headers:
            raise _error(file, f"two entries are named {short_repr(name)}")
        headers[name] = (header, size)
    if position != end:
        raise _error(file, "its directory is longer than its entries")

    entries = {}
    free_from = 0
    for name, (header, size) in sorted(headers.items(), key=lambda item: item[1]):
        if header < free_from:
            raise _error(file, f"entry {short_repr(name)} overlaps another")
        offset = _data_offset(file, name, header, start)
        free_from = offset + size
        if free_from > start:
            raise _error(
                file, f"entry {short_repr(name)} of {size} bytes reaches into the directory"
            )
        entries[name] = (offset, size)
    return entries


def _error(file: MappedFile, problem: str) -> CheckpointError:
    return CheckpointError(f"{file.path}: {problem}; the archive is damaged, or not torch's")


def _directory(file: MappedFile) -> tuple[int, int, int]:
    """(entries, offset at which the directory begins, offset at which it ends)"""
    end = len(file.data) - _END.size
    if end < 0 or file.data[end : end + 4] != b"PK\x05\x06":
        raise CheckpointError(f"{file.path}: its end is missing; download or save the file again")
    _, disk, first_disk, disk_count, count, size, start, comment = _END.unpack_from(file.data, end)
    small = (count, size, start)
    locator = end - _LOCATOR64.size
    if locator >= 0 and file.data[locator : locator + 4] == b"PK\x06\x07":
        _, end_disk, end, disks = _LOCATOR64.unpack_from(file.data, locator)
        # It must end where its locator begins: nothing can hide in between.
        if end != locator - _END64.size or file.data[max(end, 0) : end + 4] != b"PK\x06\x06":
            raise _error(file, "its ZIP64 end is not where its locator says")
        wide = _END64.unpack_from(file.data, end)
        _, _, disk64, first_disk64, disk_count, count, size, start = wide
        disk, first_disk, disks = disk + disk64 + end_disk, first_disk + first_disk64, disks - 1
        limits = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        for narrow, wide_value, limit in zip(small, (count, size, start), limits, strict=True):
            if narrow not in (wide_value, limit):
                raise _error(file, "its end and its ZIP64 end do not agree")
        if disks > 0:
            raise _error(file, "it is one part of several")
    if disk or first_disk or disk_count != count or comment:
        raise _error(file, "it is one part of several, or has a comment")
    if start + size != end:
        raise _error(file, "its directory is not where its end says")
    if count > _MAX_ENTRIES or size > _MAX_DIRECTORY:
        raise _error(file, f"{count} entries in {size} bytes are more than a model has")
    return count, start, end


def _entry(file: MappedFile, position: int, end: int) -> tuple[str, int, int, int]:
    """(name, offset of the local header, size, position of the next entry)"""
    if position + _ENTRY.size > end or file.data[position : position + 4] != b"PK\x01\x02":
        raise _error(file, "its directory is cut short")
    fields = _ENTRY.unpack_from(file.data, position)
    _, flags, method, stored, size, name_length, extra_length, comment_length, disk, header = fields
    position += _ENTRY.size
    next_position = position + name_length + extra_length + comment_length
    if next_position > end:
        raise _error(file, "its directory is cut short")
    try:
        name = file.data[position : position + name_length].decode("utf-8")
    except UnicodeDecodeError:
        raise _error(file, "the name of an entry is not UTF-8") from None
    if method or flags & 1:
        kind = "encrypted" if flags & 1 else "compressed"
        raise _error(file, f"entry {short_repr(name)} is {kind}; it must be stored")
    extra = file.data[position + name_length : position + name_length + extra_length]
    size, stored, header = _with_zip64(file, name, extra, (size, stored, header))
    if size != stored or disk:
        raise _error(file, f"entry {short_repr(name)} has two sizes, or lies on another disk")
    return name, header, size, next_position


def _with_zip64(
    file: MappedFile, name: str, extra: bytes, values: tuple[int, ...]
) -> tuple[int, ...]:
    """The values; those that overflow 32 bits are taken from the ZIP64 part of `extra`."""
    wide = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            wide = extra[4 : 4 + length]
            break
        extra = extra[4 + length :]
    result = []
    for value in values:
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                raise _error(file, f"entry {short_repr(name)} lacks its ZIP64 sizes")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        result.append(value)
    return tuple(result)


def _data_offset(file: MappedFile, name: str, header: int, directory: int) -> int:
    """The offset of an entry's data, after its local header, which must repeat its name."""
    if header + _LOCAL.size > directory:
        raise _error(file, f"entry {short_repr(name)} begins past the archive's data")
    magic, name_length, extra_length = _LOCAL.unpack_from(file.data, header)
    name_start = header + _LOCAL.size
    local_name = file.data[name_start : name_start + name_length]
    if magic != ZIP_MAGIC or local_name != name.encode("utf-8"):
        raise _error(file, f"entry {short_repr(name)} is not where the directory says")
    return name_start + int(name_length) + int(extra_length)
