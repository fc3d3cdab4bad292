"""Errors of ids in neither table that a kernel finds on a device, raised without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.errors import TokenIdError
from ruprompt_fast.ops._errors import bad_id_error

# A mark that a kernel found such an id; the id; its position among the flattened ids; its limits: the end of the token
# ids, the first prompt id, the number of virtual tokens.
NUM_SLOTS = 6


class IdErrorSlots:
    """Host memory that a kernel writes to when it finds an id in neither table.

    Pinned memory is mapped into every device's address space: the kernel writes to it directly, and the host finds the
    error by reading its own memory.
    """

    def __init__(self, slots: Tensor) -> None:
        """``slots``: int64 ``[NUM_SLOTS]``, zero."""
        self.slots = slots
        self._view = slots.numpy()

    @property
    def pending(self) -> bool:
        """Whether a kernel has reported an error, as far as the host can see now."""
        return bool(self._view[0])

    def take(self) -> TokenIdError:
        """The error that a kernel has reported; frees the slots."""
        _, id_, position, token_limit, first_prompt_id, prompt_rows = self._view.tolist()
        self._view[:] = 0
        return bad_id_error(id_, position, token_limit, first_prompt_id, prompt_rows)


_slots_by_device: dict[int, IdErrorSlots] = {}


def slots_of(device_index: int) -> IdErrorSlots:
    """The slots that the kernels of one CUDA device write to."""
    slots = _slots_by_device.get(device_index)
    if slots is None:
        slots = IdErrorSlots(torch.zeros(NUM_SLOTS, dtype=torch.int64, device="cpu", pin_memory=True))
        _slots_by_device[device_index] = slots
    return slots


def raise_pending(device_index: int) -> None:
    """Raises the error that an earlier kernel of the device has reported; without one, this only reads host memory."""
    slots = slots_of(device_index)
    # Waiting is forbidden while a graph is captured: the error then waits for the next call outside of it.
    if slots.pending and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(device_index)  # the mark may become visible before the other values
        raise slots.take()


def check_errors() -> None:
    """Waits for the CUDA devices and raises the errors that kernels have reported.

    Kernels run asynchronously, so the next call of the operator on that device raises the error. This function raises
    it now: after the last call, or after replaying a CUDA graph.

    Raises:
        TokenIdError: an id was in neither table; its row of the output is NaN.
    """
    for device_index in list(_slots_by_device):
        torch.cuda.synchronize(device_index)
        raise_pending(device_index)
