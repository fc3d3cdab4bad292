"""Changes of good files, drawn from a random generator."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NUMBERS: tuple[Any, ...] = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 10**18, 10**30, 3.5, 1e308, True)
_TEXTS = (
    "",
    "{",
    "}",
    "<|P|>",
    "<|[k]P|>",
    "{text}",
    "{a}" * 50,
    "<P*3>",
    "\ud800",
    "\0",
    "../x",
    "members/0",
    "x" * 9_999,
)


def changed_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A file's bytes, changed as by accident or by somebody who knows its format.

    Args:
        data: the bytes.
        other: another file's, to take pieces from.
        rng: the generator.
    """
    change = rng.choice(_CHANGES)
    return bytes(change(bytearray(data or b"\0"), other or b"\0", rng))


def _flip(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _truncate(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def _splice(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    start = rng.randrange(len(other))
    at, end = rng.randrange(len(data)), rng.randrange(len(data))
    data[min(at, end) : max(at, end)] = other[start : start + rng.choice((4, 64, 1_000))]
    return data


def _resize(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """Put a number where one may be: lengths and places are numbers of 1 to 8 bytes."""
    layout = rng.choice("BHIQ")
    size = struct.calcsize(layout)
    value = rng.choice((0, 1, 2, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), rng.randrange(2 ** (8 * size)), len(data)))
    at = rng.randrange(max(1, min(len(data), rng.choice((16, 300, len(data)))) - size))
    data[at : at + size] = struct.pack("<" + layout, value % 2 ** (8 * size))
    return data


def _repeat(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.choice((1, 2, 16, 200))]
    return data[:at] + piece * rng.choice((2, 3, 1_000)) + data[at:]


def _delete(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 4, 64))]
    return data


_CHANGES: tuple[Callable[[bytearray, bytes, random.Random], bytearray], ...] = (
    _flip,
    _flip,
    _truncate,
    _splice,
    _resize,
    _resize,
    _repeat,
    _delete,
)


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with some value, or some key, replaced by one that nobody expects."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 2))):
        places = _places(content)
        holder, key = rng.choice(places)
        if isinstance(holder, dict) and rng.random() < 0.2:
            holder[rng.choice(_TEXTS)] = holder.pop(key)
        else:
            holder[key] = _odd_value(rng)
    text = json.dumps(content)
    if rng.random() < 0.1:
        text = text.replace("{", '{"format": 1, "members": [],', 1)
    return text.encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        found.append((value, key))
        if isinstance(item, dict | list) and item:
            found += _places(item)
    return found


def _odd_value(rng: random.Random) -> Any:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(_NUMBERS)
    if kind == 1:
        return rng.choice(_TEXTS) * rng.choice((1, 1, 30))
    if kind == 2:
        return rng.choice((None, [], {}, float("nan"), float("inf")))
    if kind == 3:
        return [rng.choice(_NUMBERS + _TEXTS) for _ in range(rng.choice((1, 3, 200)))]
    if kind == 4:
        return {rng.choice(_TEXTS): rng.choice(_NUMBERS + _TEXTS)}
    nested: Any = 1
    for _ in range(rng.choice((5, 40, 300))):
        nested = [nested]
    return nested


def replace_file(path: Path, rng: random.Random) -> None:
    """Put something that is no file in a file's place."""
    path.unlink()
    kind = rng.randrange(6)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "/proc/self/maps", "nothing", path.name, "..")))
    elif kind == 3:
        path.touch()
        os.truncate(path, rng.choice((0, 100, 2**21 + 1, 2**30, 2**33)))
