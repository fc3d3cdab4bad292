"""The special tokens of a tokenizer, and where those of a prompt are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

from ruprompt_fast.errors import TemplateError
from ruprompt_fast.prompts.format.layout import Field, Layout, Part, Rows, Slot, Special, Text, Tokens
from ruprompt_fast.prompts.format.template import BEGIN, END, LEADING, TRAILING


class Reading(NamedTuple):
    """How a prompt's text is read.

    Attributes:
        add_special_tokens: whether the special tokens are there that the tokenizer puts around every text.
        is_continued: whether a decoder continues the text. What the tokenizer puts after every text, such as an
            end-of-text token, is then left out, unless the template says where it is.
        reads_control_text: whether a special token's text in a field is that token. Fields are data otherwise.
    """

    add_special_tokens: bool = True
    is_continued: bool = False
    reads_control_text: bool = False


WHOLE_TEXT = Reading()
"""A text that is complete, as an encoder reads it."""


@dataclass(frozen=True)
class SpecialTokens:
    """What templates can know about a tokenizer.

    Attributes:
        ids: the ids of all special tokens, by their texts.
        begin: the text of the beginning-of-text token, or None.
        end: the text of the end-of-text token, or None.
        leading: the ids that the tokenizer puts in front of every text.
        trailing: the ids that it puts after it.
        marks_beginning: whether it reads a text at the very beginning in another way than after a special token.
        are_read: whether it reads the texts of special tokens as these; as text like any other if not.
        strip_before: the special tokens with which it takes away the whitespace in front of them.
        strip_after: those with which it takes away the whitespace after them.
    """

    ids: Mapping[str, int]
    begin: str | None
    end: str | None
    leading: tuple[int, ...]
    trailing: tuple[int, ...]
    marks_beginning: bool
    are_read: bool = True
    strip_before: frozenset[str] = frozenset()
    strip_after: frozenset[str] = frozenset()

    def token(self, name: str) -> str:
        """The text of a special token, of ``<bos>`` or of ``<eos>``.

        Raises:
            TemplateError: the tokenizer has no such token.
        """
        if name in self.ids:  # also a tokenizer's own <eos>, which need not be the one that ends its texts
            return name
        token = {BEGIN: self.begin, END: self.end}.get(name)
        if token is None or token not in self.ids:
            what = {BEGIN: "beginning-of-text", END: "end-of-text"}.get(name, "such special")
            raise TemplateError(
                f"the template holds {name}, and the tokenizer has no {what} token. Set it on the tokenizer, or leave "
                f"{name} out."
            )
        return token

    def ids_of(self, part: Special) -> tuple[int, ...]:
        """The ids of a part of a compiled template.

        Raises:
            TemplateError: the tokenizer has no such token; the template was compiled for another one.
        """
        if part.name == LEADING:
            return self.leading
        return self.trailing if part.name == TRAILING else (self.ids[self.token(part.name)],)

    def recognize(self, layout: Layout) -> Layout:
        """The layout with the special tokens as such that its texts spell out.

        Like the tokenizer, some tokens take the whitespace of the texts beside them away; that of fields is data.
        """
        parts = Layout(piece for part in layout.parts for piece in self._pieces(part)).parts
        around = [None, *parts, None]
        return Layout(map(self._stripped, around, parts, around[2:]))

    def find(self, text: str) -> list[str]:
        """The special tokens that the tokenizer finds in a text."""
        return self.spelled_in([text]) if self.are_read else []

    def spelled_in(self, texts: Iterable[str]) -> list[str]:
        """The special tokens whose texts appear in these texts."""
        return [name for text in texts for name in _pattern(tuple(self.ids)).findall(text)] if self.ids else []

    def compile(self, layout: Layout) -> Layout:
        """The layout of a new template, with this tokenizer's own tokens.

        What the tokenizer itself puts around every text becomes ``<|leading|>`` and ``<|trailing|>`` where the template
        holds it, in front of the first field or after the last one. Where the template says nothing, it is around
        the whole text.

        Raises:
            TemplateError: the tokenizer lacks a token that the template names.
        """
        named = Layout(self._own_token(part) for part in layout.parts)
        parts = [piece for part in named.parts for piece in self._pieces(part) if piece != Text("")]
        fields = [index for index, part in enumerate(parts) if isinstance(part, Field)] or [len(parts)]
        after = fields[-1] + 1
        if Special(TRAILING) not in parts:
            parts[after:] = self._named(parts[after:], self.trailing, TRAILING)
        if Special(LEADING) not in parts:
            parts[: fields[0]] = self._named(parts[: fields[0]], self.leading, LEADING)
        return Layout(parts)

    def _own_token(self, part: Part) -> Part:
        is_named = isinstance(part, Special) and part.name not in (LEADING, TRAILING)
        return Special(self.token(part.name)) if is_named and isinstance(part, Special) else part

    def _pieces(self, part: Part) -> Iterator[Part]:
        if not isinstance(part, Text) or not self.ids:
            yield part
            return
        end = 0
        for match in _pattern(tuple(self.ids)).finditer(part.text):
            yield Text(part.text[end : match.start()])
            yield Special(match.group())
            end = match.end()
        yield Text(part.text[end:])

    def _stripped(self, before: Part | None, part: Part, after: Part | None) -> Part:
        """A part without the whitespace that special tokens beside it take away."""
        if isinstance(part, Text) and isinstance(before, Special) and before.name in self.strip_after:
            part = Text(part.text.lstrip())
        if isinstance(part, Text) and isinstance(after, Special) and after.name in self.strip_before:
            part = Text(part.text.rstrip())
        return part

    def _named(self, parts: list[Part], ids: tuple[int, ...], name: str) -> list[Part]:
        """The parts with the special tokens ``ids``, which are next to each other, as one part of this name."""
        size = len(ids)
        for start in range(len(parts) - size + 1) if size else ():
            stretch = parts[start : start + size]
            singles = [part for part in stretch if isinstance(part, Special) and part.name not in (LEADING, TRAILING)]
            if len(singles) == size and tuple(token for part in singles for token in self.ids_of(part)) == ids:
                return [*parts[:start], Special(name), *parts[start + size :]]
        return parts


@lru_cache(maxsize=64)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


@dataclass(frozen=True)
class PlacedLayout:
    """A layout as one tokenizer reads it: all special tokens are there, as ids.

    Attributes:
        head: rows and special tokens in front of the text that is tokenized.
        text: what is tokenized, with the rows and special tokens inside.
        foot: rows and special tokens after it.
        prefix_slots: how many slots of the text belong to the static prefix: those before the first field up to the
            last rows, and the special tokens directly after these.
    """

    head: tuple[Rows | Tokens, ...]
    text: Layout
    foot: tuple[Rows | Tokens, ...]
    prefix_slots: int = field(init=False)

    def __post_init__(self) -> None:
        parts = list(takewhile(lambda part: not isinstance(part, Field), self.text.parts))
        stop = max((index for index, part in enumerate(parts, start=1) if isinstance(part, Rows)), default=0)
        while 0 < stop < len(parts) and isinstance(parts[stop], Tokens):
            stop += 1
        object.__setattr__(self, "prefix_slots", sum(isinstance(part, Slot) for part in parts[:stop]))


def place(
    layout: Layout,
    specials: SpecialTokens,
    reading: Reading,
    after: Sequence[Field] = (),
    end: tuple[int, ...] = (),
) -> PlacedLayout:
    """Put a tokenizer's special tokens in their places.

    What comes after rows and the leading tokens is tokenized as if nothing came before it, and what comes before
    the trailing tokens as if nothing came: as PEFT's prompts, and as the tokenizer alone reads the text.

    Args:
        layout: the prompt's layout.
        specials: the tokenizer's special tokens.
        reading: how the text is read.
        after: fields that continue the prompt's text.
        end: ids to come after all of it.

    """
    placer = _Placer(specials, reading)
    head, parts = placer.head([*specials.recognize(layout).parts, *after])
    parts, foot = placer.foot(parts)
    return PlacedLayout(tuple(head), Layout(placer.with_ids(parts)), (*foot, *([Tokens(end)] if end else [])))


@dataclass(frozen=True)
class _Placer:
    """Cuts recognized parts into those of a :class:`PlacedLayout`."""

    specials: SpecialTokens
    reading: Reading

    def head(self, parts: list[Part]) -> tuple[list[Rows | Tokens], list[Part]]:
        """What comes in front of the text, and the rest."""
        if Special(LEADING) not in parts:
            is_added = self.reading.add_special_tokens and bool(self.specials.leading)
            return [Tokens(self.specials.leading)] if is_added else [], parts
        stop = parts.index(Special(LEADING)) + 1
        slots = self._slots(parts[:stop])
        return ([], parts) if slots is None else (slots, parts[stop:])

    def foot(self, parts: list[Part]) -> tuple[list[Part], list[Rows | Tokens]]:
        """The rest, and what comes after the text."""
        if Special(TRAILING) not in parts:
            is_added = self.reading.add_special_tokens and not self.reading.is_continued
            return parts, [Tokens(self.specials.trailing)] if is_added and self.specials.trailing else []
        start = parts.index(Special(TRAILING))
        slots = self._slots(parts[start:])
        return (parts, []) if slots is None else (parts[:start], slots)

    def with_ids(self, parts: Sequence[Part]) -> list[Part]:
        """The parts with ids for special tokens, without those that hold none."""
        found = [Tokens(self._ids(part)) if isinstance(part, Special) else part for part in parts]
        return [part for part in found if part != Tokens(())]

    def _slots(self, parts: Sequence[Part]) -> list[Rows | Tokens] | None:
        """The rows and special tokens; None if there is anything else among the parts."""
        if not all(isinstance(part, Rows | Special) for part in parts):
            return None
        return [part for part in self.with_ids(parts) if isinstance(part, Rows | Tokens)]

    def _ids(self, part: Special) -> tuple[int, ...]:
        is_added = part.name in (LEADING, TRAILING)
        return () if is_added and not self.reading.add_special_tokens else self.specials.ids_of(part)
