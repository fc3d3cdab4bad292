"""What the backend asks of a CUDA device; :mod:`~ruprompt_fast.backends.cuda.rehearsal` answers it on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from ruprompt_fast.ops.cuda.cards import Card, card_of

if TYPE_CHECKING:
    from torch.cuda import Event as CudaEvent

Launches: TypeAlias = Callable[[], Sequence[Tensor]]
"""Starts kernels on buffers that stay where they are, and returns the tensors that they write."""

# What a step computes with beside the pages: activations, gathered pages on an old card, and what graphs hold.
_STEP_BYTES = 512 << 20


class Event(Protocol):
    """A point in a queue of work."""

    def wait(self) -> None:
        """Have the host wait for it."""


class Graph(Protocol):
    """Recorded launches.

    Attributes:
        outputs: the tensors that every replay writes again.
    """

    outputs: Sequence[Tensor]

    def replay(self) -> None:
        """Start the launches again, with what the buffers hold now."""


class Device(Protocol):
    """A device with a queue of work, and a second queue for copies from and to host memory.

    Attributes:
        torch_device: torch's name for it.
        card: what it can do.
        captures_ahead: whether graphs are captured, and kernels compiled, before the first request, not when they
            are first needed; graphs of shared prefixes are captured when they are.
    """

    torch_device: torch.device
    card: Card
    captures_ahead: bool

    def free_bytes(self) -> int:
        """Bytes of its memory that are free."""
        ...

    def pages(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for pages; what it holds is not to be relied on."""
        ...

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Zeros in host memory that the device copies from and to by itself."""
        ...

    def upload(self, source: Tensor, target: Tensor) -> Event:
        """Copy pinned host memory to the device in the order of the work; the event is after the copy."""
        ...

    def fetch(self, source: Tensor, target: Tensor) -> Event:
        """Copy from the device to pinned host memory in the order of the work; the event is after the copy.

        In a step that decodes, waiting for this event is the only way in which the host waits for the device.
        """
        ...

    def save(self, tensor: Tensor) -> Tensor:
        """A copy in pinned host memory, made beside the work; :meth:`load` may read it at once."""
        ...

    def load(self, sources: Sequence[Tensor], target: Tensor) -> None:
        """Copy tensors in host memory to ``target[0]``, ``target[1]`` and so on, before any work that comes after."""
        ...

    def capture(self, launches: Launches) -> Graph:
        """Run the launches until everything is set up that they need once, then record them.

        Raises:
            Exception: whatever prevents it; nothing of the graph remains.
        """
        ...


class CudaDevice:
    """A :class:`Device`.

    Work runs on the stream that is current where a method is called, which is torch's default stream on the engine's
    thread: what other code does to the model on that stream comes before or after a step, not during it.

    Args:
        torch_device: of kind "cuda".
    """

    captures_ahead = True

    def __init__(self, torch_device: torch.device) -> None:
        index = torch.cuda.current_device() if torch_device.index is None else torch_device.index
        self.torch_device = torch.device("cuda", index)
        self.card = card_of(self.torch_device)
        self._copies, self._captures, self._capturing = _streams_of(self.torch_device)
        self._graph_pool = torch.cuda.graph_pool_handle()
        self._abandoned: list[torch.cuda.CUDAGraph] = []

    def free_bytes(self) -> int:
        """Bytes that the driver could give to torch, or torch has and does not use, without those that steps need."""
        free, _ = torch.cuda.mem_get_info(self.torch_device)
        held = torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)
        return max(0, free + held - _STEP_BYTES)

    def pages(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the device, zeroed: a damaged page must not depend on who had the memory before."""
        return torch.zeros(tuple(shape), dtype=dtype, device=self.torch_device)

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Zeros in pinned host memory."""
        return torch.zeros(tuple(shape), dtype=dtype, device="cpu", pin_memory=True)

    def upload(self, source: Tensor, target: Tensor) -> Event:
        """Copy to the device."""
        target.copy_(source, non_blocking=True)
        return self._after()

    def fetch(self, source: Tensor, target: Tensor) -> Event:
        """Copy from the device."""
        target.copy_(source, non_blocking=True)
        return self._after()

    def save(self, tensor: Tensor) -> Tensor:
        """A copy in pinned host memory, made on the stream for copies."""
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        self._copies.wait_stream(self._current)
        with torch.cuda.stream(self._copies):
            copy.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._copies)
        return copy

    def load(self, sources: Sequence[Tensor], target: Tensor) -> None:
        """Copy to the device on the stream for copies, after what was saved there."""
        self._copies.wait_stream(self._current)  # the target's memory may have been another tensor's
        with torch.cuda.stream(self._copies):
            for source, part in zip(sources, target, strict=True):
                part.copy_(source, non_blocking=True)
        self._current.wait_stream(self._copies)

    def capture(self, launches: Launches) -> Graph:
        """Record on a stream of its own, in the memory that all graphs share.

        The launches run there before: Triton compiles, cuBLAS takes its workspace for the stream. Other threads may
        call CUDA while it records.
        """
        # Torch synchronizes the current device; a thread of our own begins on the first one.
        with self._capturing, torch.cuda.device(self.torch_device):
            self._captures.wait_stream(self._current)
            # Also around the recording: one that fails does not give the thread its own stream back.
            try:
                with torch.cuda.stream(self._captures):
                    launches()
                    return self._recorded(launches)
            finally:
                # Also after an error: what was launched before it reads buffers that the next step is staged in.
                self._current.wait_stream(self._captures)

    def _recorded(self, launches: Launches) -> Graph:
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(
            graph, pool=self._graph_pool, stream=self._captures, capture_error_mode="thread_local"
        )
        cause: Exception | None = None
        try:
            with recording:
                try:
                    outputs = launches()
                except Exception as error:
                    cause = error
                    raise
        except Exception as error:
            self._abandon(graph)
            # What went wrong, rather than that the recording could not be ended after it.
            raise (cause or error) from None
        finally:
            del cause  # its traceback holds this frame
        return _CapturedGraph(graph, outputs)

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """Undo what a recording that failed leaves behind.

        Up to torch 2.12 the allocator goes on to record, which it refuses to do twice in one pool, and so does the
        generator of random numbers, which then gives none to anybody.
        """
        self._abandoned.append(graph)  # the allocator may still ask it whether it records
        end_recording: Any = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end_recording is not None:
            with suppress(RuntimeError):  # it has been ended
                end_recording(self.torch_device.index, self._graph_pool)
        self._graph_pool = torch.cuda.graph_pool_handle()
        generator = torch.cuda.default_generators[self.torch_device.index]
        generator.graphsafe_set_state(generator.clone_state())

    @property
    def _current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.torch_device)

    def _after(self) -> Event:
        event = torch.cuda.Event()
        event.record(self._current)
        return _Waited(event)


class _Streams(NamedTuple):
    """Streams beside the current one.

    Attributes:
        copies: copies from and to host memory.
        captures: records graphs.
        capturing: held by the thread that records.
    """

    copies: torch.cuda.Stream
    captures: torch.cuda.Stream
    capturing: threading.Lock


@cache
def _streams_of(device: torch.device) -> _Streams:
    """The same for every engine on a card: cuBLAS keeps memory for each stream that it ever worked on."""
    return _Streams(torch.cuda.Stream(device), torch.cuda.Stream(device), threading.Lock())


class _Waited:
    def __init__(self, event: CudaEvent) -> None:
        self._event = event

    def wait(self) -> None:
        self._event.synchronize()


class _CapturedGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: Sequence[Tensor]) -> None:
        self._graph = graph
        self.outputs = outputs

    def replay(self) -> None:
        self._graph.replay()
