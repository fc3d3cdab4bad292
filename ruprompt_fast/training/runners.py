"""Two ways to run examples through a frozen model: packed after shared prefixes, or padded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from ruprompt_fast.errors import UnsupportedModelError
from ruprompt_fast.integration import check_compatibility
from ruprompt_fast.training.examples import Example
from ruprompt_fast.training.losses import BatchLoss
from ruprompt_fast.training.packed import PackedRunner
from ruprompt_fast.training.padded import PaddedRunner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.embedding import SplicedEmbedding

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """Makes batches of examples, and their loss.

    Attributes:
        name: ``packed`` or ``padded``.
        reason: why not packed, or None.
    """

    name: str
    reason: str | None

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """A batch: tensors by name, and what needs no device. ``num_items`` is what its loss is a sum over."""
        ...

    def routing(self) -> AbstractContextManager[None]:
        """To be entered around forward and backward: layers that are checkpointed run in the backward again."""
        ...

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> BatchLoss:
        """The loss of a batch, with its graph.

        Args:
            model: the model that the runner was made for, or a wrapper that passes keyword arguments on to it.
            batch: from :meth:`collate`, on the model's device.
        """
        ...


def make_runner(
    model: PreTrainedModel, embedding: SplicedEmbedding, deep_providers: Sequence[nn.Module | None] = ()
) -> Runner:
    """The packed way where the model's attention can be routed, else the padded way, with a warning that says why.

    Args:
        model: the model, with ``embedding`` attached.
        embedding: its input embedding.
        deep_providers: for each prompt of the run its provider of keys and values, or None for embedding rows.

    Raises:
        UnsupportedModelError: the model cannot be routed, and a prompt is deep.
    """
    try:
        check_compatibility(model, embedding)
    except UnsupportedModelError as error:
        if any(provider is not None for provider in deep_providers):
            raise UnsupportedModelError(f"prefix tuning needs attention that can be routed: {error}") from error
        logger.warning(
            "%s trains padded, every sample with its own copy of the prompt: %s", type(model).__name__, error
        )
        return PaddedRunner(model, str(error))
    return PackedRunner(model, deep_providers)
