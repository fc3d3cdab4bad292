"""A device that is not there: what the CUDA backend asks of one, answered on the CPU.

It holds the backend to what a graph on a device needs. A *recording graph* notes every operator and every Triton
kernel of the recorded function with the addresses of the buffers and the numbers that it is given; a replay runs the
function again, and refuses an operator, an address or a number that has changed, for a real graph would not notice.
Copies to the host are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ruprompt_fast.backends.cuda.device import Event, Graph, Launches
from ruprompt_fast.errors import GraphError
from ruprompt_fast.ops.cuda.cards import V100, Card
from ruprompt_fast.ops.cuda.launches import watch_launches

_MEMORY = 1 << 28

# Operators whose result decides on the host, or whose size is known on the device alone. In inference mode some of them
# come as they were called, elsewhere as what they consist of.
_WAITING = frozenset(
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "equal",
        "allclose",
        "nonzero",
        "nonzero_numpy",
        "argwhere",
        "masked_select",
        "_unique2",
        "unique_consecutive",
        "unique_dim",
    )
)


class RehearsalDevice:
    """A :class:`~ruprompt_fast.backends.cuda.device.Device` on the CPU.

    Args:
        card: the card that kernels are chosen for.
        memory: bytes that it has.

    Attributes:
        num_fetches: how often a copy to the host was started.
        num_replays: how often a graph was replayed.
    """

    captures_ahead = False

    def __init__(self, card: Card = V100, memory: int = _MEMORY) -> None:
        self.torch_device = torch.device("cpu")
        self.card = card
        self._memory = memory
        self.num_fetches = 0
        self.num_replays = 0

    def free_bytes(self) -> int:
        """The memory that it was made with."""
        return self._memory

    def pages(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Not numbers: memory of a device holds what was there before."""
        return torch.full(tuple(shape), torch.nan, dtype=dtype)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Zeros."""
        return torch.zeros(tuple(shape), dtype=dtype)

    def upload(self, source: Tensor, target: Tensor) -> Event:
        """Copy at once."""
        target.copy_(source)
        return _Past()

    def fetch(self, source: Tensor, target: Tensor) -> Event:
        """Copy at once."""
        self.num_fetches += 1
        target.copy_(source)
        return _Past()

    def save(self, tensor: Tensor) -> Tensor:
        """A copy."""
        return tensor.clone()

    def load(self, sources: Sequence[Tensor], target: Tensor) -> None:
        """Copy at once."""
        for source, part in zip(sources, target, strict=True):
            part.copy_(source)

    def capture(self, launches: Launches) -> Graph:
        """Record the launches."""
        return _RecordingGraph(self, launches)


def why_waiting(func: Any, args: Sequence[Any]) -> str | None:
    """The name of an operator for which the host would wait for the device; None for others.

    Args:
        func: the operator's overload, as a dispatch mode gets it.
        args: its arguments by position.
    """
    name: str = func._schema.name
    if name in _WAITING or (name == "aten::where" and len(args) == 1):
        return name
    # Selecting by a mask gives as many elements as the mask has.
    if name == "aten::index" and any(index is not None and index.dtype is torch.bool for index in args[1]):
        return f"{name} by a mask"
    return None


class _Past:
    def wait(self) -> None:
        pass


class _RecordingGraph:
    def __init__(self, device: RehearsalDevice, launches: Launches) -> None:
        self._device = device
        self._launches = launches
        with _recording() as self._recorded:
            self.outputs = launches()

    def replay(self) -> None:
        self._device.num_replays += 1
        with _recording() as found:
            outputs = self._launches()
        for place, (before, now) in enumerate(zip(self._recorded, found, strict=False)):
            if before != now:
                raise GraphError(f"launch {place} of a graph has changed: recorded {before}, found {now}.")
        if len(found) != len(self._recorded):
            raise GraphError(f"a graph of {len(self._recorded)} launches has {len(found)} when it is replayed.")
        for output, again in zip(self.outputs, outputs, strict=True):
            output.copy_(again)


@contextmanager
def _recording() -> Iterator[list[tuple[Any, ...]]]:
    """Within the block, what is launched is noted in the list that is given."""
    recorder = _Recorder()
    with recorder, watch_launches(recorder.launching):
        yield recorder.launches


class _Recorder(TorchDispatchMode):
    """Notes operators: their names, the numbers among their arguments, and the addresses that existed before.

    What an operator makes lies at another address at every run, as in the memory of a graph, and has no name here.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: list[tuple[Any, ...]] = []
        self._made: dict[int, torch.UntypedStorage] = {}
        self._in_kernel = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._in_kernel:
            return func(*args, **kwargs)
        if (waiting := why_waiting(func, args)) is not None:
            raise GraphError(f"{waiting} inside a graph: the host would wait for the device, which cannot be recorded.")
        name: str = func._schema.name
        arguments = (*tree_leaves(args), *tree_leaves(kwargs))
        self._note(name, arguments)
        result = func(*args, **kwargs)
        given = {_address(argument) for argument in arguments if isinstance(argument, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _address(tensor) not in given:
                # The memory is kept, so that nothing else comes to lie at its address.
                self._made[_address(tensor)] = tensor.untyped_storage()
        return result

    @contextmanager
    def launching(self, name: str, arguments: Sequence[Any]) -> Iterator[None]:
        """Note a Triton kernel; the operators within the block are the interpreter's."""
        self._note(name, arguments)
        self._in_kernel = True
        try:
            yield
        finally:
            self._in_kernel = False

    def _note(self, name: str, arguments: Sequence[Any]) -> None:
        self.launches.append((name, *map(self._noted, arguments)))

    def _noted(self, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument if isinstance(argument, int | float | str | None) else str(argument)
        if _address(argument) in self._made:
            return ("temporary", tuple(argument.shape))
        return ("buffer", argument.data_ptr(), tuple(argument.shape))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
