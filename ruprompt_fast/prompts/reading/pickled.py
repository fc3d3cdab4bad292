"""Pickles of tensors, read without unpickling them.

Nothing of a file is ever run, and no module of Python's or torch's that loads pickles is called: the steps of the
pickle are walked one by one, and the few that a tensor needs are carried out on inert values. Any other step, any name
of another function and any value nested deeper is refused.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ruprompt_fast.errors import UnsafeFileError, shown
from ruprompt_fast.prompts.limits import MAX_PICKLE_DEPTH, MAX_PICKLE_OPCODES, MAX_TENSOR_DIMS
from ruprompt_fast.prompts.reading.stored_tensor import span

_PROTOCOL = 2
_MAX_BITS = 80
"""An integer of a pickle needs 64, the mark at the beginning of torch's old files 77."""

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
_STORAGES = {f"torch {name}": dtype for name, dtype in _DTYPES.items()}


class PickleError(ValueError):
    """A pickle is damaged: a step lacks what it works on."""


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
class _Tuple:
    items: tuple[Any, ...]
    depth: int


def read_pickle(stream: io.BytesIO) -> Any:
    """The value of the pickle that begins here, made of dicts, lists, numbers, texts and :class:`PickledTensor`.

    Args:
        stream: the bytes; read up to the pickle's end.

    Raises:
        UnsafeFileError: the pickle holds what no tensor needs.
        ValueError: it is damaged.
    """
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MAX_PICKLE_OPCODES:
            raise refusal(f"more than {MAX_PICKLE_OPCODES} steps")
        if opcode.name == "STOP":
            break
        step = _STEPS.get(opcode.name)
        if step is None:
            raise refusal(f"a step {opcode.name}")
        step(machine, argument)
    return machine.pop()


def refusal(found: str) -> UnsafeFileError:
    """The error to raise about something in a pickle that no tensor needs; the caller adds the file's name."""
    return UnsafeFileError(
        f"expected the tensor of a prompt, or named tensors; found {found} in its pickle. Nothing of it was loaded: "
        "other pickled objects could run code when loaded. Ask for the prompt as a safetensors file."
    )


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("a step finds nothing to work on")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleError("a step finds no mark")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError("a step recalls what was not kept")
        self.push(self.memo[index])

    def push_tuple(self, items: list[Any]) -> None:
        depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
        if depth > MAX_PICKLE_DEPTH:
            raise refusal("tuples in tuples in tuples")
        self.push(_Tuple(tuple(items), depth))

    def push_popped(self, count: int) -> None:
        self.push_tuple([self.pop() for _ in range(count)][::-1])

    def push_integer(self, value: int) -> None:
        if value.bit_length() > _MAX_BITS:
            raise refusal(f"the number {shown(value)}")
        self.push(value)

    def check_protocol(self, version: int) -> None:
        if version != _PROTOCOL:
            raise refusal(f"protocol {version}, where torch.save takes {_PROTOCOL},")

    def push_function(self, name: str) -> None:
        if name not in _STORAGES and name not in _CALLS:
            raise refusal(f"the name {shown(name)}")
        self.push(Function(name))

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("entries without a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise refusal(f"{_kind(key)} as a name")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise PickleError("elements without a list")
        target.extend(items)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        call = _CALLS.get(function.name) if isinstance(function, Function) else None
        if call is None or not isinstance(arguments, _Tuple):
            raise refusal(f"a call of {_kind(function)}")
        self.push(call(arguments.items))

    def drop_state(self) -> None:
        """``state_dict()`` gives its dictionary an attribute, the versions of the modules."""
        self.pop()
        if not isinstance(self.top(), dict):
            raise refusal("attributes")

    def push_storage(self) -> None:
        match self.pop():
            case _Tuple(items=("storage", Function(name=name), str(key), str(), int(numel), *view)):
                dtype = _STORAGES.get(name)
                if dtype is not None and numel >= 0 and view in ([], [None]):
                    self.push(Storage(key, dtype, numel))
                    return
        raise refusal("an unknown storage")


def _make_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise refusal("a dictionary made of something")
    return {}


def _make_tensor(arguments: tuple[Any, ...]) -> PickledTensor:
    match arguments:
        case (Storage() as storage, int(offset), _Tuple(items=shape), _Tuple(items=stride), bool(), dict() as hooks):
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


def _kind(value: Any) -> str:
    """A value in a few words; values of a pickle may be huge when written out, so this never does."""
    if isinstance(value, str | int | float | Function):
        return shown(value.name if isinstance(value, Function) else value)
    return {_Tuple: "a tuple", PickledTensor: "a tensor"}.get(type(value), f"a {type(value).__name__}")


_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    _REBUILD_TENSOR: _make_tensor,
    _REBUILD_PARAMETER: _make_parameter,
    _ORDERED_DICT: _make_dict,
}

_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.check_protocol,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "BINPUT": lambda machine, index: machine.memo.__setitem__(index, machine.top()),
    "LONG_BINPUT": lambda machine, index: machine.memo.__setitem__(index, machine.top()),
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "BININT": _Machine.push_integer,
    "BININT1": _Machine.push_integer,
    "BININT2": _Machine.push_integer,
    "LONG1": _Machine.push_integer,
    "BINFLOAT": _Machine.push,
    "BINUNICODE": _Machine.push,
    "EMPTY_TUPLE": lambda machine, _: machine.push_tuple([]),
    "TUPLE1": lambda machine, _: machine.push_popped(1),
    "TUPLE2": lambda machine, _: machine.push_popped(2),
    "TUPLE3": lambda machine, _: machine.push_popped(3),
    "TUPLE": lambda machine, _: machine.push_tuple(machine.pop_to_mark()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "GLOBAL": _Machine.push_function,
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.drop_state(),
    "BINPERSID": lambda machine, _: machine.push_storage(),
}
