"""What a model's frozen layers become on a card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ruprompt_fast.errors import UnsupportedModelError
from ruprompt_fast.ops.cuda.cards import Card

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.backends.base import Quantization


class FusedLayers:
    """A :class:`~ruprompt_fast.backends.PreparedModel` with the model's own layers."""

    watched: Sequence[Tensor] = ()

    def is_outdated(self) -> bool:
        """Never."""
        return False

    def prepare_again(self, *, thorough: bool) -> FusedLayers:
        """Nothing is to be done."""
        return self

    def undo(self) -> None:
        """Nothing is to be done."""


def prepare_layers(model: PreTrainedModel, quantization: Quantization | None, card: Card) -> FusedLayers:
    """Leave the model as it is."""
    if quantization is not None:
        raise UnsupportedModelError(f"a card has no layers for quantization={quantization!r}.")
    return FusedLayers()
