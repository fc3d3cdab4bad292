"""The index of a safetensors file: a length in 8 bytes, a header in JSON, then the numbers.

The format's own library maps files into memory, or takes them whole. Here the header is checked first, and then only
the tensors that are wanted are read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ruprompt_fast.errors import PromptFileError, shown
from ruprompt_fast.prompts.files.reading.json_object import parse_object
from ruprompt_fast.prompts.files.reading.regular_file import RegularFile, open_regular
from ruprompt_fast.prompts.files.reading.stored_tensor import StoredTensor, contiguous_stride
from ruprompt_fast.prompts.limits import MAX_INDEX_BYTES, MAX_TENSOR_DIMS

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH_BYTES = 8
_METADATA = "__metadata__"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file of one's own, however large, on the CPU.

    Raises:
        PromptFileError: the file is missing, truncated or something else.
    """
    with open_regular(path, None) as file:
        return {name: stored.read() for name, stored in safetensors_index(file).items()}


def safetensors_index(file: RegularFile) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Raises:
        PromptFileError: the header is too long or malformed, or its tensors overlap, leave gaps or do not fill the
            file.
    """
    (length,) = struct.unpack("<Q", file.read(0, _LENGTH_BYTES))
    if length > min(MAX_INDEX_BYTES, file.size - _LENGTH_BYTES):
        raise _malformed(
            file, f"a header of {length} bytes in a file of {file.size}; at most {MAX_INDEX_BYTES} are read"
        )
    header = parse_object(file.read(_LENGTH_BYTES, length), file.path)
    header.pop(_METADATA, None)
    start = _LENGTH_BYTES + length
    tensors = {}
    places = []
    for name, entry in header.items():
        dtype, shape, first, last = _read_entry(entry, name, file)
        tensors[name] = StoredTensor(file, dtype, shape, contiguous_stride(shape), start + first)
        places.append((first, last))
    _check_places(places, file, file.size - start)
    return tensors


def _read_entry(entry: Any, name: str, file: RegularFile) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    if not isinstance(entry, Mapping) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(file, f"{shown(entry)} as the description of {shown(name)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _malformed(file, f"numbers of type {shown(entry['dtype'])}; known are {', '.join(_DTYPES)}")
    if not _are_sizes(shape) or len(shape) > MAX_TENSOR_DIMS or not _are_sizes(offsets) or len(offsets) != 2:
        raise _malformed(file, f"shape {shown(shape)} and place {shown(offsets)} of {shown(name)}")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise _malformed(file, f"{shown(offsets)} as the place of {shown(name)}, {shown(shape)} {entry['dtype']}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_places(places: list[tuple[int, int]], file: RegularFile, available: int) -> None:
    """Check that the tensors fill the file, one after the other."""
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise _malformed(file, f"tensors that overlap or leave a gap at byte {end}")
        end = last
    if end != available:
        raise _malformed(file, f"{available} bytes of numbers where the header describes {end}")


def _malformed(file: RegularFile, found: str) -> PromptFileError:
    return PromptFileError(
        f"{file.path}: expected a complete safetensors file; found {found}. Download or save it again."
    )
