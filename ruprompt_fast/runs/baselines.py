"""What a prompt's figures are to be compared with: the same model with text in the prompt's place, a copy of the input.

Without the prompt the model gets the template's literal text and fields, as a request of text alone; an instruction is
such a template of the user's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ruprompt_fast.errors import ConfigError, MissingFieldError, shown
from ruprompt_fast.prompts.format.layout import Field, Layout, Text, field_names
from ruprompt_fast.prompts.format.template import PROMPT_TOKEN, parse_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ruprompt_fast.training.task import Task

NO_PROMPT = "no_prompt"
INSTRUCTION = "instruction"
COPY = "copy"
MAJORITY = "majority"

LABELS = {
    NO_PROMPT: "no prompt",
    INSTRUCTION: "instruction",
    COPY: "copy of the input",
    MAJORITY: "most frequent class",
}
"""The baselines, as a table names them."""


@dataclass(frozen=True)
class PlainTemplate:
    """Text with fields that takes the prompt's place.

    Attributes:
        parts: texts and fields in order; special tokens are left out, the tokenizer adds its own.
    """

    parts: tuple[Text | Field, ...]

    @classmethod
    def of(cls, template: str, tokenizer: PreTrainedTokenizerBase) -> PlainTemplate:
        """A template without its virtual tokens and special tokens."""
        parts = [
            _without_specials(part, tokenizer) for part in parse_template(template) if isinstance(part, Text | Field)
        ]
        return cls(tuple(part for part in parts if not isinstance(part, Text) or part.text))

    @property
    def template(self) -> str:
        """The template in the notation of a prompt's."""
        return Layout(self.parts).compiled(PROMPT_TOKEN)

    def render(self, fields: Mapping[str, str]) -> str:
        """The text for these fields."""
        return Layout(self.parts).render(dict(fields), ())[0]


def check_instruction(instruction: str | None, task: Task) -> None:
    """Check that the instruction is one for the task.

    Raises:
        ConfigError: it has virtual tokens or special tokens.
        MissingFieldError: it has fields that the task does not have.
        TemplateError: it cannot be read.
    """
    if instruction is None:
        return
    parts = parse_template(instruction)
    if not all(isinstance(part, Text | Field) for part in parts):
        raise ConfigError(
            "instruction must be text with fields, without virtual tokens and special tokens; found "
            f"{shown(instruction)}."
        )
    unknown = [name for name in field_names(parts) if name not in task.fields]
    if unknown:
        raise MissingFieldError(f"instruction has the fields {unknown}; the prompt's are {list(task.fields)}.")


def plain_templates(
    task: Task, instruction: str | None, tokenizer: PreTrainedTokenizerBase
) -> dict[str, PlainTemplate]:
    """What takes the prompt's place, by the baseline's name."""
    found = {NO_PROMPT: PlainTemplate.of(task.template, tokenizer)}
    if instruction is not None:
        found[INSTRUCTION] = PlainTemplate.of(instruction, tokenizer)
    # A template that gives nothing to read is no baseline: no text, and no beginning-of-text token.
    can_begin = tokenizer.bos_token_id is not None
    return {name: plain for name, plain in found.items() if can_begin or any(plain.parts)}


def copies(task: Task, rows: Sequence[Mapping[str, str]]) -> list[str] | None:
    """The inputs themselves, for texts with one field in the template; else None."""
    if task.objective != "text2text" or len(task.fields) != 1:
        return None
    (name,) = task.fields
    return [task.fields_of(row)[name] for row in rows]


def majority(golds: Sequence[str]) -> list[str]:
    """The most frequent class, for every row."""
    most = max(dict.fromkeys(golds), key=list(golds).count)
    return [most] * len(golds)


def _without_specials(part: Text | Field, tokenizer: PreTrainedTokenizerBase) -> Text | Field:
    if isinstance(part, Field):
        return part
    text = part.text
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return Text(text)
