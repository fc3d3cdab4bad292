"""What the device leaves behind of a recording that fails, with torch.cuda replaced by what it does then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from ruprompt_fast.backends.cuda import device as device_module
from ruprompt_fast.backends.cuda.device import CudaDevice
from ruprompt_fast.ops.cuda.cards import V100


class FakeStream:
    def __init__(self, _: object = None) -> None:
        pass

    def wait_stream(self, _: FakeStream) -> None:
        pass


class FakeGenerator:
    renewed = 0

    def clone_state(self) -> FakeGenerator:
        return self

    def graphsafe_set_state(self, _: FakeGenerator) -> None:
        self.renewed += 1


class FakeCuda:
    """Ends no recording that has failed, and leaves its stream current, as torch does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.default, self.generator = FakeStream(), FakeGenerator()
        self.current, self.pools, self.recording = self.default, 0, set()
        names = {
            "Stream": FakeStream,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "device": lambda _: nullcontext(),
            "stream": self.stream,
            "graph": self.graph,
            "current_stream": lambda _: self.current,
            "graph_pool_handle": self.new_pool,
            "default_generators": [self.generator],
        }
        for name, value in names.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(
            torch._C, "_cuda_endAllocateToPool", lambda _, pool: self.recording.remove(pool), raising=False
        )
        monkeypatch.setattr(device_module, "card_of", lambda _: V100)
        monkeypatch.setattr(device_module, "_streams_of", device_module._streams_of.__wrapped__)  # not kept for others

    def new_pool(self) -> int:
        self.pools += 1
        return self.pools

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: object, pool: int, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        if pool in self.recording:
            raise RuntimeError("already recording to mempool_id")
        self.recording.add(pool)
        before, self.current = self.current, stream
        try:
            yield
        except ValueError:
            raise RuntimeError("operation failed due to a previous error during capture") from None
        self.recording.remove(pool)
        self.current = before


def test_a_recording_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    device = CudaDevice(torch.device("cuda", 0))
    runs = []

    def launches() -> tuple[torch.Tensor]:
        runs.append(cuda.current)
        if len(runs) == 2:
            raise ValueError("what went wrong")
        return (torch.ones(1),)

    with pytest.raises(ValueError, match="what went wrong"):
        device.capture(launches)
    assert cuda.current is cuda.default
    assert not cuda.recording
    assert cuda.generator.renewed == 1
    assert device.capture(launches).outputs[0].tolist() == [1.0]
    assert cuda.current is cuda.default
    assert cuda.default not in runs
