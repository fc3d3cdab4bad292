"""Training soft prompts over a frozen language model.

trainer         transformers' Trainer for prompts; saving_trainer is its half that writes and reads
task            what a prompt learns; prompts makes the prompt for it
recipes         settings that work; arguments refuses those that the trainer cannot keep
examples        rows of data as ids, with label_words and classes; datasets has those of a run, in order
attaching       the prompts of a run and their places in the model
runners         running examples through the model: packed, or padded
losses          losses from logits; evaluation sums them over a data set
modes           which parts of a model train
guards          what stops a run that goes wrong
checkpoints     those of a run: manifest says what is in one, stored_state holds prompt and trainer
ownership       one run at a time for each output
"""

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
