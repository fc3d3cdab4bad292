"""The CPU backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ruprompt_fast.backends.cpu.kv_pool import KVPool
from ruprompt_fast.backends.cpu.memory import available_bytes
from ruprompt_fast.backends.cpu.packing import pack_model
from ruprompt_fast.backends.cpu.runner import CpuRunner
from ruprompt_fast.backends.packing import PackedModel
from ruprompt_fast.backends.page_layout import bytes_per_page

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.backends.base import Quantization, RunnerLimits
    from ruprompt_fast.embedding import SplicedEmbedding
    from ruprompt_fast.prompts import KVShape


class CpuBackend:
    """A :class:`~ruprompt_fast.backends.Backend`: prepacked layers, paged attention in C++, a sampler in NumPy.

    Args:
        dtype: the dtype of the models that it runs.
    """

    page_size = KVPool.page_size
    shares_memory = True

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def page_bytes(self, shapes: Sequence[KVShape]) -> int:
        """Bytes of one page in all layers."""
        return bytes_per_page(shapes, self.page_size, self._dtype)

    def available_bytes(self) -> int:
        """Bytes of memory that are free without swapping, within a container's limit."""
        return available_bytes()

    def prepare(self, model: PreTrainedModel, quantization: Quantization | None) -> PackedModel:
        """Prepack the model's frozen linear layers."""
        return pack_model(model, quantization=quantization)

    def runner(
        self,
        model: PreTrainedModel,
        embedding: SplicedEmbedding,
        shapes: Sequence[KVShape],
        limits: RunnerLimits,
        banned_ids: Sequence[int],
    ) -> CpuRunner:
        """A runner that computes the model's steps."""
        return CpuRunner(model, embedding, KVPool(shapes, limits.num_pages, self._dtype), banned_ids)
