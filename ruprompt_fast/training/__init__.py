"""Training soft prompts over a frozen language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruprompt_fast._lazy import lazy_names

if TYPE_CHECKING:
    from ruprompt_fast.training.guards import DivergenceGuard
    from ruprompt_fast.training.prompts import prompt_for
    from ruprompt_fast.training.recipes import RECIPES, Recipe, recipe_for
    from ruprompt_fast.training.task import Objective, Task
    from ruprompt_fast.training.trainer import PromptTrainer

__all__ = ["RECIPES", "DivergenceGuard", "Objective", "PromptTrainer", "Recipe", "Task", "prompt_for", "recipe_for"]

_HOMES = {
    "RECIPES": "recipes",
    "DivergenceGuard": "guards",
    "Objective": "task",
    "PromptTrainer": "trainer",
    "Recipe": "recipes",
    "Task": "task",
    "prompt_for": "prompts",
    "recipe_for": "recipes",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
