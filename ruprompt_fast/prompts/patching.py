"""Attaching prompts to a model: the only place of this package that knows the embedding layer.

It is imported when the first prompt is attached: loading and formatting prompts needs no operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ruprompt_fast.errors import PromptInitError, PromptMismatchError, shown
from ruprompt_fast.prompts.files import base_model
from ruprompt_fast.prompts.files.base_model import BaseModel
from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.embedding import PromptSlot, SplicedEmbedding
    from ruprompt_fast.prompts.prompt import Prompt


def original_embedding(model: PreTrainedModel) -> nn.Module:
    """The model's own input embedding, whether it is patched or not."""
    from ruprompt_fast.embedding import original_embedding as original

    return original(model)


def embedding_width(embedding: nn.Module) -> int:
    """The width of what an embedding returns."""
    return cast(int, getattr(embedding, "embedding_dim", cast(Tensor, embedding.weight).shape[1]))


def check_rows(provider: BasePromptProvider, prompt_length: int, width: int, made_for: str | None) -> None:
    """Check that a provider's rows are for this template and this model.

    Raises:
        PromptMismatchError: they have another shape.
    """
    with torch.no_grad():
        found = list(provider().shape)
    if found != [prompt_length, width]:
        raise PromptMismatchError(
            f"the template and the model need rows {[prompt_length, width]}; the prompt's are {found}. "
            f"It was made for {made_for or 'another model or template'}: load that one, or train a prompt for this one."
        )


def base_of(model: PreTrainedModel) -> BaseModel | None:
    """What a model is, whether it is patched or not; None if that cannot be said."""
    table = getattr(original_embedding(model), "weight", None)
    return BaseModel.of(model.config, table) if isinstance(table, Tensor) else None


def check_base(prompt: Prompt, model: PreTrainedModel) -> None:
    """Refuse a prompt of another model, see :func:`~ruprompt_fast.prompts.files.base_model.check_base`."""
    base_model.check_base(prompt, base_of(model), getattr(model.config, "name_or_path", None))


def note_base(prompt: Prompt, model: PreTrainedModel) -> None:
    """Say that a prompt is trained for this model, which :func:`check_base` did not refuse."""
    prompt.config.base_model = base_of(model)


def refuse_deep(prompts: Iterable[Prompt]) -> None:
    """Refuse deep prompts where prompts become rows of an embedding.

    Raises:
        PromptInitError: there is one.
    """
    for prompt in prompts:
        if prompt.provider.is_deep:
            raise PromptInitError(
                f"the prompt {shown(prompt.format.template)} is deep: its keys and values are in every layer, and an "
                "embedding has no place for them. Serve it with FastPromptModel.add_prompt(), or train it with "
                "PromptTrainer; both take the model without patch() or attach()."
            )


def attach(prompts: Sequence[Prompt], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SplicedEmbedding:
    """Patch a model with initialized prompts and add their markers to the tokenizer.

    Raises:
        PromptInitError: a prompt is deep; nothing is changed then.
        PromptMismatchError: a prompt was made for another width or model; nothing is changed then.
    """
    from ruprompt_fast.embedding import attach_prompts

    refuse_deep(prompts)
    embedding = original_embedding(model)
    for prompt in prompts:
        _check_prompt(prompt, embedding)
        check_base(prompt, model)
    slots = [_make_slot(prompt, embedding, tokenizer) for prompt in prompts]
    markers = [slot.marker_id + 1 for slot in slots if slot.marker_id is not None]
    return attach_prompts(model, slots, max([len(tokenizer), *markers]))


def attach_one_more(
    prompt: Prompt,
    attached: Sequence[Prompt],
    embedding: SplicedEmbedding,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> SplicedEmbedding:
    """Add an initialized prompt to a patched model; returns the embedding, a new one if the old has no room left.

    Raises:
        PromptInitError: the prompt is deep; nothing is changed then.
        PromptMismatchError: the prompt was made for another width or model; nothing is changed then.
    """
    refuse_deep([prompt])
    _check_prompt(prompt, embedding.original)
    check_base(prompt, model)
    slot = _make_slot(prompt, embedding.original, tokenizer)
    if slot.marker_id is not None and slot.marker_id >= embedding.first_prompt_id:
        return attach([*attached, prompt], model, tokenizer)
    embedding.add_slot(slot)
    return embedding


def detach(model: PreTrainedModel, embedding: SplicedEmbedding | None = None) -> None:
    """Give the model its own embedding back; given an embedding, only if the model is patched with that one."""
    from ruprompt_fast.embedding import detach_prompts

    if embedding is None or model.get_input_embeddings() is embedding:
        detach_prompts(model)


def _check_prompt(prompt: Prompt, embedding: nn.Module) -> None:
    length = cast(int, prompt.format.prompt_length)
    check_rows(prompt.provider, length, embedding_width(embedding), prompt.config.pretrained_model_name)


def _make_slot(prompt: Prompt, embedding: nn.Module, tokenizer: PreTrainedTokenizerBase) -> PromptSlot:
    from ruprompt_fast.embedding import PromptSlot

    markers = prompt.format.add_tokens(tokenizer)
    if len(markers) != 1:
        raise PromptInitError(
            f"a format must have one marker to be attached; {shown(prompt.format)} has {len(markers)}."
        )
    prompt.provider.to(cast(Tensor, embedding.weight).device)
    return PromptSlot(prompt.provider, cast(int, prompt.format.prompt_length), markers[0])
