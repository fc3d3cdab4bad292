"""Loading models and tokenizers for serving."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import torch

from ruprompt_fast.errors import SettingError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    model: Any,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
) -> PreTrainedModel:
    """A frozen model from a folder or the hub, encoder-decoder or decoder.

    Args:
        model: a folder or a hub id.
        dtype: the weights'; None takes the file's on a GPU and float32 on a CPU.
        device: None takes the GPU if there is one.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    target = torch.device(device) if device is not None else _default_device()
    if dtype is None:
        # float16 arithmetic on a CPU is many times slower than float32.
        dtype = torch.float32 if target.type == "cpu" else "auto"
    config = AutoConfig.from_pretrained(model)
    factory = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    network: Any = factory.from_pretrained(model, dtype=dtype)
    return cast("PreTrainedModel", network.to(target).requires_grad_(False))


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by object or name; a model object's own for ``auto``."""
    if not isinstance(dtype, str) or dtype == "auto":
        return None if isinstance(dtype, str) else dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise SettingError(f"unknown dtype {dtype!r}; expected a name such as 'float32' or 'bfloat16'.")
    return found


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(
    model: PreTrainedModel | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None,
) -> PreTrainedTokenizerBase:
    """The tokenizer that is given, or the model's own.

    Raises:
        UnsupportedModelError: no tokenizer, and a model object that does not say where it comes from.
    """
    if tokenizer is not None and not isinstance(tokenizer, (str, os.PathLike)):
        return tokenizer
    source = tokenizer or (model if isinstance(model, (str, os.PathLike)) else model.config.name_or_path)
    if not source:
        raise UnsupportedModelError("this model object does not say where it comes from; give its tokenizer too.")
    from transformers import AutoTokenizer

    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    return loaded
