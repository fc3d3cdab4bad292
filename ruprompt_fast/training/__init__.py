"""Training soft prompts over a frozen language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ruprompt_fast.training.guards import DivergenceGuard
from ruprompt_fast.training.recipes import RECIPES, Recipe, recipe_for
from ruprompt_fast.training.task import Objective, Task

if TYPE_CHECKING:
    from ruprompt_fast.training.trainer import PromptTrainer

__all__ = ["RECIPES", "DivergenceGuard", "Objective", "PromptTrainer", "Recipe", "Task", "recipe_for"]


def __getattr__(name: str) -> Any:
    if name != "PromptTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Seconds, most of them for transformers' Trainer; tasks and recipes need none of it.
    from ruprompt_fast.training.trainer import PromptTrainer

    return PromptTrainer
