"""The directory of a zip archive as ``torch.save`` writes it: stored records, one after the other."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ruprompt_fast.prompts.files.reading.regular_file import RegularFile
from ruprompt_fast.prompts.limits import MAX_INDEX_BYTES

_END = struct.Struct("<4sHHHHIIH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_IS_ENCRYPTED = 0x1
_UNKNOWN_32 = 0xFFFFFFFF
_SIZES_EXTRA = 1
"""The id of the field that holds what is too large for 32 bits."""


@dataclass(frozen=True)
class Record:
    """A record of an archive.

    Attributes:
        name: its path in the archive.
        start: where its bytes begin in the file.
        size: how many there are.
    """

    name: str
    start: int
    size: int


def is_zip(file: RegularFile) -> bool:
    """Whether a file begins like an archive with records."""
    return file.size >= _END.size and file.read(0, 4) == b"PK\x03\x04"


def zip_records(file: RegularFile) -> dict[str, Record]:
    """The records of an archive by name.

    Raises:
        PromptFileError: the directory is malformed or too long, or a record is compressed, encrypted, twice there,
            overlaps another one, or lies outside the file.
    """
    start, size = _directory_place(file)
    if size > MAX_INDEX_BYTES:
        raise file.broken(f"its zip directory has {size} bytes; at most {MAX_INDEX_BYTES} are read")
    data = file.read(start, size)
    records: dict[str, Record] = {}
    offsets = []
    position = 0
    while position < size:
        name, length, offset, position = _read_entry(data, position, file)
        record = Record(name, _data_start(file, offset), length)
        if name in records:
            raise file.broken("its zip directory names a record twice")
        records[name] = record
        offsets.append((offset, record.start + length))
    _check_places(offsets, start, file)
    return records


def _directory_place(file: RegularFile) -> tuple[int, int]:
    """Where the directory begins, and how long it is; both within the file."""
    end = file.size - _END.size  # torch writes no comment after it
    magic, *_, size, start, comment = _END.unpack(file.read(end, _END.size))
    if magic != b"PK\x05\x06" or comment:
        raise file.broken("its zip directory is missing")
    if end >= _END64_LOCATOR.size:
        locator, _, place, _ = _END64_LOCATOR.unpack(file.read(end - _END64_LOCATOR.size, _END64_LOCATOR.size))
        if locator == b"PK\x06\x07":
            magic64, *_, size, start = _END64.unpack(file.read(place, _END64.size))
            if magic64 != b"PK\x06\x06":
                raise file.broken("its zip directory is malformed")
    if start + size > file.size:
        raise file.broken("its zip directory lies outside the file")
    return start, size


def _read_entry(data: bytes, position: int, file: RegularFile) -> tuple[str, int, int, int]:
    """Name, size and offset of a record, and where the next entry begins."""
    if position + _ENTRY.size > len(data):
        raise file.broken("its zip directory is cut off")
    fields = _ENTRY.unpack_from(data, position)
    magic, flags, method = fields[0], fields[3], fields[4]
    packed, size = fields[8], fields[9]
    name_length, extra_length, comment_length = fields[10:13]
    offset = fields[16]
    if magic != b"PK\x01\x02" or flags & _IS_ENCRYPTED or method:
        raise file.broken("a record of its zip archive is compressed, encrypted or malformed; torch.save stores them")
    name_end = position + _ENTRY.size + name_length
    extra = data[name_end : name_end + extra_length]
    if _UNKNOWN_32 in (packed, size, offset):
        size, packed, offset = _long_values(extra, size, packed, offset, file)
    if packed != size:
        raise file.broken("a record of its zip archive has two sizes")
    name = data[position + _ENTRY.size : name_end].decode("utf-8", "replace")
    return name, size, offset, name_end + extra_length + comment_length


def _long_values(extra: bytes, size: int, packed: int, offset: int, file: RegularFile) -> tuple[int, int, int]:
    """Size, packed size and offset; the extra field has those that the entry has no room for, in this order."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == _SIZES_EXTRA and position + 4 + length <= len(extra):
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, position + 4))
            found = [next(numbers, value) if value == _UNKNOWN_32 else value for value in (size, packed, offset)]
            return found[0], found[1], found[2]
        position += 4 + length
    raise file.broken("its zip directory lacks the size of a record")


def _data_start(file: RegularFile, offset: int) -> int:
    """Where the bytes of a record begin, after its header."""
    magic, *_, name_length, extra_length = _LOCAL.unpack(file.read(offset, _LOCAL.size))
    if magic != b"PK\x03\x04":
        raise file.broken("a record of its zip archive is malformed")
    return int(offset + _LOCAL.size + name_length + extra_length)


def _check_places(places: list[tuple[int, int]], directory: int, file: RegularFile) -> None:
    """Check that the records lie one after the other, all of them before the directory."""
    places.sort()
    for (_, end), (following, _) in zip(places, [*places[1:], (directory, 0)], strict=True):
        if end > following:
            raise file.broken("records of its zip archive overlap")
