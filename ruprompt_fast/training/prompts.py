"""The prompt that is trained for a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruprompt_fast.prompts import Prompt, PromptFormat

if TYPE_CHECKING:
    from torch import nn

    from ruprompt_fast.prompts import BasePromptProvider
    from ruprompt_fast.training.task import Task


def prompt_for(task: Task, provider: BasePromptProvider | nn.Module) -> Prompt:
    """A prompt to train for a task, with the task's template.

        >>> prompt = prompt_for(task, TensorPromptProvider())

    Args:
        task: the task.
        provider: what makes the prompt's rows.
    """
    return Prompt(PromptFormat(task.template), provider)
