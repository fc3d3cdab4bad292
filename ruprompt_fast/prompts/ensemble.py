"""PromptEnsemble: several prompts for one task, served as rows of one batch (Lester et al. 2021, section 6)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from torch import nn

from ruprompt_fast.errors import (
    DuplicatePromptError,
    PromptFileError,
    PromptInitError,
    PromptMismatchError,
    shown,
)
from ruprompt_fast.prompts.files.base_model import check_base
from ruprompt_fast.prompts.files.ensemble_folder import is_ensemble_folder, member_folders, write_members
from ruprompt_fast.prompts.files.prompt_sources import find_folder
from ruprompt_fast.prompts.format.prompt_format import PromptFormat
from ruprompt_fast.prompts.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider


class PromptEnsemble:
    """Prompts for one task that answer together: N prompts cost N rows of a batch over one frozen model, not N models.

        >>> ensemble = PromptEnsemble.of("<P*20>{text}", lambda seed: TensorPromptProvider(seed=seed), seeds=range(5))
        >>> PromptTrainer(model, args, prompt=ensemble, task=task, ...).train()
        >>> served.add_prompt("sentiment", ensemble)
        >>> served.classify(texts, prompt="sentiment", labels=[" да", " нет"])

    A model serves it under one name: every member answers every input, all of them in one batch. The label that most
    members choose is the ensemble's (of labels with equally many votes the one with the larger sum of the members'
    log-probabilities among the labels), and its probabilities are the members' mean, so where votes and means disagree
    the label is not the most probable one. The text is the one that its own member finds most probable, by the mean
    log-probability per token, the end-of-text token included.

    Args:
        members: the prompts. They share a template and the model that they were made for.

    Attributes:
        members: the prompts.

    Raises:
        PromptInitError: there are no members, or something else than prompts among them.
        PromptMismatchError: the members have different templates, or were made for different models.
        DuplicatePromptError: the same prompt, provider or format is among them twice.
    """

    def __init__(self, members: Sequence[Prompt]) -> None:
        self.members = tuple(members)
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
                raise DuplicatePromptError(f"every member of an ensemble needs a {part} of its own; one is used twice.")

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
            PromptInitError: no seeds, or one that is there twice: those members would be the same.
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
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> PromptEnsemble:
        """Load an ensemble from the folder that :meth:`save_pretrained` wrote, or from such a repository of the hub.

        Args:
            name_or_path: a folder, or ``owner/name`` of a repository on the Hugging Face Hub.

        Raises:
            PromptFileError: the index or a member's file is missing, malformed, or does not belong to the others.
            HubError: the repository could not be read.
            UnsafeFileError: a member's rows are not plain dense numbers.
            NonFiniteRowsError: they contain NaN or infinity.
        """
        folder = find_folder(name_or_path)
        members = [Prompt.from_pretrained(member) for member in member_folders(folder)]
        try:
            return cls(members)
        except PromptMismatchError as error:
            raise PromptFileError(f"{folder}: {error}") from error

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} prompts, {self.template!r})"


PromptSource: TypeAlias = Prompt | PromptEnsemble | str | os.PathLike[str]
"""A prompt or an ensemble, a folder that holds one, or the id of one on the Hugging Face Hub."""


def load_prompt(source: PromptSource) -> Prompt | PromptEnsemble:
    """A prompt or an ensemble, wherever it is.

    Raises:
        PromptInitError: this is something else.
        PromptFileError, UnsafeFileError, NonFiniteRowsError, HubError: it cannot be read.
    """
    if isinstance(source, Prompt | PromptEnsemble):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise PromptInitError(
            f"expected a Prompt, a PromptEnsemble, a folder or a hub id; found {type(source).__name__}."
        )
    folder = find_folder(source)
    return PromptEnsemble.from_pretrained(folder) if is_ensemble_folder(folder) else Prompt.from_pretrained(folder)


def single_prompt(source: PromptSource) -> Prompt:
    """A prompt, wherever it is, for what can be done with one only.

    Raises:
        PromptInitError: this is an ensemble or something else; and what :func:`load_prompt` raises.
    """
    prompt = load_prompt(source)
    if not isinstance(prompt, Prompt):
        raise PromptInitError(
            f"expected one prompt; found an ensemble of {len(prompt)}. Take one of its members, or serve it with "
            "FastPromptModel."
        )
    return prompt


def members_of(prompt: Prompt | PromptEnsemble) -> tuple[Prompt, ...]:
    """The prompt alone, or the ensemble's."""
    return prompt.members if isinstance(prompt, PromptEnsemble) else (prompt,)
