"""One request with all its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ruprompt_fast.errors import CapacityError
from ruprompt_fast.requests.generation_settings import sampling_params
from ruprompt_fast.requests.inputs import Request
from ruprompt_fast.requests.new_tokens import NewTokens, new_tokens
from ruprompt_fast.requests.sampling_params import ExtraSettings, SamplingParams

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig

SEQUENCES_PER_SLOT = 4
"""A request may have this many times ``max_batch_size`` beams or samples. More than ``max_batch_size`` of them run on
the transformers fallback, which holds the keys, values and logits of all of them in memory at once."""


@dataclass(frozen=True)
class GenerationTask:
    """A request and its settings.

    Attributes:
        request: the encoded request.
        config: transformers' settings, merged and complete.
        extras: the settings that transformers does not have.
        budget: how many new tokens it may have.
        resolved: the settings as the engine reads them, without the seed.
    """

    request: Request
    config: GenerationConfig
    extras: ExtraSettings
    budget: NewTokens
    resolved: SamplingParams

    @property
    def num_sequences(self) -> int:
        """How many sequences run for it at once."""
        return max(self.resolved.num_beams, self.resolved.num_return_sequences)

    def noise_seed(self) -> int:
        """The seed of its sampling.

        A task without one draws it from torch's generator, so ``torch.manual_seed`` makes a whole call repeatable.
        """
        if self.extras.seed is not None:
            return self.extras.seed
        return int(torch.randint(2**63 - 1, ())) if self.resolved.do_sample else 0

    def params(self) -> SamplingParams:
        """The settings as the engine reads them, with the seed of its sampling."""
        seed = self.noise_seed()
        return self.resolved if seed == self.resolved.seed else replace(self.resolved, seed=seed)


def make_tasks(
    requests: Sequence[Request],
    configs: Sequence[GenerationConfig],
    extras: Sequence[ExtraSettings],
    model_config: PretrainedConfig,
    max_batch_size: int,
) -> list[GenerationTask]:
    """Put requests and settings together.

    Args:
        requests: the requests.
        configs: transformers' settings of each, merged; equal ones may be one object.
        extras: the other settings of each, likewise.
        model_config: the model's config.
        max_batch_size: maximum number of concurrent sequences.

    Raises:
        ContextLengthError: a request and its new tokens do not fit the model.
        SettingError: a setting has a value that cannot work.
        CapacityError: a request asks for too many sequences.
    """
    vocab_size = model_config.get_text_config().vocab_size
    resolved: dict[tuple[int, int, NewTokens], SamplingParams] = {}
    tasks = []
    for request, config, extra in zip(requests, configs, extras, strict=True):
        budget = new_tokens(model_config, request.input_ids, config, request.index)
        key = (id(config), id(extra), budget)
        if key not in resolved:
            resolved[key] = sampling_params(
                config,
                extra,
                min_new_tokens=budget.least,
                max_new_tokens=budget.most,
                seed=0,
                vocab_size=vocab_size,
            )
            _check_sequences(resolved[key], max_batch_size)
        tasks.append(GenerationTask(request, config, extra, budget, resolved[key]))
    return tasks


def _check_sequences(params: SamplingParams, max_batch_size: int) -> None:
    """Refuse more sequences than one request may have."""
    most = SEQUENCES_PER_SLOT * max_batch_size
    for name in ("num_beams", "num_return_sequences"):
        if getattr(params, name) > most:
            raise CapacityError(
                f"{name} may be at most {most}, {SEQUENCES_PER_SLOT} times max_batch_size={max_batch_size}; found "
                f"{getattr(params, name)}. Ask for fewer, or load the model with a larger max_batch_size."
            )
