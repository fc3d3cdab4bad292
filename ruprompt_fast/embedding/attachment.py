"""Replacing a model's input embedding by the layer, and putting the original back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ruprompt_fast.embedding.layer import Attachment, PromptSlot, SplicedEmbedding
from ruprompt_fast.embedding.saving import hide_from_save
from ruprompt_fast.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MARKER_ROOM = 1024
"""Ids left free between the token table and the first row, for the markers of prompts attached later."""


def original_embedding(model: PreTrainedModel) -> nn.Module:
    """The model's own input embedding, whether prompts are attached or not."""
    embedding = model.get_input_embeddings()
    return embedding.original if isinstance(embedding, SplicedEmbedding) else embedding


def attach_prompts(
    model: PreTrainedModel, slots: Sequence[PromptSlot], min_first_prompt_id: int = 0
) -> SplicedEmbedding:
    """Replace the model's input embedding by one that has the slots' prompts.

    A model that is already patched is restored first. If a slot does not fit, nothing changes. The model's own
    ``save_pretrained`` still writes the base model only.

    Args:
        model: any transformers model with one token table; encoder-decoder models too.
        slots: the prompts, in the order of their virtual tokens.
        min_first_prompt_id: an id above every marker; ``len(tokenizer)`` after the markers are added.

    Raises:
        UnsupportedModelError: the model has no input embedding of [tokens, width].
        PromptMismatchError: a prompt was made for another width.
    """
    original = original_embedding(model)
    table_size = getattr(getattr(original, "weight", None), "shape", (0,))[0]
    # The room lets prompts with new markers join an attached embedding without new ids for the others.
    embedding = SplicedEmbedding(original, max(table_size, min_first_prompt_id) + MARKER_ROOM, slots)
    detach_prompts(model)
    places = [(parent, name, child) for parent in model.modules() for name, child in parent._modules.items()]
    model.set_input_embeddings(embedding)
    replaced = [(parent, name, child) for parent, name, child in places if parent._modules[name] is embedding]
    embedding._attachment = Attachment(model, replaced)
    for part in _with_tokens(model):
        part.resize_token_embeddings = _refuse_resize
    hide_from_save(model)
    return embedding


def detach_prompts(model: PreTrainedModel) -> nn.Module:
    """Put the original embedding back and return it: the same object. Does nothing to a model without prompts."""
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, SplicedEmbedding) or embedding._attachment is None:
        return embedding
    original = embedding.original
    for parent, name, child in embedding._attachment.replaced:
        if child is not None and child is not original:
            child.weight = embedding.weight  # T5 ties three modules to one table
        parent._modules[name] = child
    embedding._attachment = None
    for part in _with_tokens(model):
        vars(part).pop("resize_token_embeddings", None)
    hide_from_save(model)
    return original


def _with_tokens(model: PreTrainedModel) -> list[Any]:
    """The model and those of its parts whose token table transformers can resize."""
    return [part for part in model.modules() if hasattr(part, "resize_token_embeddings")]


def _refuse_resize(*args: Any, **kwargs: Any) -> None:
    """The ``resize_token_embeddings`` of a model with prompts, whose virtual tokens have the ids after its table's.

    Raises:
        UnsupportedModelError: always.
    """
    raise UnsupportedModelError(
        "resize_token_embeddings cannot change a model while prompts are attached: the ids of their virtual "
        "tokens follow the token table's. Call detach() of the Prompt, MultiPrompt or FastPromptModel that holds it, "
        "resize the model, and attach again."
    )
