"""The pages of a device: what is moved at once, and how."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ruprompt_fast.backends.cuda import kv_pool
from ruprompt_fast.backends.cuda.kv_pool import DevicePages
from ruprompt_fast.backends.cuda.rehearsal import RehearsalDevice
from ruprompt_fast.prompts import KVShape


def test_neighbouring_layers_of_one_shape_move_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's layers come one by one, also where a value's width is said and is that of a key."""
    shapes = [*[KVShape(1, 2, 4, 4)] * 5, KVShape(1, 2, 4, 2), KVShape(1, 2, 4, 4)]
    pages = DevicePages(RehearsalDevice(), shapes, 3, torch.float32)
    moved = []
    monkeypatch.setattr(kv_pool, "copy_pages_at_once", lambda pages, pairs: moved.append(pages.shape[0]))
    pages.copy_pages(np.array([[0, 1]]))
    assert moved == [5, 5, 1, 1, 1, 1]
    assert [tuple(layer.shape) for layer in pages.values] == [(4, 2, 16, shape.value_width) for shape in shapes]


def test_page_numbers_leave_from_pinned_memory() -> None:
    """A copy from other memory would wait for the steps that are under way."""
    device = RehearsalDevice()
    pages = DevicePages(device, [KVShape(2, 1, 4)], 3, torch.float32)
    sent = []
    upload = device.upload
    device.upload = lambda source, target: sent.append(source.tolist()) or upload(source, target)
    pages.write_pages([2, 0], pages.read_pages([1, 2]))
    pages.copy_pages(np.array([[0, 1]]))
    assert sent == [[1, 2], [2, 0], [0, 1]]
