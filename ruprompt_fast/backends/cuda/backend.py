"""The CUDA backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ruprompt_fast.backends.cuda.device import CudaDevice, Device
from ruprompt_fast.backends.cuda.kv_pool import DevicePages
from ruprompt_fast.backends.cuda.layers import FusedLayers, prepare_layers
from ruprompt_fast.backends.cuda.options import CudaOptions
from ruprompt_fast.backends.cuda.runner import CudaRunner
from ruprompt_fast.backends.page_layout import bytes_per_page
from ruprompt_fast.ops.cuda import cards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.backends.base import Quantization, RunnerLimits
    from ruprompt_fast.embedding import SplicedEmbedding
    from ruprompt_fast.prompts import KVShape


class CudaBackend:
    """A :class:`~ruprompt_fast.backends.Backend`: Triton attention over pages, CUDA graphs, a sampler on the device.

    Args:
        device: torch's name of the card, or what takes the place of one.
        dtype: the dtype of the models that it runs.
        options: what it is not to decide by itself.

    Raises:
        MissingDependencyError: the installed torch has no code for the card, or Triton cannot launch a kernel.
        UnsupportedModelError: our kernels do not run on the card, or Triton is not installed.
    """

    page_size = DevicePages.page_size
    shares_memory = False

    def __init__(self, device: torch.device | Device, dtype: torch.dtype, options: CudaOptions | None = None) -> None:
        self._dtype = dtype
        self._options = options or CudaOptions()
        if isinstance(device, torch.device):
            device = CudaDevice(device)
            cards.check_has_code(device.card)
            cards.check_triton_runs()
        self._device = device

    def page_bytes(self, shapes: Sequence[KVShape]) -> int:
        """Bytes of one page in all layers."""
        return bytes_per_page(shapes, self.page_size, self._dtype)

    def available_bytes(self) -> int:
        """Bytes of the card's memory that are free."""
        return self._device.free_bytes()

    def prepare(self, model: PreTrainedModel, quantization: Quantization | None) -> FusedLayers:
        """Fuse element-wise operators, and quantize the frozen linear layers if that is asked for."""
        return prepare_layers(model, quantization, self._device.card)

    def runner(
        self,
        model: PreTrainedModel,
        embedding: SplicedEmbedding,
        shapes: Sequence[KVShape],
        limits: RunnerLimits,
        banned_ids: Sequence[int],
    ) -> CudaRunner:
        """A runner that computes the model's steps."""
        pages = DevicePages(self._device, shapes, limits.num_pages, self._dtype)
        return CudaRunner(model, embedding, self._device, pages, limits, banned_ids, self._options)
