"""The text form of a prompt, as in ruPrompts: a text with markers, for the tokenizer to read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ruprompt_fast.errors import MarkerInFieldError, TextFormError, shown
from ruprompt_fast.prompts.format.base_format import Ranges
from ruprompt_fast.prompts.format.layout import Layout, Part, Rows, Special, Text
from ruprompt_fast.prompts.format.special_tokens import SpecialTokens
from ruprompt_fast.prompts.format.template import LEADING, MARKER_PATTERN, TRAILING

_MARKER_END = "P|>"


class TextForm:
    """Writes texts that a tokenizer, with its special tokens around them, reads as the layout says.

    Args:
        layout: the layout.
        specials: the tokenizer's special tokens, if it is known; what it adds is not checked otherwise.
        marker: what to write for a row.

    Raises:
        TextFormError: rows come before special tokens that the tokenizer adds in front of the whole text, or text
            comes after those that it adds at its end; or the layout holds special tokens, and the tokenizer reads
            their texts as text.
    """

    def __init__(self, layout: Layout, specials: SpecialTokens | None, marker: str) -> None:
        self._specials = specials
        self._marker = marker
        if specials is not None:
            layout = specials.recognize(layout)
            _check_tokens(layout, specials)
            _check_order(layout, specials)
        self._layout = Layout(map(_written, layout.parts))
        self._literals = [part.text for part in self._layout.parts if isinstance(part, Text)]
        self._own = [] if specials is None else [found for text in self._literals for found in specials.find(text)]
        self._stripped = None if specials is None else _stripped_pattern(specials, set(self._own))

    def format(self, item: Mapping[str, Any], return_ranges: bool = False) -> str | tuple[str, Ranges]:
        """Fill in the fields, see :meth:`PromptFormat.__call__`.

        Raises:
            MarkerInFieldError: a field contains a marker, or a special token's text.
        """
        layout = self._layout
        text, spans = layout.render(item, [self._marker * count for count in layout.runs])
        if text.count(_MARKER_END) != layout.prompt_length:
            self._check_markers(text, item)
        self._check_control_text(text, item)
        return (text, layout.ranges(spans)) if return_ranges else text

    def _check_markers(self, text: str, item: Mapping[str, Any]) -> None:
        if sum(1 for _ in MARKER_PATTERN.finditer(text)) == self._layout.prompt_length:
            return  # literal text contains the end of a marker
        guilty = [name for name in self._layout.fields if MARKER_PATTERN.search(item[name])]
        raise MarkerInFieldError(
            f"the text of {shown(guilty or list(self._layout.fields))} contains a prompt marker such as "
            f"{shown(self._marker)}, alone or together with the template's own text {shown(self._literals)}. The "
            "text form cannot tell it from the template's rows: remove it, or use encode(), where markers in fields "
            "are plain text."
        )

    def _check_control_text(self, text: str, item: Mapping[str, Any]) -> None:
        if self._specials is None:
            return
        found = self._specials.find(text)
        if found == self._own:
            self._check_whitespace(text)
            return
        guilty = [name for name in self._layout.fields if self._specials.find(item[name])]
        raise MarkerInFieldError(
            f"the text of {shown(guilty or list(self._layout.fields))} contains a special token of the tokenizer, "
            f"alone or together with the template's own text: {shown(found)}. The text form cannot tell it from the "
            "token: remove it, or use encode(), where special tokens in fields are plain text."
        )

    def _check_whitespace(self, text: str) -> None:
        found = None if self._stripped is None else self._stripped.search(text)
        if found is not None:
            raise MarkerInFieldError(
                f"a field of {shown(list(self._layout.fields))} is empty, or begins or ends with whitespace, beside a "
                f"special token with which the tokenizer takes whitespace away: {shown(found.group())}. The text form "
                "cannot keep it: remove it, or use encode(), where it is text."
            )


def _written(part: Part) -> Part:
    if not isinstance(part, Special):
        return part
    return Text("" if part.name in (LEADING, TRAILING) else part.name)  # the tokenizer adds those two


def _stripped_pattern(specials: SpecialTokens, own: Collection[str]) -> re.Pattern[str] | None:
    """Whitespace that is taken away by one of these special tokens; None if none of them does."""
    before = [rf"\s{re.escape(token)}" for token in own if token in specials.strip_before]
    after = [rf"{re.escape(token)}\s" for token in own if token in specials.strip_after]
    return re.compile("|".join([*before, *after])) if before or after else None


def _check_tokens(layout: Layout, specials: SpecialTokens) -> None:
    own = [part.name for part in layout.parts if isinstance(part, Special) and part.name not in (LEADING, TRAILING)]
    if own and not specials.are_read:
        raise TextFormError(
            f"this prompt has no text form: its template holds the special tokens {shown(own)}, and the tokenizer "
            "reads their texts as text, because of split_special_tokens. Use prompt.tokenize() or format.encode()."
        )


def _check_order(layout: Layout, specials: SpecialTokens) -> None:
    parts = list(layout.parts)
    before = parts[: parts.index(Special(LEADING))] if Special(LEADING) in parts else []
    after = parts[parts.index(Special(TRAILING)) + 1 :] if Special(TRAILING) in parts else []
    stands_alone = specials.marks_beginning and all(isinstance(part, Rows | Special) for part in before)
    if (before and (specials.leading or stands_alone)) or (after and specials.trailing):
        raise TextFormError(
            "this prompt has no text form: the tokenizer puts its special tokens around the whole text, and the "
            f"prompt's template says {shown(layout.compiled('<P>'))}. Use prompt.tokenize() or format.encode(); or "
            f"write {LEADING} at the template's beginning and {TRAILING} at its end, and train the prompt so."
        )
