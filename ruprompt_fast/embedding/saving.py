"""What a model with prompts writes to its files: the base model only, or the providers too on request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROVIDERS_KEY = "prompt_providers."
"""Part of the names of all providers' parameters in a model's ``named_parameters()``."""


def hide_from_save(model: PreTrainedModel, hidden: bool = True) -> None:
    """Have ``save_pretrained`` of the model and its parts leave out the providers' parameters, or write them again.

    Each is written under one name only: transformers does not know that an encoder-decoder's two embeddings share their
    providers.
    """
    part: Any
    for part in model.modules():
        if hasattr(part, "_keys_to_ignore_on_save"):
            kept = {key for key in part._keys_to_ignore_on_save or () if PROVIDERS_KEY not in key}
            providers = {key for key in part.state_dict() if PROVIDERS_KEY in key}
            written = set() if hidden else provider_tensors(part).keys()
            part._keys_to_ignore_on_save = kept | (providers - written)


def provider_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The providers' parameters and buffers by the first of their names in a model's state."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if PROVIDERS_KEY in name and id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors
