"""Makes outputs of the tokens that transformers' generate returns: where they end, why, and their text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.requests.stop_cut import without_stop
from ruprompt_fast.requests.stopping import StopStrings

if TYPE_CHECKING:
    from transformers import GenerationConfig


def make_output(
    token_ids: list[int],
    logprobs: list[float] | None,
    prompt_name: str | None,
    settings: GenerationConfig,
    stop: StopStrings,
    text_of: Callable[[list[int]], str],
    cut_strings: Sequence[str],
) -> GenerationOutput:
    """One output, cut off where its own text ends.

    Args:
        token_ids: its new tokens, and what follows them because the rest of the batch went on.
        logprobs: their log-probabilities, or None.
        prompt_name: the prompt of its request.
        settings: the settings of its batch.
        stop: its stop strings.
        text_of: decodes tokens after its input.
        cut_strings: the stop strings that are left out of its text.
    """
    eos = settings.eos_token_id
    stops = set(eos) if isinstance(eos, (list, tuple)) else {eos}
    end = next((index + 1 for index, token in enumerate(token_ids) if token in stops), len(token_ids))
    kept = token_ids[:end]
    stopped = stop.contained_in(text_of(kept))
    if stopped:  # what follows is padding, or was generated while the rest of the batch went on
        kept = kept[: bisect_left(range(end), True, key=lambda index: stop.contained_in(text_of(kept[:index])))]
    text = without_stop(text_of(kept), cut_strings)
    if stopped or (kept and kept[-1] in stops):
        reason = "stop"
    else:
        reason = "length" if len(kept) == settings.max_new_tokens else "time"
    kept_logprobs = logprobs[: len(kept)] if logprobs is not None else None
    return GenerationOutput(text, kept, prompt_name, reason, kept_logprobs)


def token_logprobs(result: Any, token_ids: list[list[int]]) -> list[list[float]]:
    """Log-probability of every generated token, from the scores [steps][batch * beams, columns] of ``generate``."""
    tokens = torch.tensor(token_ids, device=result.scores[0].device)[:, : len(result.scores)]
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    beams = getattr(result, "beam_indices", None)
    if beams is None:
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    else:
        rows = beams[:, : tokens.shape[1]].clamp(min=0)
    logprobs = torch.stack(result.scores).log_softmax(-1)
    return cast("list[list[float]]", logprobs[steps, rows, tokens].tolist())
