"""The recording graph notices what a graph on a device would silently do wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ruprompt_fast.backends.cuda.rehearsal import RehearsalDevice
from ruprompt_fast.errors import GraphError


@pytest.fixture
def device() -> RehearsalDevice:
    return RehearsalDevice()


def test_a_replay_computes_with_what_the_buffers_hold_now(device: RehearsalDevice) -> None:
    buffer, weight = torch.ones(3), torch.full((3,), 2.0)
    graph = device.capture(lambda: (buffer * weight + 1,))
    (output,) = graph.outputs
    buffer.copy_(torch.tensor([5.0, 6.0, 7.0]))
    graph.replay()
    assert output.tolist() == [11.0, 13.0, 15.0]
    assert graph.outputs[0] is output
    assert device.num_replays == 1


def moved(state: dict[str, Tensor]) -> None:
    state["buffer"] = state["buffer"].clone()


def renumbered(state: dict[str, Tensor | int]) -> None:
    state["number"] = 3


def longer(state: dict[str, Tensor | int]) -> None:
    state["times"] = 2


@pytest.mark.parametrize("change", [moved, renumbered, longer])
def test_what_a_graph_would_not_notice_is_refused(device: RehearsalDevice, change: Callable) -> None:
    state = {"buffer": torch.ones(3), "number": 2, "times": 1}

    def launches() -> tuple[Tensor]:
        out = state["buffer"]
        for _ in range(state["times"]):
            out = out * state["number"]
        return (out,)

    graph = device.capture(launches)
    graph.replay()
    change(state)
    with pytest.raises(GraphError, match="has changed|when it is replayed"):
        graph.replay()


WAITS = {
    "item": lambda x: x.item(),
    "bool": lambda x: bool(x),
    "float": lambda x: float(x),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "mask": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("waits", WAITS.values(), ids=WAITS.keys())
def test_waiting_for_the_device_cannot_be_recorded(device: RehearsalDevice, waits: Callable, inference: bool) -> None:
    buffer = torch.ones(1)
    with torch.inference_mode(inference), pytest.raises(GraphError, match="would wait for the device"):
        device.capture(lambda: (buffer + (waits(buffer) is None),))


def test_copies_to_the_host_are_counted(device: RehearsalDevice) -> None:
    host = device.pinned((3,), torch.float32)
    device.fetch(torch.ones(3), host).wait()
    assert host.tolist() == [1.0, 1.0, 1.0]
    assert device.num_fetches == 1
