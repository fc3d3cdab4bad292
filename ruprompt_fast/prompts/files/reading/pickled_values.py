"""What a pickle of tensors is read as: inert descriptions, in place of the objects that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ruprompt_fast.errors import UnsafeFileError, shown
from ruprompt_fast.prompts.files.reading.stored_tensor import span
from ruprompt_fast.prompts.limits import MAX_TENSOR_DIMS

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED_DICT = "collections OrderedDict"
STORAGES = {f"torch {name}": dtype for name, dtype in _DTYPES.items()}
"""The types of numbers by the names of torch's storages."""


@dataclass(frozen=True)
class Function:
    """The name of a function or class, which is never called."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The memory of a tensor, which lies elsewhere in the file.

    Attributes:
        key: its name there.
        dtype: the type of its numbers.
        numel: how many there are.
    """

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class PickledTensor:
    """A tensor that the pickle describes; it lies within its storage and has no more numbers than that.

    Attributes:
        storage: where its numbers are.
        offset: the first one there.
        shape: the sizes.
        stride: from one number to the next of each dimension.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Tuple:
    """A tuple, whose depth is known.

    Attributes:
        items: what it holds.
        depth: how many levels of tuples it has, itself included.
    """

    items: tuple[Any, ...]
    depth: int


def refusal(found: str) -> UnsafeFileError:
    """The error to raise about something in a pickle that no tensor needs; the caller adds the file's name."""
    return UnsafeFileError(
        f"expected the tensor of a prompt, or named tensors; found {found} in its pickle. Nothing of it was loaded: "
        "other pickled objects could run code when loaded. Ask for the prompt as a safetensors file."
    )


def _make_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise refusal("a dictionary made of something")
    return {}


def _make_tensor(arguments: tuple[Any, ...]) -> PickledTensor:
    match arguments:
        case (Storage() as storage, int(offset), Tuple(items=shape), Tuple(items=stride), bool(), dict() as hooks):
            if hooks or len(shape) != len(stride) or len(shape) > MAX_TENSOR_DIMS:
                raise refusal("an unknown tensor")
            if not all(type(size) is int and size >= 0 for size in (offset, *shape, *stride)):
                raise refusal("a tensor without sizes")
            tensor = PickledTensor(storage, offset, shape, stride)
            _check_view(tensor)
            return tensor
    raise refusal("an unknown tensor")


def _check_view(tensor: PickledTensor) -> None:
    numel = 1
    for size in tensor.shape:
        numel *= size
    available = tensor.storage.numel
    if tensor.offset + span(tensor.shape, tensor.stride) > available or numel > available:
        raise refusal(f"a view of {shown(list(tensor.shape))} over {available} numbers")


def _make_parameter(arguments: tuple[Any, ...]) -> PickledTensor:
    match arguments:
        case (PickledTensor() as tensor, bool(), dict() as hooks) if not hooks:
            return tensor
    raise refusal("an unknown parameter")


def kind_of(value: Any) -> str:
    """A value in a few words; values of a pickle may be huge when written out, so this never does."""
    if isinstance(value, str | int | float | Function):
        return shown(value.name if isinstance(value, Function) else value)
    return {Tuple: "a tuple", PickledTensor: "a tensor"}.get(type(value), f"a {type(value).__name__}")


CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    _REBUILD_TENSOR: _make_tensor,
    _REBUILD_PARAMETER: _make_parameter,
    _ORDERED_DICT: _make_dict,
}
"""What replaces a call of the functions that a pickle of tensors names."""
