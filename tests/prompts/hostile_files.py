"""Prompt folders that somebody made to do harm, and what refuses them."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

WIDTH = 20
ROWS = torch.arange(3 * WIDTH, dtype=torch.float32).reshape(3, WIDTH)
COMPILED = "<|P|><|P|>{text}<|P|>"
PICKLE = b"\x80\x02"
"""How a pickle of torch.save begins."""

Content = bytes | Callable[[Path], None]


@dataclass(frozen=True)
class Hostile:
    """A folder to load.

    Attributes:
        name: what it is.
        files: what it holds: bytes, or what makes the file at a path.
        found: what the refusal says, a regular expression.
        kind: what to load it as, ``prompt`` or ``ensemble``.
    """

    name: str
    files: dict[str, Content]
    found: str
    kind: str = "prompt"

    def write(self, folder: Path) -> Path:
        """Make the folder."""
        write_files(folder, self.files)
        return folder


def write_files(folder: Path, files: dict[str, Content]) -> None:
    """Make a folder's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)


def prompt_json(compiled: str = COMPILED, **config: Any) -> bytes:
    """``prompt.json`` of a prompt with three rows."""
    return json.dumps(
        {"format": {"template": "<P*2>{text}<P>", "compiled_template": compiled}, "config": config}
    ).encode()


def adapter_json(kind: str = "PROMPT_TUNING", **config: Any) -> bytes:
    """``adapter_config.json`` of a PEFT adapter with three rows."""
    return json.dumps({"peft_type": kind, "num_virtual_tokens": 3, **config}).encode()


def torch_bytes(value: Any, **settings: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **settings)
    return buffer.getvalue()


def archive(pickled: bytes, *records: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive as torch.save writes it, around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, content in records:
            file.writestr(name, content)
    return buffer.getvalue()


def sparse(size: int, head: bytes = b"") -> Callable[[Path], None]:
    """A file that is long and takes no space."""

    def make(path: Path) -> None:
        path.write_bytes(head)
        os.truncate(path, size)

    return make


def link_to(target: str) -> Callable[[Path], None]:
    """A symbolic link."""
    return lambda path: path.symlink_to(target)


@dataclass
class Bomb:
    """Makes a file when it is unpickled."""

    mark: Path
    call: Any = field(default=Path.touch)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.mark}",)) if self.call is os.system else (self.call, (self.mark,))


def bombs(mark: Path) -> Iterator[tuple[str, bytes]]:
    """Files of rows that would make the file ``mark``."""
    for protocol in range(6):
        yield f"protocol {protocol}", pickle.dumps(Bomb(mark), protocol)
        yield f"archive of protocol {protocol}", archive(pickle.dumps(Bomb(mark, os.system), protocol))
    evaluated = f"open({str(mark)!r}, 'w')".encode()
    for name in (b"builtins\neval", b"__builtin__\neval", b"builtins\nexec"):
        yield (
            name.decode(),
            archive(PICKLE + b"c" + name + b"\nX" + struct.pack("<I", len(evaluated)) + evaluated + b"\x85R."),
        )
    for value in (Bomb(mark), [ROWS, Bomb(mark)], {"prompt_embeddings": Bomb(mark)}, {"a": ROWS, "b": Bomb(mark)}):
        yield f"torch.save of {type(value).__name__}", torch_bytes(value)
        yield f"older torch.save of {type(value).__name__}", torch_bytes(value, _use_new_zipfile_serialization=False)


GOOD: dict[str, Content] = {
    "prompt.json": prompt_json(),
    "prompt_provider.safetensors": save({"prompt_embeddings": ROWS}),
}
"""The files of a prompt that loads."""


def shared_tuples(levels: int) -> bytes:
    """A tuple of two tuples of two tuples and so on, each there once: hashing it takes 2**levels steps."""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(levels))


def header(header: bytes | dict[str, Any], length: int | None = None) -> bytes:
    """A safetensors header with its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def entry(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    """The description of a tensor in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def empty() -> dict[str, Any]:
    """The description of a tensor without numbers."""
    return entry([0], 0, 0)


def tensor(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    """A safetensors header of the rows alone."""
    return {"prompt_embeddings": entry(shape, begin, end, dtype)}


def rebuilt(shape: bytes, stride: bytes, numel: bytes = b"K\x3c", offset: bytes = b"K\0") -> bytes:
    """The pickle of a tensor over the storage ``0``; the arguments are pickled numbers and tuples."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpu" + numel + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + stride
    return PICKLE + tensor + b"\x89ccollections\nOrderedDict\n)RtR."


def zip_changed(change: Callable[[bytearray, int], None]) -> bytes:
    """A good archive with something changed in the entry of its pickle; the change gets the entry's place."""
    data = bytearray(archive(rebuilt(b"K\3K\x14\x86", b"K\x14K\1\x86"), ("archive/data/0", bytes(240))))
    change(data, data.index(b"PK\1\2"))
    return bytes(data)


def put(layout: str, offset: int, value: int) -> Callable[[bytearray, int], None]:
    """A change of a number in the entry of an archive's directory."""
    return lambda data, entry: struct.pack_into(layout, data, entry + offset, value)


def twice(data: bytearray, entry: int) -> None:
    """Let the second entry be of the first one's record."""
    second = data.index(b"PK\1\2", entry + 1)
    data[second + 20 : second + 28] = data[entry + 20 : entry + 28]
    data[second + 42 : second + 46] = data[entry + 42 : entry + 46]


def pickled(name: str, body: bytes, found: str) -> Hostile:
    """A prompt whose rows are a pickle in an archive."""
    return Hostile(name, {"prompt.json": prompt_json(), "prompt_provider.bin": archive(body)}, found)


def rows_bin(name: str, content: Content, found: str) -> Hostile:
    """A prompt with ``prompt_provider.bin``."""
    return Hostile(name, {"prompt.json": prompt_json(), "prompt_provider.bin": content}, found)


def safe(name: str, content: Content, found: str) -> Hostile:
    """A prompt with ``prompt_provider.safetensors``."""
    return Hostile(name, {"prompt.json": prompt_json(), "prompt_provider.safetensors": content}, found)


def described(name: str, description: Content, found: str) -> Hostile:
    """A prompt with good rows."""
    return Hostile(name, {"prompt.json": description, "prompt_provider.bin": torch_bytes(ROWS)}, found)


def index(name: str, members: Any, found: str, **files: Content) -> Hostile:
    """An ensemble with a good member."""
    good: dict[str, Content] = {f"members/0/{key}": value for key, value in GOOD.items()}
    return Hostile(
        name, {**good, "ensemble.json": json.dumps({"members": members}).encode(), **files}, found, "ensemble"
    )
