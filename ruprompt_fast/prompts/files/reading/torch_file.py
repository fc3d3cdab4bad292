"""Files of ``torch.save``: the zip archive of today, and the run of pickles of torch before 1.6."""

from __future__ import annotations

import io
import struct
from typing import Any

from ruprompt_fast.errors import PromptFileError, UnsafeFileError
from ruprompt_fast.prompts.files.reading.json_object import shown_reason
from ruprompt_fast.prompts.files.reading.pickled import read_pickle
from ruprompt_fast.prompts.files.reading.pickled_values import PickledTensor
from ruprompt_fast.prompts.files.reading.regular_file import RegularFile
from ruprompt_fast.prompts.files.reading.stored_tensor import StoredTensor
from ruprompt_fast.prompts.files.reading.zip_directory import Record, is_zip, zip_records
from ruprompt_fast.prompts.limits import MAX_INDEX_BYTES

_PICKLE_SUFFIX = "/data.pkl"
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_OLD_PROTOCOL = 1001
_COUNT = struct.Struct("<q")


def read_torch(file: RegularFile) -> Any:
    """What ``torch.save`` wrote, as far as it is made of dense tensors and plain values.

    Returns:
        The value, with a :class:`StoredTensor` for a tensor, alone or in a dictionary of names.

    Raises:
        UnsafeFileError: the file contains code, or objects that need it.
        PromptFileError: the file is truncated, malformed or something else.
    """
    try:
        return _from_archive(file) if is_zip(file) else _from_pickles(file)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{file.path}: {error}") from error
    except ValueError as error:
        if isinstance(error, PromptFileError):
            raise
        raise PromptFileError(
            f"{file.path}: expected a tensor written by torch.save; reading it failed with {type(error).__name__}: "
            f"{shown_reason(error)}. Download or save it again."
        ) from error


def _from_archive(file: RegularFile) -> Any:
    records = zip_records(file)
    names = [name for name in records if name.endswith(_PICKLE_SUFFIX)]
    if len(names) != 1:
        raise file.broken(f"its zip archive has {len(names)} records data.pkl instead of one")
    folder = names[0].removesuffix(_PICKLE_SUFFIX)
    order = records.get(f"{folder}/byteorder")
    if order is not None and (order.size != 6 or file.read(order.start, 6) != b"little"):
        raise file.broken("its numbers are in another order of bytes than little")
    pickle = records[names[0]]
    if pickle.size > MAX_INDEX_BYTES:
        raise file.broken(f"its pickle has {pickle.size} bytes; at most {MAX_INDEX_BYTES} are read")
    value = read_pickle(io.BytesIO(file.read(pickle.start, pickle.size)))
    prefix = f"{folder}/data/"
    storages = {name.removeprefix(prefix): record for name, record in records.items() if name.startswith(prefix)}
    return _placed(value, storages, file)


def _from_pickles(file: RegularFile) -> Any:
    """The format before torch 1.6: four pickles before the keys of the storages, which follow in their order."""
    stream = io.BytesIO(file.read(0, min(file.size, MAX_INDEX_BYTES)))
    # The first value tells whether this is torch's file at all; anything else in it is refused like any other pickle.
    if read_pickle(stream) != _OLD_MAGIC or read_pickle(stream) != _OLD_PROTOCOL:
        raise file.broken("it is neither a zip archive nor torch's older format")
    system, value, keys = read_pickle(stream), read_pickle(stream), read_pickle(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True or not isinstance(keys, list):
        raise file.broken("it was written by a machine of another kind")
    tensors = value.values() if isinstance(value, dict) else [value]
    sizes = {item.storage.key: item.storage.dtype.itemsize for item in tensors if isinstance(item, PickledTensor)}
    storages = {}
    position = stream.tell()
    for key in keys:
        if not isinstance(key, str) or key not in sizes:
            raise file.broken("it holds numbers of no tensor")
        (count,) = _COUNT.unpack(file.read(position, _COUNT.size))
        storages[key] = Record(key, position + _COUNT.size, count * sizes[key])
        position = storages[key].start + storages[key].size
        if count < 0 or position > file.size:
            raise file.broken("its numbers are cut off")
    return _placed(value, storages, file)


def _placed(value: Any, storages: dict[str, Record], file: RegularFile) -> Any:
    """The value with every tensor's place in the file."""
    if isinstance(value, dict):
        return {name: _placed_tensor(item, storages, file) for name, item in value.items()}
    return _placed_tensor(value, storages, file)


def _placed_tensor(value: Any, storages: dict[str, Record], file: RegularFile) -> Any:
    if not isinstance(value, PickledTensor):
        return value
    storage = value.storage
    record = storages.get(storage.key)
    itemsize = storage.dtype.itemsize
    if record is None or record.size != storage.numel * itemsize:
        raise file.broken("the numbers of a tensor are missing, or are others than its pickle says")
    start = record.start + value.offset * itemsize
    return StoredTensor(file, storage.dtype, value.shape, value.stride, start)
