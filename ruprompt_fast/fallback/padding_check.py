"""Checks whether a model computes a sequence of a padded batch as it computes it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ruprompt_fast.fallback.padded_batch import Togetherness
from ruprompt_fast.integration import batch_dependence
from ruprompt_fast.requests.inputs import Request

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

_LENGTHS = (5, 11)
_NUM_STEPS = 3
# How much logits may differ from those of the sequence alone, in the Frobenius norm. A wrong position, or padding that
# is read, changes them far more.
_RELATIVE_ERROR = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

Run = Callable[[Sequence[Request]], Tensor]
"""Logits of the first new tokens of a batch of requests, [batch, steps, vocabulary]."""


def togetherness(model: PreTrainedModel, run: Run) -> Togetherness:
    """Which requests may share a batch.

    Many models treat padding as text: models whose positions count it (learned positions without a mask, BART's decoder
    alone), and recurrent models, which read it. Some configs say that a model depends on its batch. For the others, two
    short sequences run padded, and their logits are compared with those of one of them alone.

    Args:
        model: the model; its config and dtype.
        run: runs requests as the transformers fallback does.
    """
    if batch_dependence(model):
        return "alone"
    vocab_size = int(model.config.get_text_config().vocab_size)
    short, long = (Request([token % vocab_size for token in range(3, 3 + 7 * length, 7)], None) for length in _LENGTHS)
    alone = run([short])
    allowed = _RELATIVE_ERROR.get(model.dtype, 0.0)
    if _is_close(run([short, long])[0], alone[0], allowed):
        return "any"
    other = Request(short.input_ids[::-1], None)
    return "equal lengths" if _is_close(run([short, other])[0], alone[0], allowed) else "alone"


def first_logits_settings(model: PreTrainedModel) -> GenerationConfig:
    """Settings with which ``generate`` returns the logits of a few steps, the later ones with a KV cache."""
    from transformers import GenerationConfig

    own = model.generation_config
    return GenerationConfig(
        max_new_tokens=_NUM_STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
    )


def _is_close(actual: Tensor, expected: Tensor, allowed: float) -> bool:
    distance = (actual.double() - expected.double()).norm() / expected.double().norm()
    return bool(distance <= allowed)
