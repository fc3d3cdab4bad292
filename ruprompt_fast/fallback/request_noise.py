"""Random numbers of the transformers fallback: every request has its own generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ruprompt_fast.fallback.call_context import WideLogits

# Functions besides `multinomial` that draw random numbers and take a generator.
_DRAWS = frozenset(
    {
        *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.bernoulli, torch.normal, torch.poisson),
        *(Tensor.bernoulli, Tensor.bernoulli_, Tensor.exponential_, Tensor.uniform_, Tensor.normal_, Tensor.random_),
        *(Tensor.cauchy_, Tensor.geometric_, Tensor.log_normal_),
    }
)
# Functions that take none, and the function of the same numbers that does.
_LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}


class RequestNoise(TorchFunctionMode):
    """Within the block, on this thread, tokens are drawn for each request from a generator of its seed alone.

    Torch's own generator belongs to the process: other threads draw from it, and requests of one batch would shift each
    other's numbers. Tokens are drawn as ``multinomial(probs)`` with probs [requests * k, n]; the k rows of a request
    follow each other. Prompt look-up, which runs one request at a time, accepts candidates with other draws: they use
    the first request's generator.

    Args:
        seeds: one for each request of the batch.
        device: where the probabilities are.
        wide: what has widened the logits. Its columns depend on the whole batch, so they get no random numbers.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, wide: WideLogits | None) -> None:
        super().__init__()
        self._wide = wide
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.multinomial, Tensor.multinomial) and kwargs.get("generator") is None:
            return self._multinomial(*args, **kwargs)
        if func in _LIKE:
            like, kwargs = args[0], {name: value for name, value in kwargs.items() if name != "memory_format"}
            kwargs = {"dtype": like.dtype, "device": like.device, **kwargs}
            return _LIKE[func](like.shape, generator=self._generators[0], **kwargs)
        if func in _DRAWS and kwargs.get("generator") is None:
            kwargs["generator"] = self._generators[0]
        return func(*args, **kwargs)

    def _multinomial(
        self, input: Tensor, num_samples: int, replacement: bool = False, *, generator: None = None
    ) -> Tensor:
        wide = self._wide
        if wide is not None:  # [rows, beams * columns]
            input = input.unflatten(1, (-1, wide.num_columns))[..., : wide.num_tokens].flatten(1)
        parts = input.split(max(1, len(input) // len(self._generators)))
        drawn = torch.cat(
            [
                torch.multinomial(part, num_samples, replacement, generator=own)
                for part, own in zip(parts, self._generators, strict=True)
            ]
        )
        if wide is None:
            return drawn
        return drawn // wide.num_tokens * wide.num_columns + drawn % wide.num_tokens
