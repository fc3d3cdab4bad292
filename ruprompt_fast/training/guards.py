"""What stops a run that goes wrong: frozen weights that train, numbers that are none, a loss that runs away."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ruprompt_fast.errors import FrozenWeightsError, SettingError
from ruprompt_fast.precision import are_finite

_OF_FLOAT16 = (
    ", and float16 ends at 65,504: if this happens in the first steps, the model's own numbers lie beyond it; load "
    "it in float32, or in bfloat16 where the card has it"
)


def check_frozen(named_parameters: Iterable[tuple[str, nn.Parameter]], trained: Mapping[str, nn.Parameter]) -> None:
    """Check that only the prompts train. Looks at flags only, so it costs microseconds for every hundred weights.

    Args:
        named_parameters: all of the model's.
        trained: those that may train, by name.

    Raises:
        FrozenWeightsError: another one is set to train, or has received a gradient.
    """
    for name, parameter in named_parameters:
        if (parameter.requires_grad or parameter.grad is not None) and name not in trained:
            found = "a gradient" if parameter.grad is not None else "requires_grad=True"
            raise FrozenWeightsError(
                f"only the prompt trains, all other weights stay as they are; found {found} on {name!r}. Something "
                "unfroze it after the trainer was made: take that out, or train the model with transformers' Trainer."
            )


def check_optimizer(optimizer: torch.optim.Optimizer | None, trained: Mapping[str, nn.Parameter]) -> None:
    """Check that a user's optimizer changes nothing but the prompts.

    Raises:
        FrozenWeightsError: it has other parameters, or none.
    """
    if optimizer is None:
        return
    known = {id(parameter) for parameter in trained.values()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    foreign = sum(id(parameter) not in known for parameter in held)
    if foreign or not held:
        raise FrozenWeightsError(
            f"the optimizer must have parameters of the prompts' providers only, {len(known)} tensors; found "
            f"{len(held)}, {foreign} of them others. Make it from prompt.provider.parameters() after "
            "prompt.initialize() or patch()."
        )


@dataclass
class DivergenceGuard:
    """Says when a loss has run away, from its running mean over the last steps.

    A step is bad if the running mean lies above ``ratio * best + margin``, ``best`` being the lowest running mean so
    far. The run has diverged after ``patience`` bad steps in a row. With the default values a language model's loss of
    3 nats per token has to rise above 5.5, and a classifier's of 0.01 above 1.015, worse than guessing between two
    classes; noise within a batch and a rough start pass. A resumed run starts to count again.

    Args:
        window: steps in the running mean.
        ratio: factor on the best running mean.
        margin: nats above it.
        patience: how many bad steps in a row.

    Raises:
        SettingError: a value that cannot work.
    """

    window: int = 20
    ratio: float = 1.5
    margin: float = 1.0
    patience: int = 50
    best: float = field(default=math.inf, init=False)
    _losses: deque[float] = field(default_factory=deque, init=False, repr=False)
    _num_bad: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.window < 1 or self.patience < 1 or self.ratio < 1 or self.margin < 0:
            raise SettingError(
                "a divergence guard needs window >= 1, patience >= 1, ratio >= 1 and margin >= 0; found "
                f"window={self.window}, patience={self.patience}, ratio={self.ratio}, margin={self.margin}."
            )

    def reset(self) -> None:
        """Forget all losses."""
        self._losses.clear()
        self.best, self._num_bad = math.inf, 0

    def observe(self, loss: float) -> bool:
        """Take note of a step's finite loss, in nats; returns whether all is well.

        That is: the running mean is the best so far, or above it by no more than a tenth of ``margin``, as batches of
        different texts make it go up and down.
        """
        self._losses.append(loss)
        if len(self._losses) > self.window:
            self._losses.popleft()
        self._num_bad = self._num_bad + 1 if self.mean > self.ratio * self.best + self.margin else 0
        if len(self._losses) == self.window:  # the mean of a few steps is luck
            self.best = min(self.best, self.mean)
        return self.mean <= self.best + self.margin / 10

    @property
    def mean(self) -> float:
        """The running mean."""
        return sum(self._losses) / len(self._losses)

    @property
    def has_diverged(self) -> bool:
        """Whether enough bad steps followed each other."""
        return self._num_bad >= self.patience


class StepGuard:
    """Watches every optimizer step, and remembers the last good prompt.

    Args:
        trained: the parameters that may train, by their names in the model.
        divergence: when the loss has run away.
        interval: steps between two copies of the parameters, so that a large provider is not copied at every step.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], divergence: DivergenceGuard, interval: int = 10) -> None:
        self._trained = trained
        self._divergence = divergence
        self._interval = interval
        self._copies: dict[str, Tensor] = {}
        self._copied_at: int | None = None

    def reset(self) -> None:
        """Forget everything, before a run."""
        self._divergence.reset()
        self._copies, self._copied_at = {}, None

    def begin_step(self, step: int) -> None:
        """Remember what a run begins with."""
        if self._copied_at is None:
            self._remember(step)

    def check_step(self, model: nn.Module, step: int, loss: float, may_overflow: bool = False) -> str | None:
        """Check a step whose gradients are complete and not yet used.

        Args:
            step: the number of updates before it.
            model: the model, unwrapped.
            loss: the step's mean loss over all processes, in nats.
            may_overflow: whether gradients are scaled, and a step whose gradients are not finite is skipped.

        Returns:
            What is wrong with it, or None.

        Raises:
            FrozenWeightsError: a frozen weight trains.
        """
        check_frozen(model.named_parameters(), self._trained)
        if not math.isfinite(loss):
            is_float16 = may_overflow or any(one.dtype is torch.float16 for one in model.parameters())
            return f"the loss is {loss}{_OF_FLOAT16 if is_float16 else ''}"
        if not may_overflow and not are_finite(parameter.grad for parameter in self._trained.values()):
            return "a gradient of the prompt holds NaN or infinity"
        if self._divergence.observe(loss):
            self._remember(step)
        if self._divergence.has_diverged:
            return (
                f"the loss has run away, its running mean is {self._divergence.mean:.4g} nats and was "
                f"{self._divergence.best:.4g}"
            )
        return None

    @torch.no_grad()
    def restore(self) -> int | None:
        """Put the last good values back; returns the step that they are of, or None if there are none."""
        for name, copy in self._copies.items():
            self._trained[name].copy_(copy)
        return self._copied_at

    @torch.no_grad()
    def _remember(self, step: int) -> None:
        if self._copied_at is not None and step < self._copied_at + self._interval:
            return
        if are_finite(self._trained.values()):
            self._copies = {name: value.detach().clone() for name, value in self._trained.items()}
            self._copied_at = step


class LossWatch:
    """Notes losses that are not finite, without waiting for the device: a forward hook of the model that trains."""

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Take the loss out of what the model put out, where gradients are made and the model computed one itself."""
        loss = output.get("loss") if isinstance(output, Mapping) else output[0] if isinstance(output, tuple) else None
        if isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad:
            loss = loss.detach().float()
            self._total = loss if self._total is None else self._total + loss

    def take(self) -> float:
        """The sum of the losses since the last call, which is not finite if one of them was not; 0 without any."""
        total, self._total = self._total, None
        return 0.0 if total is None else float(total)
