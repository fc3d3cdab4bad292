"""The drop-in layer: a model's input embedding that also has the virtual tokens of soft prompts."""

from ruprompt_fast.embedding.attachment import MARKER_ROOM, attach_prompts, detach_prompts, original_embedding
from ruprompt_fast.embedding.layer import PromptSlot, SplicedEmbedding, note_update
from ruprompt_fast.embedding.row_table import RowTable
from ruprompt_fast.embedding.saving import PROVIDERS_KEY, hide_from_save, provider_tensors

__all__ = [
    "MARKER_ROOM",
    "PROVIDERS_KEY",
    "PromptSlot",
    "RowTable",
    "SplicedEmbedding",
    "attach_prompts",
    "detach_prompts",
    "hide_from_save",
    "note_update",
    "original_embedding",
    "provider_tensors",
]
