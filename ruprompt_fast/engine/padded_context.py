"""What surrounds one call of transformers' generate on the padded path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F

from ruprompt_fast.errors import DetachedModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from ruprompt_fast.embedding import SplicedEmbedding

# Settings whose processors look up scores by the ids of the input: prompt rows and padding need columns there.
_READS_INPUT_IDS = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "watermarking_config",
)


def check_attached(model: PreTrainedModel, embedding: SplicedEmbedding) -> None:
    """Refuse a model whose prompts are gone.

    Raises:
        DetachedModelError: the model has another input embedding now.
    """
    if model.get_input_embeddings() is not embedding:
        raise DetachedModelError(
            "the model's input embedding is not this FastPromptModel's any more: it was detached, or another "
            "prompt was attached. Make a new FastPromptModel, and attach nothing else to a model it serves."
        )


@contextmanager
def score_columns(model: PreTrainedModel, columns: int) -> Iterator[None]:
    """Within the block, logits have as many columns as the batch has ids, so that processors can look them up.

    The columns hold the smallest finite number: with minus infinity, guidance would subtract infinities.
    """

    def widen(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        missing = columns - output.logits.shape[-1]
        output.logits = F.pad(output.logits, (0, missing), value=torch.finfo(output.logits.dtype).min)

    handle = model.register_forward_hook(widen)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def own_defaults(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Keep transformers from filling unset settings in from the model's defaults a second time."""
    owner = cast(Any, model)
    defaults, owner.generation_config = owner.generation_config, settings
    try:
        yield
    finally:
        owner.generation_config = defaults


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Within the block, torch draws from the seed, and as before behind it."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def reads_input_ids(config: GenerationConfig) -> bool:
    """Whether a setting looks scores up by the ids of the input."""
    neutral = (None, 0, 1, 1.0)
    return any(getattr(config, name, None) not in neutral for name in _READS_INPUT_IDS)
