"""The plain memory of a packed weight, for as long as other code may write to it."""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

_SAMPLES = 64


class Lending:
    """Plain copies of one packed weight that other code holds, and whether it has written to them.

    A copy that was handed out is kept until the next check, which compares all of it: whoever writes to
    ``layer.weight`` need not hold the copy. After that only its memory is watched, for as long as anybody holds it, and
    64 of its numbers are compared.
    """

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._reference: Callable[[], Tensor | None] = _nothing
        self._memory: _Memory | None = None
        self._numbers = torch.empty(0)

    def forget(self) -> None:
        """Watch nothing."""
        self._tensor, self._reference, self._memory = None, _nothing, None

    def lend(self, tensor: Tensor) -> Tensor:
        """Hand out a plain copy, and watch it."""
        self.watch(tensor)
        self._tensor, self._reference = tensor, weakref.ref(tensor)
        return tensor

    def watch(self, tensor: Tensor) -> None:
        """Watch the memory of a tensor, as long as others hold it."""
        self.forget()
        self._memory, self._numbers = _Memory(tensor), _sampled(tensor)

    def lent(self) -> Tensor | None:
        """The plain copy that others hold, or None."""
        tensor = self._reference()
        if tensor is None and self._memory is not None:
            tensor = self._memory.tensor()
            self._reference = _nothing if tensor is None else weakref.ref(tensor)
        return tensor

    def refill(self, weight: Tensor) -> None:
        """Write the weight's new numbers to a copy that others hold."""
        tensor = self.lent()
        if tensor is None or tensor.shape != weight.shape or tensor.dtype is not weight.dtype:
            self.forget()
            return
        with torch.no_grad():
            tensor.copy_(weight)
        self.lend(tensor)

    def is_written(self, dense: Callable[[], Tensor]) -> bool:
        """Whether a copy that others hold differs from the weight.

        Args:
            dense: returns the weight in plain form.
        """
        if self._memory is None:
            return False
        tensor = self.lent()
        if tensor is None:
            self.forget()
            return False
        if self._tensor is None:
            return not torch.equal(_sampled(tensor), self._numbers)
        if not _have_equal_bytes(tensor, dense()):
            return True
        self._tensor, self._numbers = None, _sampled(tensor)
        return False

    def __reduce__(self) -> tuple[type[Lending], tuple[()]]:
        return Lending, ()  # a copied layer has lent nothing


class ReleasedWeight:
    """A parameter whose numbers are packed elsewhere, and whose memory is released.

    It keeps its shape and dtype over a single NaN element, so reading it gives NaN and torch refuses to write to it.
    On the CPU, the address range of the parameter stays reserved, without memory, for code that ignores strides.

    Args:
        parameter: the parameter, which is changed.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.release()

    def release(self) -> None:
        """Release the memory; may be called again."""
        with torch.inference_mode(False), torch.no_grad():
            self._blank = _blank(self.parameter)
            self.parameter.data = self._blank

    @property
    def is_assigned(self) -> bool:
        """Whether its ``data`` has been replaced since."""
        return self.parameter.data_ptr() != self._blank.data_ptr()

    @property
    def is_written(self) -> bool:
        """Whether something has written to it since in a way that torch did not refuse; what was written is lost."""
        first = self._blank.as_strided((1,), (1,))
        return not self.is_assigned and not bool(torch.isnan(first.float()).all())


class _Memory:
    """Where the memory of a tensor is, without holding it."""

    def __init__(self, tensor: Tensor) -> None:
        self._storage = weakref.ref(tensor.untyped_storage())
        self._dtype = tensor.dtype
        self._place = (tensor.storage_offset(), tensor.shape, tensor.stride())

    def tensor(self) -> Tensor | None:
        """The tensor, if anybody still holds its memory."""
        storage = self._storage()
        if storage is None:
            return None
        with torch.inference_mode(False), torch.no_grad():
            offset, shape, stride = self._place
            if storage.nbytes() < self._dtype.itemsize * (offset + math.prod(shape)):
                return None  # freed while somebody held it
            return torch.empty(0, dtype=self._dtype, device=storage.device).set_(storage, offset, shape, stride)


def _nothing() -> None:
    return None


def _blank(tensor: Tensor) -> Tensor:
    """A tensor of this shape with NaN everywhere."""
    if not tensor.is_cpu:
        return torch.full((1,), math.nan, dtype=tensor.dtype, device=tensor.device).as_strided(
            tensor.shape, (0,) * tensor.ndim
        )
    memory = mmap.mmap(-1, tensor.numel() * tensor.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    flat = torch.frombuffer(memory, dtype=tensor.dtype)
    flat[0] = math.nan
    return flat.as_strided(tensor.shape, (0,) * tensor.ndim)


def _sampled(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        flat = tensor.detach().reshape(-1)
        return flat[:: max(1, flat.numel() // _SAMPLES)].clone().view(torch.uint8)


def _have_equal_bytes(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype is not b.dtype or a.device != b.device:
        return False
    with torch.no_grad():
        return torch.equal(*(x.detach().contiguous().view(-1).view(torch.uint8) for x in (a, b)))
