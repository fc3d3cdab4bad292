"""What one call of transformers' generate needs around it: checks, settings, wider logits, errors."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F

from ruprompt_fast.errors import (
    DetachedModelError,
    EngineStepError,
    RupromptError,
    SettingError,
    UnsupportedModelError,
    described,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from ruprompt_fast.embedding import SplicedEmbedding

# Settings whose processors look up scores by the ids of the input, so that virtual tokens and padding need columns; and
# the values that turn them off.
_READS_INPUT_IDS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1),
    "encoder_repetition_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "watermarking_config": (None,),
}


def check_attached(model: PreTrainedModel, embedding: SplicedEmbedding) -> None:
    """Refuse a model that has lost its prompts.

    Raises:
        DetachedModelError: the model has another input embedding now.
        UnsupportedModelError: it was compiled in place, and compiled code does not see the virtual tokens of a call.
    """
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise UnsupportedModelError(
            "the model was compiled by model.compile(), which serving cannot use. Load it without compiling it."
        )
    if model.get_input_embeddings() is not embedding:
        raise DetachedModelError(
            "the model's input embedding is no longer this FastPromptModel's: it was detached, or another "
            "prompt was attached. Make a new FastPromptModel, and attach nothing else to the model that it serves."
        )


class WideLogits:
    """Gives logits as many columns as a batch has ids, so that processors can look up virtual tokens and padding.

    The columns hold the smallest finite number: with minus infinity, guidance would subtract infinities.

    Args:
        num_columns: how many columns the logits get.

    Attributes:
        num_tokens: how many columns the model's own logits have, once it has run.
    """

    def __init__(self, num_columns: int) -> None:
        self.num_columns = num_columns
        self.num_tokens = num_columns

    def __call__(self, module: torch.nn.Module, arguments: Any, output: Any) -> None:
        """The model's forward hook."""
        self.num_tokens = output.logits.shape[-1]
        missing = max(0, self.num_columns - self.num_tokens)
        output.logits = F.pad(output.logits, (0, missing), value=torch.finfo(output.logits.dtype).min)


def with_settings(model: PreTrainedModel, settings: GenerationConfig, wide: WideLogits | None) -> PreTrainedModel:
    """The model with settings of its own, for one call of ``generate``; its modules and weights are shared.

    ``generate`` fills unset settings in from ``model.generation_config``, which other threads read.

    Args:
        model: the model, which is not changed.
        settings: the copy's ``generation_config``.
        wide: widens the copy's logits.
    """
    view: Any = object.__new__(type(model))
    view.__dict__ = {**vars(model), "generation_config": settings}
    if wide is not None:
        view._forward_hooks = OrderedDict(view._forward_hooks)
        view.register_forward_hook(wide)
        # A watermark depends on the vocabulary's size, which has to stay.
        if (
            not _beams_count_columns(type(model))
            and (settings.num_beams or 1) > 1
            and settings.watermarking_config is None
        ):
            view.config = copy.deepcopy(model.config)
            text_config = view.config.get_text_config()
            text_config.vocab_size = max(text_config.vocab_size, wide.num_columns)
    return cast("PreTrainedModel", view)


def _beams_count_columns(model_class: type[Any]) -> bool:
    """Whether beam search takes the number of columns from the logits, as since some version of transformers 5."""
    return "vocab_size" not in inspect.signature(model_class._get_top_k_continuations).parameters


def reads_input_ids(config: GenerationConfig) -> bool:
    """Whether a setting looks scores up by the ids of the input."""
    return any(getattr(config, name, None) not in neutral for name, neutral in _READS_INPUT_IDS.items())


def generate_error(error: Exception) -> RupromptError:
    """The error for the caller where transformers' generate raises ``error``."""
    found = described(error)
    if isinstance(error, (ArithmeticError, MemoryError, OSError, RuntimeError)) and not isinstance(
        error, (NotImplementedError, OverflowError)
    ):
        return EngineStepError(f"transformers' generate failed: {found}")
    return SettingError(
        f"transformers' generate cannot run with these settings: {found}. Leave out those that are not needed."
    )
