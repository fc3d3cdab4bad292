"""What a prompt, or several, is in use with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.embedding import SplicedEmbedding


@dataclass
class PromptContext:
    """What a prompt, or several, is in use with.

    Attributes:
        is_initialized: whether the prompt has its compiled format and its rows.
        is_attached: whether a model's embedding was replaced.
        model: the model of the last initialization or attachment.
        tokenizer: likewise.
        is_warned: whether a warning was given that the model may not be the one that the prompt was made for.
        embedding: the layer that replaces the model's embedding.
    """

    is_initialized: bool = False
    is_attached: bool = False
    is_warned: bool = False
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    embedding: SplicedEmbedding | None = None
