"""The special tokens of a tokenizer, and where those of a prompt stand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

from ruprompt_fast.errors import TemplateError
from ruprompt_fast.prompts.layout import Field, Layout, Part, Rows, Slot, Special, Text, Tokens
from ruprompt_fast.prompts.template import BEGIN, END, LEADING, TRAILING

ROWS_FIRST_BY_DEFAULT = True
"""Whether new prompts stand before the tokenizer's leading special tokens, as PEFT's do, rather than behind them."""


class Reading(NamedTuple):
    """How a prompt's text is read.

    Attributes:
        add_special_tokens: whether the special tokens are there that the tokenizer puts around every text.
        is_continued: whether a decoder goes on with the text. What the tokenizer puts behind every text, such as an
            end-of-text token, is then left out, unless the template says where it stands.
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
        begin: text and id of the beginning-of-text token, or None.
        end: text and id of the end-of-text token, or None.
        leading: the ids that the tokenizer puts in front of every text.
        trailing: the ids that it puts behind it.
        marks_beginning: whether it reads a text at the very beginning in another way than behind a special token.
    """

    ids: Mapping[str, int]
    begin: tuple[str, int] | None
    end: tuple[str, int] | None
    leading: tuple[int, ...]
    trailing: tuple[int, ...]
    marks_beginning: bool

    def token(self, name: str) -> tuple[str, int]:
        """The text and id of a special token, of ``<bos>`` or of ``<eos>``.

        Raises:
            TemplateError: the tokenizer has no such token.
        """
        if name in self.ids:  # also a tokenizer's own <eos>, which need not be the one that ends its texts
            return name, self.ids[name]
        token = {BEGIN: self.begin, END: self.end}.get(name)
        if token is None:
            what = "beginning-of-text" if name == BEGIN else "end-of-text"
            raise TemplateError(
                f"the template holds {name}, and the tokenizer has no {what} token. Set it on the tokenizer, or leave "
                f"{name} out."
            )
        return token

    def ids_of(self, part: Special) -> tuple[int, ...]:
        """The ids that a part stands for.

        Raises:
            TemplateError: the tokenizer has no such token.
        """
        if part.name == LEADING:
            return self.leading
        return self.trailing if part.name == TRAILING else self.token(part.name)[1:]

    def recognize(self, layout: Layout) -> Layout:
        """The layout with all of its special tokens as such, also those that its texts spell out.

        Those that are what the tokenizer itself puts around every text, in front of the first field or behind the last
        one, become ``<|leading|>`` and ``<|trailing|>``.

        Raises:
            TemplateError: the tokenizer has no such token.
        """
        parts = [piece for part in layout.parts for piece in self._pieces(part)]
        for part in parts:
            if isinstance(part, Special):
                self.ids_of(part)
        fields = [index for index, part in enumerate(parts) if isinstance(part, Field)] or [len(parts)]
        behind = fields[-1] + 1
        if Special(TRAILING) not in parts:
            parts[behind:] = self._named(parts[behind:], self.trailing, TRAILING)
        if Special(LEADING) not in parts:
            parts[: fields[0]] = self._named(parts[: fields[0]], self.leading, LEADING)
        return Layout(parts)

    def find(self, text: str) -> list[str]:
        """The special tokens that a text spells out."""
        return _pattern(tuple(self.ids)).findall(text) if self.ids else []

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

    def _named(self, parts: Sequence[Part], ids: tuple[int, ...], name: str) -> list[Part]:
        """The parts with the special tokens ``ids``, which stand next to each other, as one part of this name."""
        parts = [part for part in parts if part != Text("")]
        size = len(ids)
        for start in range(len(parts) - size + 1) if size else ():
            stretch = parts[start : start + size]
            singles = [part for part in stretch if isinstance(part, Special) and part.name not in (LEADING, TRAILING)]
            if len(singles) == size and tuple(token for part in singles for token in self.ids_of(part)) == ids:
                return [*parts[:start], Special(name), *parts[start + size :]]
        return list(parts)


@lru_cache(maxsize=64)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


def with_default_order(layout: Layout, specials: SpecialTokens) -> Layout:
    """The layout of a new prompt, which says where the tokenizer's leading tokens stand if that is not the beginning.

    Raises:
        TemplateError: the tokenizer lacks a token that the layout names.
    """
    recognized = specials.recognize(layout).parts
    if not (ROWS_FIRST_BY_DEFAULT and specials.leading and isinstance(next(iter(recognized), None), Rows)):
        return layout
    if Special(LEADING) in recognized:
        return layout
    return Layout([layout.parts[0], Special(LEADING), *layout.parts[1:]])


@dataclass(frozen=True)
class PlacedLayout:
    """A layout as one tokenizer reads it: all special tokens are there, as ids.

    Attributes:
        head: rows and special tokens in front of the text that is tokenized.
        text: what is tokenized, with the rows and special tokens inside.
        foot: rows and special tokens behind it.
        prefix_slots: how many slots of the text belong to the static prefix: those before the first field up to the
            last rows, and the special tokens directly behind these.
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
    behind: Sequence[Field] = (),
    end: tuple[int, ...] = (),
) -> PlacedLayout:
    """Put a tokenizer's special tokens in their places.

    What stands behind rows and the leading tokens is tokenized as if nothing stood before it, and what stands before
    the trailing tokens as if nothing came: as PEFT's prompts, and as the tokenizer alone reads the text.

    Args:
        layout: the prompt's layout.
        specials: the tokenizer's special tokens.
        reading: how the text is read.
        behind: fields that continue the prompt's text.
        end: ids to stand behind all of it.

    Raises:
        TemplateError: the tokenizer lacks a token that the layout names.
    """
    said = [name for name in (LEADING, TRAILING) if Special(name) in layout.parts]
    placer = _Placer(specials, reading, () if reading.add_special_tokens else tuple(said))
    head, parts = placer.head([*specials.recognize(layout).parts, *behind])
    parts, foot = placer.foot(parts)
    return PlacedLayout(tuple(head), Layout(placer.with_ids(parts)), (*foot, *([Tokens(end)] if end else [])))


@dataclass(frozen=True)
class _Placer:
    """Cuts recognized parts into those of a :class:`PlacedLayout`; the special tokens ``dropped`` hold no ids."""

    specials: SpecialTokens
    reading: Reading
    dropped: tuple[str, ...]

    def head(self, parts: list[Part]) -> tuple[list[Rows | Tokens], list[Part]]:
        """What stands in front of the text, and the rest."""
        if Special(LEADING) not in parts:
            is_added = self.reading.add_special_tokens and bool(self.specials.leading)
            return [Tokens(self.specials.leading)] if is_added else [], parts
        stop = parts.index(Special(LEADING)) + 1
        slots = self._slots(parts[:stop])
        return ([], parts) if slots is None else (slots, parts[stop:])

    def foot(self, parts: list[Part]) -> tuple[list[Part], list[Rows | Tokens]]:
        """The rest, and what stands behind the text."""
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
        return () if part.name in self.dropped else self.specials.ids_of(part)
