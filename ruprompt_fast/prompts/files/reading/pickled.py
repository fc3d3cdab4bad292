"""Pickles of tensors, read without unpickling them.

Nothing of a file is ever run, and no module of Python's or torch's that loads pickles is called: the steps of the
pickle are walked one by one, and the few that a tensor needs are carried out on inert values. Any other step, any name
of another function and any value nested deeper is refused.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any

from ruprompt_fast.errors import shown
from ruprompt_fast.prompts.files.reading.pickled_values import (
    CALLS,
    STORAGES,
    Function,
    Storage,
    Tuple,
    kind_of,
    refusal,
)
from ruprompt_fast.prompts.limits import MAX_PICKLE_DEPTH, MAX_PICKLE_OPCODES

_PROTOCOL = 2
_MAX_BITS = 80
"""An integer of a pickle needs 64, the mark at the beginning of torch's old files 77."""

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


class PickleError(ValueError):
    """A pickle is damaged: a step lacks what it works on."""


def read_pickle(stream: io.BytesIO) -> Any:
    """The value of the pickle that begins here, made of dicts, lists, numbers, texts and :class:`PickledTensor`.

    Args:
        stream: the bytes; read up to the pickle's end.

    Raises:
        UnsafeFileError: the pickle holds what no tensor needs.
        ValueError: it is damaged.
    """
    machine = _Machine()
    for _ in range(MAX_PICKLE_OPCODES):
        code = stream.read(1).decode("latin-1")
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise PickleError(f"{shown(code)} is no step of a pickle" if code else "it has no end")
        if opcode.name == "STOP":
            return machine.pop()
        step = _STEPS.get(opcode.name)
        if step is None:  # refused before its argument is read
            raise refusal(f"a step {opcode.name}")
        step(machine, None if opcode.arg is None else opcode.arg.reader(stream))
    raise refusal(f"more than {MAX_PICKLE_OPCODES} steps")


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
        depth = 1 + max((item.depth for item in items if isinstance(item, Tuple)), default=0)
        if depth > MAX_PICKLE_DEPTH:
            raise refusal("tuples in tuples in tuples")
        self.push(Tuple(tuple(items), depth))

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
        if name not in STORAGES and name not in CALLS:
            raise refusal(f"the name {shown(name)}")
        self.push(Function(name))

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("entries without a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise refusal(f"{kind_of(key)} as a name")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise PickleError("elements without a list")
        target.extend(items)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        call = CALLS.get(function.name) if isinstance(function, Function) else None
        if call is None or not isinstance(arguments, Tuple):
            raise refusal(f"a call of {kind_of(function)}")
        self.push(call(arguments.items))

    def drop_state(self) -> None:
        """``state_dict()`` gives its dictionary an attribute, the versions of the modules."""
        self.pop()
        if not isinstance(self.top(), dict):
            raise refusal("attributes")

    def push_storage(self) -> None:
        match self.pop():
            case Tuple(items=("storage", Function(name=name), str(key), str(), int(numel), *view)):
                dtype = STORAGES.get(name)
                if dtype is not None and numel >= 0 and view in ([], [None]):
                    self.push(Storage(key, dtype, numel))
                    return
        raise refusal("an unknown storage")


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
