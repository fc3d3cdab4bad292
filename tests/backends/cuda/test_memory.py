"""The device has no memory for two engines of a model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny_models import sharp_model, tiny_tokenizer
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ruprompt_fast import FastPromptModel
from ruprompt_fast.backends import BACKENDS
from ruprompt_fast.backends.cuda import CudaBackend
from ruprompt_fast.backends.cuda.buckets import Bucket
from ruprompt_fast.backends.cuda.graphs import DecodeGraphs
from ruprompt_fast.backends.cuda.rehearsal import RehearsalDevice


class FullDevice(RehearsalDevice):
    """Notes how many tensors of pages there are whenever it is asked for another."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []
        self._made: list[StorageWeakRef] = []

    def pages(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        self.counts.append(sum(not storage.expired() for storage in self._made))
        made = super().pages(shape, dtype)
        self._made.append(StorageWeakRef(made.untyped_storage()))
        return made


def test_pages_are_given_back_before_others_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while somebody reads a stream of the engine before."""
    device = FullDevice()
    monkeypatch.setitem(BACKENDS, "cpu", lambda _, dtype: CudaBackend(device, dtype))
    served = FastPromptModel.from_pretrained(sharp_model("gpt2"), tokenizer=tiny_tokenizer(), max_batch_size=4)
    expected = served.generate("да", max_new_tokens=3)
    stream = served.stream("да", max_new_tokens=30)
    next(stream)
    served.refresh()
    assert served.generate("да", max_new_tokens=3) == expected
    assert device.counts == [0, 1, 0, 1]
    del stream


def test_graphs_write_their_logits_to_one_place() -> None:
    """Largest first, as they are captured on a card."""
    bias = torch.arange(3.0)
    graphs = DecodeGraphs(
        RehearsalDevice(), lambda bucket: lambda: (bias.expand(bucket.num_rows, 3) + 1,), lambda _: None
    )
    made = [graphs.of(Bucket(rows, 1)) for rows in (4, 2, 1)]
    outputs = [graph.outputs[0] for graph in made if graph is not None]
    assert [list(output.shape) for output in outputs] == [[4, 3], [2, 3], [1, 3]]
    assert len({output.data_ptr() for output in outputs}) == 1
