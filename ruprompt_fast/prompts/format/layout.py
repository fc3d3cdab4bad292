"""The layout of a prompt: its texts, fields, virtual tokens and special tokens in order, in whatever notation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ruprompt_fast.errors import FieldTypeError, MissingFieldError, TemplateError, shown
from ruprompt_fast.prompts.format.texts import is_text


@dataclass(frozen=True)
class Text:
    """Literal text."""

    text: str


@dataclass(frozen=True)
class Field:
    """A variable."""

    name: str


@dataclass(frozen=True)
class Rows:
    """Virtual tokens that are next to each other."""

    count: int


@dataclass(frozen=True)
class RowsFromText:
    """Virtual tokens to be initialized from a text: as many as the text has tokens."""

    text: str


@dataclass(frozen=True)
class Special:
    """Special tokens, which are added by their ids and never through text.

    Attributes:
        name: ``<bos>`` or ``<eos>`` of a template that is not compiled, the tokenizer's beginning-of-text or
            end-of-text token; ``<|leading|>`` or ``<|trailing|>``, what the tokenizer itself puts in front of every
            text or after it; or a special token's own text.
    """

    name: str


@dataclass(frozen=True)
class Tokens:
    """The ids of :class:`Special` tokens, in the layout that a tokenizer reads."""

    ids: tuple[int, ...]


Slot = Rows | Special | Tokens
"""What is between texts without being text itself."""

Part = Text | Field | Slot
TemplatePart = Part | RowsFromText


class Layout:
    """The parts of a compiled template in order, neighbouring texts and neighbouring rows joined.

    Attributes:
        parts: texts, fields, runs of rows and special tokens.
        fields: names of the fields, each once, in order of appearance.
        slots: the runs of rows and the special tokens.
        runs: the number of rows of each run.
        prompt_length: the number of rows.
        is_bounded: whether every field has slots or an end of the text on both sides, so that no token can belong to a
            field and to something else.
        field_places: for each field part its name, and how many slots come before it.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = tuple(join_neighbours(parts))
        self.fields = field_names(self.parts)
        self.slots = tuple(part for part in self.parts if isinstance(part, Slot))
        self.runs = tuple(slot.count for slot in self.slots if isinstance(slot, Rows))
        self.prompt_length = sum(self.runs)
        self.field_places: list[tuple[str, int]] = []
        num_slots = 0
        for part in self.parts:
            if isinstance(part, Field):
                self.field_places.append((part.name, num_slots))
            num_slots += isinstance(part, Slot)
        around = [None, *self.parts, None]
        self.is_bounded = all(
            not isinstance(before, Text | Field) and not isinstance(after, Text | Field)
            for before, part, after in zip(around, around[1:], around[2:], strict=False)
            if isinstance(part, Field)
        )

    def render(self, item: Mapping[str, Any], slot_texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
        """Put the fields' values and one text per slot in their places.

        Args:
            item: the value of every field; other entries are ignored.
            slot_texts: what to write for each of :attr:`slots`.

        Returns:
            The text, and for every field part the positions of its first character and after its last one.

        Raises:
            MissingFieldError: a field has no value, or the value None.
            FieldTypeError: a value is not a string or no text, or the item not a mapping.
        """
        if not isinstance(item, Mapping):
            raise FieldTypeError(
                f"fields must be a mapping from names to strings; found {type(item).__name__}. "
                f"This template has the fields {shown(list(self.fields))}."
            )
        pieces = []
        spans = []
        position = 0
        slots = iter(slot_texts)
        for part in self.parts:
            if isinstance(part, Field):
                piece = self._value(item, part.name)
                spans.append((position, position + len(piece)))
            elif isinstance(part, Text):
                piece = part.text
            else:
                piece = next(slots)
            pieces.append(piece)
            position += len(piece)
        return "".join(pieces), spans

    def ranges(self, spans: Sequence[tuple[int, int]]) -> dict[str, slice]:
        """Name the spans that :meth:`render` returned; a field that appears twice keeps its last place."""
        return {name: slice(start, stop) for (name, _), (start, stop) in zip(self.field_places, spans, strict=True)}

    def compiled(self, marker: str) -> str:
        """The compiled template with ``marker`` for every row."""
        return "".join(_compiled_part(part, escape_braces(marker)) for part in self.parts)

    def _value(self, item: Mapping[str, Any], name: str) -> str:
        value = item.get(name)
        if isinstance(value, str):
            if not is_text(value):
                raise FieldTypeError(
                    f"the field {shown(name)} must be text; {shown(value)} holds half a character, a lone surrogate."
                )
            return value
        if value is None:
            raise MissingFieldError(
                f"the field {shown(name)} has no value; the template needs {shown(list(self.fields))}, given were "
                f"{shown(list(item))}."
            )
        raise FieldTypeError(
            f"the field {shown(name)} must be a string; found {type(value).__name__}. Convert it with str() first."
        )


def field_names(parts: Iterable[TemplatePart]) -> tuple[str, ...]:
    """Names of the fields among ``parts``, each once, in order of appearance."""
    return tuple(dict.fromkeys(part.name for part in parts if isinstance(part, Field)))


def join_neighbours(parts: Iterable[Part]) -> list[Part]:
    """Join texts next to each other, and runs of rows; drop the empty ones."""
    joined: list[Part] = []
    # By groups and not one by one: a text of very many pieces would be copied for each of them.
    for kind, group in groupby(filter(_holds_something, parts), key=type):
        if kind is Text:
            joined.append(Text("".join(part.text for part in group if isinstance(part, Text))))
        elif kind is Rows:
            joined.append(Rows(sum(part.count for part in group if isinstance(part, Rows))))
        else:
            joined.extend(group)
    return joined


def _compiled_part(part: Part, marker: str) -> str:
    if isinstance(part, Field):
        return "{" + part.name + "}"
    if isinstance(part, Rows):
        return marker * part.count
    if isinstance(part, Tokens):
        raise TemplateError("a layout with token ids belongs to one tokenizer and has no compiled template.")
    return escape_braces(part.text if isinstance(part, Text) else part.name)


def _holds_something(part: Part) -> bool:
    return not (isinstance(part, Text) and not part.text) and not (isinstance(part, Rows) and not part.count)


def escape_braces(text: str) -> str:
    """Write braces so that ``str.format`` gives the text back."""
    return text.replace("{", "{{").replace("}", "}}")
