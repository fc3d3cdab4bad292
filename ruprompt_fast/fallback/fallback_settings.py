"""What a task asks of transformers' ``generate``: refused where that cannot do it, else put into its settings."""

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
    """Refuse settings that transformers has, but not for these requests or this model.

    Raises:
        SettingError: see above.
    """
    guided = any(task.config.guidance_scale not in (None, 1) for task in tasks)
    if guided and model.config.is_encoder_decoder:
        raise SettingError("guidance_scale needs a decoder-only model: transformers cannot guide encoder-decoders.")
    if any(task.config.prompt_lookup_num_tokens and task.config.do_sample for task in tasks if task.request.prompt):
        raise SettingError(
            "prompt_lookup_num_tokens with do_sample=True cannot run behind a prompt: transformers would propose "
            "the prompt's rows as tokens. Leave one of the two out."
        )


def check_decoder_start(model: PreTrainedModel, decoder_start: int | None) -> None:
    """Refuse an encoder-decoder that does not say what its decoder starts with, which label words stand behind.

    Raises:
        UnsupportedModelError: see above.
    """
    if model.config.is_encoder_decoder and decoder_start is None:
        raise UnsupportedModelError(
            "classification needs the token that the decoder starts with; set the model's "
            "generation_config.decoder_start_token_id before it is loaded here."
        )


def settings_of(
    task: GenerationTask, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, embedding: SplicedEmbedding
) -> tuple[GenerationConfig, list[str]]:
    """The settings that a task's batch gives to transformers' ``generate``, and its stop strings apart from them.

    Args:
        task: one of the batch, whose tasks have the same settings.
        model: the model.
        tokenizer: its tokenizer.
        embedding: its input embedding.
    """
    settings = copy.deepcopy(task.config)
    settings.max_length, settings.min_length = None, None
    settings.max_new_tokens, settings.min_new_tokens = task.budget.most, task.budget.least or None
    settings.pad_token_id = _padding_token(tokenizer, settings, embedding.num_embeddings)
    if embedding.weight.device.type == "cpu" and "offloaded" in (settings.cache_implementation or ""):
        settings.cache_implementation = None  # there is nowhere to offload to, and transformers asks for CUDA
    if never := unused_ids(model, tokenizer):
        settings.suppress_tokens = sorted({*(settings.suppress_tokens or ()), *never})
    strings, settings.stop_strings = settings.stop_strings or [], None
    return settings, [strings] if isinstance(strings, str) else list(strings)


def _padding_token(tokenizer: PreTrainedTokenizerBase, config: GenerationConfig, num_embeddings: int) -> int:
    """What ended sequences are filled with; a padding token that the model has no row for will not do."""
    eos = config.eos_token_id
    candidates = [config.pad_token_id, tokenizer.pad_token_id, *(eos if isinstance(eos, (list, tuple)) else [eos])]
    return next((token for token in candidates if isinstance(token, int) and 0 <= token < num_embeddings), 0)
