"""The slots that a kernel on a device leaves an error in, on the host's side."""

from __future__ import annotations

import pytest
import torch

from ruprompt_fast.errors import TokenIdError
from ruprompt_fast.ops import check_errors
from ruprompt_fast.ops.cuda import id_errors
from ruprompt_fast.ops.cuda.id_errors import NUM_SLOTS, IdErrorSlots, raise_pending


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> IdErrorSlots:
    """Slots of a device 0 for which waiting is a no-op."""
    slots = IdErrorSlots(torch.zeros(NUM_SLOTS, dtype=torch.int64))
    monkeypatch.setattr(id_errors, "_slots_by_device", {0: slots})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return slots


def leave_an_error(slots: IdErrorSlots) -> None:
    slots.slots.copy_(torch.tensor([1, -5, 13, 101, 120, 23]))


def test_nothing_pending(slots: IdErrorSlots) -> None:
    raise_pending(0)
    check_errors()


@pytest.mark.parametrize("check", [check_errors, lambda: raise_pending(0)])
def test_an_error_is_raised_once(slots: IdErrorSlots, check) -> None:
    leave_an_error(slots)
    with pytest.raises(TokenIdError, match="id -5 at flat position 13"):
        check()
    check()


def test_an_error_waits_while_a_graph_is_captured(slots: IdErrorSlots, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_an_error(slots)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        raise_pending(0)
    with pytest.raises(TokenIdError):
        raise_pending(0)


def test_without_a_device_there_is_nothing_to_wait_for() -> None:
    if not torch.cuda.is_available():
        check_errors()
