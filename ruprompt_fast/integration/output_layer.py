"""Takes the output layer out of a model, for callers that need only some of the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NUM_TOKENS = 5


class OutputLayer:
    """Takes the output layer out of a model's forward, so that its ``logits`` are the layer's inputs.

    Args:
        model: a decoder, with its own attention.

    Attributes:
        linear: the layer; None where the logits are more than the output of one linear layer (Gemma 2 bounds them,
            Cohere scales them), which a forward pass of the model tells.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layer = model.get_output_embeddings()
        is_plain = type(layer) is nn.Linear and "forward" not in vars(layer)
        self.linear: nn.Linear | None = layer if is_plain else None
        if self.linear is not None and not self._computes_the_logits(model, self.linear):
            self.linear = None

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Within the block, the model's logits are the output layer's inputs, if there is a :attr:`linear`."""
        if self.linear is None:
            yield
            return
        with self._replaced(_identity):
            yield

    @contextmanager
    def _replaced(self, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
        linear: Any = self.linear
        before = vars(linear).pop("forward", None)
        linear.forward = forward
        try:
            yield
        finally:
            del linear.forward
            if before is not None:
                linear.forward = before

    @torch.no_grad()
    def _computes_the_logits(self, model: PreTrainedModel, linear: nn.Linear) -> bool:
        """Whether the model returns what the layer computes, unchanged and of any width."""
        run: Any = model
        input_ids = torch.arange(_NUM_TOKENS, device=linear.weight.device)[None]
        # Large enough for any bound to show.
        given = torch.linspace(-1e4, 1e4, _NUM_TOKENS * linear.out_features).view(1, _NUM_TOKENS, -1).to(linear.weight)
        with self._replaced(lambda x: given):
            logits: Tensor = run(input_ids=input_ids, use_cache=False).logits
        with self.left_out():
            inputs: Tensor = run(input_ids=input_ids, use_cache=False).logits
        is_unchanged = logits.shape == given.shape and torch.equal(logits.to(given.dtype), given)
        return is_unchanged and inputs.shape[-1] == linear.in_features


def _identity(x: Tensor) -> Tensor:
    return x
