"""One request with everything that says how it is to be continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ruprompt_fast.engine.context import NewTokens, new_tokens
from ruprompt_fast.engine.requests import Request
from ruprompt_fast.engine.sampling import ExtraSettings, SamplingParams, sampling_params

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig


@dataclass(frozen=True)
class GenerationTask:
    """A request and its settings.

    Attributes:
        request: the encoded request.
        config: transformers' settings, merged and complete.
        extras: the settings that transformers does not have.
        budget: how many new tokens it may have.
    """

    request: Request
    config: GenerationConfig
    extras: ExtraSettings
    budget: NewTokens

    def params(self, vocab_size: int) -> SamplingParams:
        """The settings as the engine reads them.

        A task without a seed draws one from torch's generator, so ``torch.manual_seed`` makes a whole call repeatable.

        Args:
            vocab_size: ids that settings may name.

        Raises:
            SettingError: a setting has a value that cannot work.
        """
        seed = self.extras.seed
        if seed is None:
            seed = int(torch.randint(2**63 - 1, ())) if self.config.do_sample else 0
        return sampling_params(
            self.config,
            self.extras,
            min_new_tokens=self.budget.least,
            max_new_tokens=self.budget.most,
            seed=seed,
            vocab_size=vocab_size,
        )


def make_tasks(
    requests: Sequence[Request],
    configs: Sequence[GenerationConfig],
    extras: Sequence[ExtraSettings],
    model_config: PretrainedConfig,
) -> list[GenerationTask]:
    """Put requests and settings together.

    Raises:
        ContextLengthError, SettingError: a request and its new tokens do not fit the model.
    """
    return [
        GenerationTask(request, config, extra, new_tokens(model_config, request.input_ids, config, index))
        for index, (request, config, extra) in enumerate(zip(requests, configs, extras, strict=True))
    ]
