"""Checks what tasks ask of transformers' ``generate``, and makes the settings that it takes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ruprompt_fast.errors import SettingError, UnsupportedModelError
from ruprompt_fast.requests.generation_task import GenerationTask
from ruprompt_fast.requests.stopping import unused_ids

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.embedding import SplicedEmbedding


def check_tasks(model: PreTrainedModel, tasks: Sequence[GenerationTask]) -> None:
    """Refuse settings of transformers that do not work with these requests or this model.

    Raises:
        SettingError: there is such a setting.
    """
    guided = any(task.config.guidance_scale not in (None, 1) for task in tasks)
    if guided and model.config.is_encoder_decoder:
        raise SettingError("guidance_scale needs a decoder-only model: transformers cannot guide encoder-decoders.")
    if any(task.config.prompt_lookup_num_tokens and task.config.do_sample for task in tasks if task.request.prompt):
        raise SettingError(
            "prompt_lookup_num_tokens with do_sample=True cannot run after a prompt: transformers would propose "
            "the prompt's virtual tokens as text. Leave one of the two out."
        )


def check_decoder_start(model: PreTrainedModel, decoder_start: int | None) -> None:
    """Refuse an encoder-decoder that does not say which token its decoder, and so its label words, start after.

    Raises:
        UnsupportedModelError: it does not say so.
    """
    if model.config.is_encoder_decoder and decoder_start is None:
        raise UnsupportedModelError(
            "classification needs the token that the decoder starts with; set the model's "
            "generation_config.decoder_start_token_id before it is loaded here."
        )


def settings_of(
    task: GenerationTask, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, embedding: SplicedEmbedding
) -> tuple[GenerationConfig, list[str]]:
    """The settings that transformers' ``generate`` gets for a batch, and the batch's stop strings apart from them.

    Args:
        task: one task of the batch; all have the same settings.
        model: the model.
        tokenizer: its tokenizer.
        embedding: its input embedding.
    """
    settings = copy.deepcopy(task.config)
    settings.max_length, settings.min_length = None, None
    settings.max_new_tokens, settings.min_new_tokens = task.budget.most, task.budget.least or None
    settings.pad_token_id = _padding_token(tokenizer, settings, embedding.num_embeddings)
    if embedding.weight.device.type == "cpu" and "offloaded" in (settings.cache_implementation or ""):
        settings.cache_implementation = None  # nowhere to offload to, and transformers requires CUDA
    if never := unused_ids(model, tokenizer):
        settings.suppress_tokens = sorted({*(settings.suppress_tokens or ()), *never})
    strings, settings.stop_strings = settings.stop_strings or [], None
    return settings, [strings] if isinstance(strings, str) else list(strings)


def _padding_token(tokenizer: PreTrainedTokenizerBase, config: GenerationConfig, num_embeddings: int) -> int:
    """What ended sequences are filled with: a token that the model has a row for."""
    eos = config.eos_token_id
    candidates = [config.pad_token_id, tokenizer.pad_token_id, *(eos if isinstance(eos, (list, tuple)) else [eos])]
    return next((token for token in candidates if isinstance(token, int) and 0 <= token < num_embeddings), 0)
