"""Training settings that work, per provider and optimizer: one table, with what each row was measured on."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ruprompt_fast.errors import SettingError, UnknownArgumentError
from ruprompt_fast.prompts import LSTMPromptProvider, MLPPromptProvider, TensorPromptProvider

Optimizer = Literal["adamw", "adafactor"]
Schedule = Literal["constant", "linear", "cosine"]

DEFAULT_STEPS = 400
DEFAULT_BATCH_SIZE = 16

_OPTIM_NAMES = {"adamw": "adamw_torch", "adafactor": "adafactor"}
_SCHEDULE_NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class Recipe:
    """Settings for training one kind of prompt.

    Attributes:
        learning_rate: the highest learning rate, reached after the warm-up.
        optim: ``adamw``, or ``adafactor`` without its relative steps (Lester et al. 2021), which keeps one number for
            each row and column in place of AdamW's two for each parameter.
        schedule: what the learning rate does after the warm-up.
        warmup_fraction: the part of all steps in which the learning rate grows from zero.
        weight_decay: AdamW's.
        max_grad_norm: the norm that a prompt's gradient is cut to; 0 leaves it alone.
        betas: AdamW's decay rates.
        measured: where the learning rate comes from; empty for one that nobody measured.
    """

    learning_rate: float
    optim: Optimizer = "adamw"
    schedule: Schedule = "linear"
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    measured: str = ""

    def arguments(self, max_steps: int = DEFAULT_STEPS, **overrides: Any) -> dict[str, Any]:
        """Keyword arguments of transformers' ``TrainingArguments``.

        Args:
            max_steps: the number of optimizer steps; the warm-up is a part of it.
            overrides: further arguments, and others in place of the recipe's.

        Raises:
            SettingError: ``max_steps`` is less than one, or ``num_train_epochs`` is given, which it overrules.
            UnknownArgumentError: ``TrainingArguments`` has no such argument.
        """
        from transformers import TrainingArguments

        if max_steps < 1:
            raise SettingError(f"max_steps must be at least 1; found {max_steps}.")
        if "num_train_epochs" in overrides:
            raise SettingError(
                f"num_train_epochs has no effect beside max_steps={max_steps}; give max_steps, the rows times the "
                "epochs, divided by the rows of an optimizer step."
            )
        known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
        for name in overrides:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise UnknownArgumentError(
                    f"TrainingArguments has no argument {name!r}{f'; did you mean {near[0]!r}?' if near else '.'}"
                )
        return {
            "max_steps": max_steps,
            "per_device_train_batch_size": DEFAULT_BATCH_SIZE,
            "learning_rate": self.learning_rate,
            "optim": _OPTIM_NAMES[self.optim],
            "lr_scheduler_type": _SCHEDULE_NAMES[self.schedule],
            "warmup_steps": round(max_steps * self.warmup_fraction),
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "adam_beta1": self.betas[0],
            "adam_beta2": self.betas[1],
            "report_to": [],
            **overrides,
        }


_SCAN = "bundled model, proverbs, 80 steps of 16: examples/sweeps/learning_rate.yaml"
_BETWEEN = f"between two measured rates; {_SCAN}"

RECIPES: dict[tuple[str, Optimizer], Recipe] = {
    ("tensor", "adamw"): Recipe(0.02, measured=_SCAN),
    ("tensor", "adafactor"): Recipe(0.06, optim="adafactor", measured=_SCAN),
    ("lstm", "adamw"): Recipe(0.005, measured=_BETWEEN),
    ("lstm", "adafactor"): Recipe(0.016, optim="adafactor", measured=_SCAN),
    ("mlp", "adamw"): Recipe(0.004, measured=_SCAN),
    ("mlp", "adafactor"): Recipe(0.008, optim="adafactor", measured=_BETWEEN),
    ("mlp_residual", "adamw"): Recipe(0.02, measured=_SCAN),
    ("mlp_residual", "adafactor"): Recipe(0.016, optim="adafactor", measured=_SCAN),
    ("prefix", "adamw"): Recipe(0.06, measured=_SCAN),
    ("prefix", "adafactor"): Recipe(0.06, optim="adafactor"),
    ("prefix_mlp", "adamw"): Recipe(0.004, measured=_SCAN),
    ("prefix_mlp", "adafactor"): Recipe(0.004, optim="adafactor"),
    ("module", "adamw"): Recipe(0.001),
    ("module", "adafactor"): Recipe(0.001, optim="adafactor"),
}
"""By the provider's kind, see :func:`provider_kind`, and the optimizer."""


def provider_kind(provider: nn.Module) -> str:
    """Which rows of :data:`RECIPES` are for a provider; ``module`` for one that this package does not know."""
    if getattr(provider, "is_deep", False):
        return "prefix" if getattr(provider, "hidden_dim", None) is None else "prefix_mlp"
    if isinstance(provider, TensorPromptProvider):
        return "tensor"
    if isinstance(provider, LSTMPromptProvider):
        return "lstm"
    if isinstance(provider, MLPPromptProvider):
        return "mlp_residual" if provider.residual else "mlp"
    return "module"


def recipe_for(provider: nn.Module, optim: Optimizer = "adamw") -> Recipe:
    """The recipe for a provider.

    Args:
        provider: a prompt's provider; it need not be initialized.
        optim: ``adamw`` or ``adafactor``.

    Raises:
        SettingError: another optimizer was asked for.
    """
    if optim not in _OPTIM_NAMES:
        raise SettingError(f"there are recipes for the optimizers {sorted(_OPTIM_NAMES)}; found {optim!r}.")
    return RECIPES[provider_kind(provider), optim]
