"""What the frozen layers of a model become on a CUDA card: fewer kernels, and int8 weights on request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ruprompt_fast.backends.cuda.fused_blocks import FusedBlock, fused_blocks
from ruprompt_fast.backends.cuda.fused_norms import FusedNorm, fused_norm
from ruprompt_fast.backends.packing import PackedModel, WeightFormats, packed_model
from ruprompt_fast.ops.cuda.cards import Card
from ruprompt_fast.ops.cuda.int8_linear import Int8Weight, can_quantize
from ruprompt_fast.ops.packed_linear import PlainWeight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.backends.base import Quantization


def _never(dtype: torch.dtype, device: torch.device) -> bool:
    """The library multiplies from weights as they are."""
    return False


class FusedLayers:
    """A model whose layers run in fewer kernels; made by :func:`prepare_layers`.

    Attributes:
        packed: its linear layers and activations.
        num_norms: how many norms take one kernel.
        num_blocks: how many blocks add their residuals in the kernels of the norms.
    """

    def __init__(self, packed: PackedModel) -> None:
        self.packed = packed
        self._forwards: list[tuple[nn.Module, FusedNorm | FusedBlock]] = []
        self._fuse()

    @property
    def watched(self) -> Sequence[Tensor]:
        """The parameters whose memory is released; other code may hold them and write to them."""
        return self.packed.watched

    def is_outdated(self) -> bool:
        """Whether something has written to the plain form of an int8 weight."""
        return self.packed.is_outdated()

    def prepare_again(self, *, thorough: bool = False) -> FusedLayers:
        """Prepare the model as it is now, reusing what has not changed. This object cannot be used afterwards.

        Args:
            thorough: quantize every weight again whose plain form other code holds.

        Raises:
            FrozenWeightsError: something has written to a weight whose memory was released.
        """
        packed = self.packed.prepare_again(thorough=thorough)
        self._unfuse()
        return FusedLayers(packed)

    def undo(self) -> None:
        """Give the model its own layers back: a quantized weight as ``value * scale``, all others bitwise identical.

        A second call does nothing.
        """
        self._unfuse()
        self.packed.undo()

    def _fuse(self) -> None:
        model: Any = self.packed.model
        norms = {id(module): fused for module in model.modules() if (fused := fused_norm(module)) is not None}
        blocks = fused_blocks(model, norms)
        with_residual = {id(norm) for block in blocks for norm in (block.inner_norm, block.next_norm)}
        useful = [norm for norm in norms.values() if norm.saves_kernels or id(norm) in with_residual]
        self._forwards = [(norm.module, norm) for norm in useful] + [(block.block, block) for block in blocks]
        for module, forward in self._forwards:
            module.forward = forward
        self.num_norms, self.num_blocks = len(useful), len(blocks)

    def _unfuse(self) -> None:
        for module, forward in self._forwards:
            if vars(module).get("forward") is forward:  # else other code has wrapped or replaced it
                del module.forward
        self._forwards = []


def prepare_layers(model: PreTrainedModel, quantization: Quantization | None, card: Card) -> FusedLayers:
    """Have a model's frozen layers run in fewer kernels, for inference; with ``"int8"``, from quantized weights.

    Every norm is one kernel, a residual connection is computed by the kernel of the norm after it where the block's
    code is known, an activation that takes many passes in transformers takes one, and dropout of a model in evaluation
    mode is skipped. Linear layers stay as they are: the library adds the bias. With ``quantization`` they are replaced
    as :func:`~ruprompt_fast.backends.packing.packed_model` says, with the activation in the kernel.

    Layers that other code has given a forward of its own stay as they are. Gradients flow through all but int8 layers.

    Args:
        model: a model in evaluation mode; it is changed in place.
        quantization: ``"int8"`` keeps the weights of linear layers as int8, with one scale per output channel.
        card: the card that it runs on.
    """
    formats = WeightFormats(PlainWeight, _never, partial(Int8Weight, card=card), can_quantize)
    return FusedLayers(packed_model(model, formats, quantization))
