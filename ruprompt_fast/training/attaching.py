"""Prompts in training: which they are, their tasks, and their place in the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ruprompt_fast.embedding import PromptSlot, SplicedEmbedding, attach_prompts, detach_prompts, original_embedding
from ruprompt_fast.errors import (
    AlreadyAttachedError,
    DuplicatePromptError,
    FrozenWeightsError,
    PromptInitError,
    TaskError,
)
from ruprompt_fast.prompts import MultiPrompt, Prompt, freeze_model
from ruprompt_fast.prompts.ensemble import PromptEnsemble
from ruprompt_fast.training.datasets import Encode, check_names
from ruprompt_fast.training.examples import ExampleEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.training.task import Task


Trainable = Prompt | Mapping[str, Prompt] | MultiPrompt | PromptEnsemble
"""What a trainer trains."""


@dataclass(frozen=True)
class PromptInTraining:
    """One prompt of a run.

    Attributes:
        name: its key, or its number in an ensemble; empty if it is the only one.
        prompt: the prompt.
        task: what it learns.
    """

    name: str
    prompt: Prompt
    task: Task

    @property
    def provider(self) -> nn.Module:
        """What trains."""
        return self.prompt.provider

    @property
    def is_deep(self) -> bool:
        """Whether it gives keys and values of every layer, and no rows of the embedding."""
        return bool(getattr(self.prompt.provider, "is_deep", False))

    def folder(self, root: Path) -> Path:
        """Where it is saved."""
        return root / self.name if self.name else root


def collect_prompts(prompt: Trainable, task: Task | Mapping[str, Task]) -> list[PromptInTraining]:
    """The prompts of a run with their tasks.

    Raises:
        TaskError: a task is missing, is for another template, or has another objective than the others.
        PromptInitError: something else than prompts was given, or none, or a name that is no folder's.
        DuplicatePromptError: two of them train the same provider.
    """
    prompts = _named_prompts(prompt)
    for name, one in prompts.items():
        if not isinstance(one, Prompt):
            raise PromptInitError(f"expected a Prompt to train; found {type(one).__name__}{_of(name)}.")
        if not isinstance(prompt, Prompt) and any(part in ("", ".", "..") for part in name.split("/")):
            raise PromptInitError(f"prompts are saved in folders of their names; found the name {name!r}.")
    if not prompts:
        raise PromptInitError("expected at least one prompt to train; found none.")
    if isinstance(task, Mapping):
        if isinstance(prompt, Prompt | PromptEnsemble):
            raise TaskError(f"expected one Task for one prompt; found a mapping of {sorted(task)}.")
        check_names(task, list(prompts), "task")
    tasks = task if isinstance(task, Mapping) else dict.fromkeys(prompts, task)
    if len({id(one.provider) for one in prompts.values()}) < len(prompts):
        raise DuplicatePromptError("two of the prompts share a provider; load or make one prompt for each name.")
    for name, one in prompts.items():
        if tasks[name].template != one.format.template:
            raise TaskError(
                f"expected a task for the prompt's template {one.format.template!r}{_of(name)}; found one for "
                f"{tasks[name].template!r}."
            )
    objectives = sorted({one.objective for one in tasks.values()})
    if len(objectives) > 1:
        raise TaskError(f"the tasks of one run must share one objective; found {objectives}. Train them one by one.")
    return [PromptInTraining(name, one, tasks[name]) for name, one in prompts.items()]


def _named_prompts(prompt: Any) -> dict[str, Prompt]:
    if isinstance(prompt, Prompt):
        return {"": prompt}
    if isinstance(prompt, MultiPrompt):
        return dict(prompt.prompts)
    if isinstance(prompt, Mapping):
        return dict(prompt)
    if isinstance(prompt, PromptEnsemble):
        return {str(index): member for index, member in enumerate(prompt.members)}
    raise PromptInitError(
        f"expected a Prompt, prompts by name, a MultiPrompt or a PromptEnsemble; found {type(prompt).__name__}."
    )


def _of(name: str) -> str:
    return f" for {name!r}" if name else ""


@dataclass(frozen=True)
class AttachedPrompts:
    """Where the prompts of a run are in a model.

    Attributes:
        embedding: the model's input embedding.
        first_row_ids: the id of every prompt's first row.
        deep: every prompt's provider if it is deep, else None.
        is_new: whether the model was patched for this run.
    """

    embedding: SplicedEmbedding
    first_row_ids: list[int]
    deep: list[nn.Module | None]
    is_new: bool


def attach_for_training(
    model: PreTrainedModel, prompts: Sequence[PromptInTraining], tokenizer: PreTrainedTokenizerBase
) -> AttachedPrompts:
    """Initialize the prompts and give them their places in the model; those that they have already are kept.

    The providers' parameters are in float32 then, whatever the model's dtype.

    Raises:
        AlreadyAttachedError: a ``FastPromptModel`` serves the model; nothing is changed then.
        PromptMismatchError: a prompt was made for another model or template; nothing is changed then.
    """
    embedding = cast(SplicedEmbedding, model.get_input_embeddings())
    if getattr(embedding, "is_served", False):
        raise AlreadyAttachedError(
            "a FastPromptModel serves this model, whose layers are packed for that; call its detach() first, or load "
            "the model once more."
        )
    for one in prompts:
        one.prompt.initialize(model, tokenizer)
    weight = cast(Tensor, original_embedding(model).weight)
    for one in prompts:
        one.provider.to(weight.device)
    known = _known_providers(embedding)
    missing = [one for one in prompts if id(one.provider) not in known]
    new_slots = [
        PromptSlot(one.provider, cast(int, one.prompt.format.prompt_length)) for one in missing if not one.is_deep
    ]
    is_new = len(missing) == len(prompts)
    if is_new:
        embedding = attach_prompts(model, new_slots, len(tokenizer))
    else:
        for slot in new_slots:
            embedding.add_slot(slot)
    for one in missing:
        if one.is_deep:
            embedding.add_deep_provider(one.provider)
    slots = {id(slot.provider): index for index, slot in enumerate(embedding.slots)}
    first_row_ids = [
        embedding.first_prompt_id if one.is_deep else embedding.prompt_ids(slots[id(one.provider)])[0]
        for one in prompts
    ]
    return AttachedPrompts(embedding, first_row_ids, [one.provider if one.is_deep else None for one in prompts], is_new)


def make_encoders(
    prompts: Sequence[PromptInTraining],
    attached: AttachedPrompts,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Encode]:
    """For every prompt, by name, what encodes its rows.

    Raises:
        TaskError, LabelError: a task is not possible with the model or the tokenizer.
    """
    encoders: dict[str, Encode] = {}
    for index, one in enumerate(prompts):
        encoders[one.name] = ExampleEncoder(
            one.task,
            one.prompt.format,
            tokenizer,
            model_config=model.config,
            prompt_index=index,
            first_row_id=attached.first_row_ids[index],
            num_deep_rows=cast(int, one.prompt.format.prompt_length) if one.is_deep else 0,
        ).encode
    return encoders


def detach(model: PreTrainedModel, attached: AttachedPrompts) -> None:
    """Give the model its own embedding back if this run replaced it."""
    if attached.is_new:
        detach_prompts(model)


def _known_providers(embedding: nn.Module) -> set[int]:
    if not isinstance(embedding, SplicedEmbedding):
        return set()
    return {id(provider) for provider in [*embedding.prompt_providers, *embedding.deep_prompt_providers]}


def freeze_around(model: nn.Module, providers: Iterable[nn.Module]) -> dict[str, nn.Parameter]:
    """Freeze everything but these providers; returns their parameters by their names in the model.

    Raises:
        FrozenWeightsError: the providers have no parameters in the model, so nothing would train.
    """
    freeze_model(model)
    ours = {id(parameter) for provider in providers for parameter in provider.parameters()}
    trained = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in ours:
            parameter.requires_grad_(True)
            trained[name] = parameter
        else:
            parameter.requires_grad_(False)
    if not trained:
        raise FrozenWeightsError("the prompts' providers have no parameters that train; use a provider that has some.")
    return trained


def description_of(one: PromptInTraining) -> dict[str, Any]:
    """What a checkpoint must agree on with a prompt, in values that JSON knows."""
    return {
        "template": one.prompt.format.template,
        "task": _task_values(one.task),
        "provider": type(one.provider).__name__,
        "shapes": {name: list(value.shape) for name, value in one.provider.state_dict().items()},
    }


def _task_values(task: Task) -> dict[str, Any]:
    values = {field.name: getattr(task, field.name) for field in fields(task)}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
