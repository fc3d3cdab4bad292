"""Peers that can hold many prompts and run one: they take the tasks prompt by prompt, in a padded batch each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import reference_ruprompts
import torch
from peers import Task, Transformers, missing, padded
from torch import Tensor, nn

from ruprompt_fast import Prompt


def one_prompt_at_a_time(
    tasks: Sequence[Task], run: Callable[[str, Sequence[Task]], list[list[int]]]
) -> list[list[int]]:
    """The new ids of all tasks, from a function that continues the tasks of one prompt."""
    results: dict[int, list[int]] = {}
    for name in dict.fromkeys(task.prompt for task in tasks):
        indices = [index for index, task in enumerate(tasks) if task.prompt == name]
        new = run(str(name), [tasks[index] for index in indices])
        results.update(zip(indices, new, strict=True))
    return [results[index] for index in range(len(tasks))]


class RuPrompts:
    """ruPrompts' way: the model's embedding finds the prompt's markers and writes its rows over them."""

    def __init__(self, runner: Transformers, prompts: Mapping[str, Prompt]) -> None:
        self.runner = runner
        self.prompts = prompts
        self.embedding = MarkerEmbedding(self.runner.model.get_input_embeddings())
        self.runner.model.set_input_embeddings(self.embedding)

    def generate(self, tasks: Sequence[Task]) -> list[list[int]]:
        return one_prompt_at_a_time(tasks, self._run)

    def _run(self, name: str, tasks: Sequence[Task]) -> list[list[int]]:
        prompt, marker = self.prompts[name], self.embedding.marker
        self.embedding.rows = prompt.rows().detach().to(self.embedding.weight)
        # The ids of our format, in which row k is the id marker + k, with the marker for every row.
        encoded = prompt.format.encode_batch(
            [{"text": task.text} for task in tasks], self.runner.tokenizer, first_row_id=marker
        )
        input_ids, mask = padded([item.input_ids for item in encoded])
        return self.runner.continue_batch(input_ids.clamp(max=marker), mask, tasks)


class MarkerEmbedding(nn.Module):
    """ruPrompts' embedding layer with the rows of the prompt that is in use, [rows, width]."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.weight: Any = original.weight
        self.marker = len(original.weight)  # type: ignore[arg-type]
        self.rows = torch.empty(0, self.weight.shape[1])

    def forward(self, input_ids: Tensor) -> Tensor:
        return reference_ruprompts.embed(input_ids, self.weight, self.rows.to(self.weight.dtype), self.marker)


class Peft:
    """PEFT's prompt tuning, ``set_adapter`` for every prompt.

    It has leading rows only, so an adapter's are all of the prompt's. It puts them before a batch's padding, and gives
    other texts than each request gets alone; the work is the same.
    """

    def __init__(self, runner: Transformers, prompts: Mapping[str, Prompt]) -> None:
        peft: Any = pytest.importorskip("peft", reason=missing("peft"))
        self.runner = runner
        base = self.runner.model
        for name, prompt in prompts.items():
            config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prompt.format.prompt_length)
            if self.runner.model is base:
                self.runner.model = peft.get_peft_model(base, config, adapter_name=name).eval()
            else:
                self.runner.model.add_adapter(name, config)
            self.runner.model.prompt_encoder[name].embedding.weight.data.copy_(prompt.rows())

    def generate(self, tasks: Sequence[Task]) -> list[list[int]]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Position ids are not supported")
            return one_prompt_at_a_time(tasks, self._run)

    def _run(self, name: str, tasks: Sequence[Task]) -> list[list[int]]:
        self.runner.model.set_adapter(name)
        return self.runner.generate(tasks)
