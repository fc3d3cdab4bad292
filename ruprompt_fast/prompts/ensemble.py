"""PromptEnsemble: several prompts for one task, served as rows of one batch (Lester et al. 2021, section 6)."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from torch import nn

from ruprompt_fast.core import ClassificationOutput, GenerationOutput
from ruprompt_fast.errors import (
    BatchMismatchError,
    DuplicatePromptError,
    PromptFileError,
    PromptInitError,
    PromptMismatchError,
    UnknownArgumentError,
    UnknownPromptError,
    shown,
)
from ruprompt_fast.prompts.files.base_model import check_base
from ruprompt_fast.prompts.files.ensemble_folder import member_folders, write_members
from ruprompt_fast.prompts.files.paths import local_path
from ruprompt_fast.prompts.format.prompt_format import PromptFormat
from ruprompt_fast.prompts.format.verbalizers import Labels
from ruprompt_fast.prompts.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider

Input: TypeAlias = str | Mapping[str, str]

# Arguments of generate() that may be lists with one value per input.
_PER_INPUT = ("generation_config", "seed", "presence_penalty", "frequency_penalty", "logit_bias")


class ServedModel(Protocol):
    """What an ensemble needs of the model that serves it: a part of :class:`~ruprompt_fast.FastPromptModel`."""

    @property
    def prompts(self) -> Mapping[str, Prompt]:
        """The loaded prompts by name."""
        ...

    def add_prompt(self, name: str, prompt: Prompt) -> None:
        """Load a prompt under a name, in place of the one that has it."""
        ...

    def remove_prompt(self, name: str) -> None:
        """Forget a prompt."""
        ...

    def classify(
        self, inputs: Sequence[Input], prompt: Sequence[str | None], *, labels: Labels
    ) -> list[ClassificationOutput]:
        """Choose among label words behind every input."""
        ...

    def generate(self, inputs: Sequence[Input], prompt: Sequence[str | None], **kwargs: Any) -> list[GenerationOutput]:
        """Continue every input behind its prompt."""
        ...


class PromptEnsemble:
    """Prompts for one task that answer together: N prompts cost N rows of a batch over one frozen model, not N models.

        >>> ensemble = PromptEnsemble.of("<P*20>{text}", lambda seed: TensorPromptProvider(seed=seed), seeds=range(5))
        >>> PromptTrainer(model, args, prompt=ensemble, task=task, ...).train()
        >>> ensemble.add_to(served, "sentiment")
        >>> ensemble.classify(served, texts, labels=[" да", " нет"])

    Args:
        members: the prompts. They share a template and the model that they were made for.

    Attributes:
        members: the prompts.

    Raises:
        PromptInitError: there are no members, or something else than prompts among them.
        PromptMismatchError: the members have different templates, or were made for different models.
        DuplicatePromptError: the same prompt, provider or format stands twice among them.
    """

    def __init__(self, members: Sequence[Prompt]) -> None:
        self.members = list(members)
        if not self.members:
            raise PromptInitError("an ensemble needs at least one member; found none.")
        for member in self.members:
            if not isinstance(member, Prompt):
                raise PromptInitError(f"the members of an ensemble are Prompts; found {type(member).__name__}.")
        templates = list(dict.fromkeys(member.format.template for member in self.members))
        if len(templates) > 1:
            raise PromptMismatchError(
                f"an ensemble's members share one template; found {shown(templates)}. Use MultiPrompt for several."
            )
        for member in self.members[1:]:
            first = self.members[0].config
            check_base(member, first.base_model, first.pretrained_model_name, "a member of the ensemble")
        for part in ("format", "provider"):
            if len({id(getattr(member, part)) for member in self.members}) < len(self.members):
                raise DuplicatePromptError(f"every member of an ensemble needs a {part} of its own; one stands twice.")

    @classmethod
    def of(
        cls, template: str, make_provider: Callable[[int], BasePromptProvider | nn.Module], seeds: Sequence[int]
    ) -> PromptEnsemble:
        """An ensemble of new prompts, one for every seed.

        Args:
            template: the members' template.
            make_provider: makes the provider of a seed, ``lambda seed: TensorPromptProvider(seed=seed)``.
            seeds: one for every member, all different.

        Raises:
            PromptInitError: no seeds, or one that stands twice: those members would be the same.
            TemplateError: the template cannot be read.
        """
        if len(set(seeds)) < len(seeds):
            raise PromptInitError(f"every member of an ensemble needs another seed; found {list(seeds)}.")
        return cls([Prompt(PromptFormat(template), make_provider(seed)) for seed in seeds])

    @property
    def template(self) -> str:
        """The members' template."""
        return self.members[0].format.template

    @property
    def is_initialized(self) -> bool:
        """Whether all members are initialized."""
        return all(member.is_initialized for member in self.members)

    def initialize(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Initialize every member, see :meth:`Prompt.initialize`."""
        for member in self.members:
            member.initialize(model, tokenizer)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write every member to a folder of its own, and then the index that names them.

        An ensemble that is there already stays whole until the new index takes its place in one step; its members are
        removed then. Other files of the folder are left alone.

        Raises:
            NotInitializedError: a member is not initialized; nothing is written.
            PromptFolderError: ``save_directory`` is a file.
            FileWriteError: it cannot be written to.
        """
        write_members(save_directory, self.members)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> PromptEnsemble:
        """Load an ensemble from the folder that :meth:`save_pretrained` wrote.

        Raises:
            PromptFileError: the index or a member's file is missing, malformed, or does not belong to the others.
            UnsafeFileError: a member's rows are not plain dense numbers.
            NonFiniteRowsError: they contain NaN or infinity.
        """
        members = [Prompt.from_pretrained(member) for member in member_folders(local_path(folder))]
        try:
            return cls(members)
        except PromptMismatchError as error:
            raise PromptFileError(f"{folder}: {error}") from error

    def add_to(self, model: ServedModel, name: str) -> None:
        """Load the members as the prompts ``name/0``, ``name/1``, ...; an ensemble of that name is replaced.

        Raises:
            PromptMismatchError, NonFiniteRowsError, NotInitializedError: a member cannot be loaded. The model's prompts
                are what they were before.
        """
        before = {other: prompt for other, prompt in model.prompts.items() if _is_member(other, name)}
        try:
            for member_name, member in zip(self._names(name), self.members, strict=True):
                model.add_prompt(member_name, member)
        except Exception:
            _replace(model, name, before)
            raise
        for other in before.keys() - set(self._names(name)):
            model.remove_prompt(other)

    def classify(
        self, model: ServedModel, inputs: Input | Sequence[Input], labels: Labels
    ) -> list[ClassificationOutput]:
        """The label that most members choose, for every input; all members and inputs are one batch.

        Of labels with equally many votes, the one with the larger sum of the members' log-probabilities wins (among the
        labels, in nats).

        Args:
            model: a model that :meth:`add_to` loaded this ensemble into.
            inputs: as in :meth:`FastPromptModel.generate`.
            labels: as in :meth:`FastPromptModel.classify`.

        Returns:
            One output per input, in order. ``probabilities`` are the members' mean, so where votes and means disagree
            ``label`` is not the most probable one; ``prompt`` is the ensemble's name.

        Raises:
            UnknownPromptError: the members are not loaded; and what :meth:`FastPromptModel.classify` raises.
        """
        name = self._name_in(model)
        batch, prompts = self._rows_of_batch(inputs, name)
        outputs = model.classify(batch, prompts, labels=labels)
        return [_verdict(group, name) for group in _groups(outputs, len(self))]

    def generate(self, model: ServedModel, inputs: Input | Sequence[Input], **kwargs: Any) -> list[GenerationOutput]:
        """The continuation that its own member finds most probable, for every input; all of them are one batch.

        What counts is the mean log-probability per token in nats, the end-of-text token included. With
        ``num_return_sequences=n`` as a keyword, n samples of every member compete.

        Args:
            model: a model that :meth:`add_to` loaded this ensemble into.
            inputs: as in :meth:`FastPromptModel.generate`.
            **kwargs: its other arguments, without ``prompt``.

        Returns:
            One output per input, in order; ``prompt`` is the winning member's name, ``name/k``, and ``logprobs`` are
            always there.

        Raises:
            UnknownPromptError: the members are not loaded; and what :meth:`FastPromptModel.generate` raises.
        """
        if "prompt" in kwargs:
            raise UnknownArgumentError("an ensemble generates with its own members; leave prompt out.")
        size = len(self)
        batch, prompts = self._rows_of_batch(inputs, self._name_in(model))
        settings = {"num_return_sequences": 1, **kwargs, "output_scores": True}
        for name in _PER_INPUT:
            if isinstance(values := settings.get(name), (list, tuple)):
                if len(values) * size != len(batch):
                    raise BatchMismatchError(f"{name} has {len(values)} values for {len(batch) // size} inputs.")
                settings[name] = [value for value in values for _ in self.members]
        outputs = model.generate(batch, prompts, **settings)
        # max() takes the first of equals, so the result does not depend on anything but the outputs.
        return [max(group, key=_mean_logprob) for group in _groups(outputs, size * settings["num_return_sequences"])]

    def _names(self, name: str) -> list[str]:
        return [f"{name}/{index}" for index in range(len(self))]

    def _name_in(self, model: ServedModel) -> str:
        """The name that the model knows the ensemble by."""
        loaded = model.prompts
        for first in [first for first, prompt in loaded.items() if prompt is self.members[0]]:
            name = first.removesuffix("/0")
            names = self._names(name)
            if all(loaded.get(key) is member for key, member in zip(names, self.members, strict=True)):
                return name
        raise UnknownPromptError(
            f"the {len(self)} members of this ensemble are not loaded; loaded: {', '.join(sorted(loaded)) or 'none'}. "
            "Call ensemble.add_to(model, name) first."
        )

    def _rows_of_batch(self, inputs: Input | Sequence[Input], name: str) -> tuple[list[Input], list[str | None]]:
        """Every input once per member, the members of one input next to each other."""
        batch: list[Input] = [inputs] if isinstance(inputs, (str, Mapping)) else list(inputs)
        return [item for item in batch for _ in self.members], [*self._names(name)] * len(batch)

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} prompts, {self.template!r})"


def _is_member(name: str, ensemble: str) -> bool:
    prefix, _, index = name.rpartition("/")
    return prefix == ensemble and index.isdecimal()


def _replace(model: ServedModel, name: str, prompts: Mapping[str, Prompt]) -> None:
    """Give an ensemble's names back to the prompts that had them before."""
    for other in [other for other in model.prompts if _is_member(other, name) and other not in prompts]:
        model.remove_prompt(other)
    for other, prompt in prompts.items():
        model.add_prompt(other, prompt)


def _groups(outputs: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Neighbouring outputs, those of one input together."""
    return (outputs[start : start + size] for start in range(0, len(outputs), size))


def _verdict(votes: Sequence[ClassificationOutput], name: str) -> ClassificationOutput:
    """The majority's label, see :meth:`PromptEnsemble.classify`."""
    counts = Counter(vote.label for vote in votes)
    columns = {label: [vote.probabilities[label] for vote in votes] for label in votes[0].probabilities}
    label = max(columns, key=lambda word: (counts[word], sum(map(_log, columns[word]))))
    return ClassificationOutput(label, {word: sum(column) / len(votes) for word, column in columns.items()}, name)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def _mean_logprob(output: GenerationOutput) -> float:
    logprobs = output.logprobs or [-math.inf]
    return sum(logprobs) / len(logprobs)
