"""ruPrompts' module of this name: formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ruprompt_fast.prompts.format.base_format import BasePromptFormat
from ruprompt_fast.prompts.format.layout import Layout
from ruprompt_fast.prompts.format.prompt_format import PromptFormat
from ruprompt_fast.prompts.format.template import PROMPT_TOKEN, PROMPT_TOKEN_FOR_KEY, PROMPT_TOKEN_SHORT, split_fields

__all__ = [
    "PROMPT_TOKEN",
    "PROMPT_TOKEN_FOR_KEY",
    "PROMPT_TOKEN_SHORT",
    "BasePromptFormat",
    "PromptFormat",
    "_FormatStringWithRanges",
]


class _FormatStringWithRanges:
    """``str.format`` that also says where each value went: a template without virtual tokens.

        >>> _FormatStringWithRanges("a {name} c").format({"name": "b"})
        ('a b c', {'name': slice(2, 3, None)})

    Args:
        template: the template.

    Raises:
        TemplateError: it cannot be read.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        self._layout = Layout(split_fields(template))

    def format(self, item: Mapping[str, Any]) -> tuple[str, dict[str, slice]]:
        """Fill in the fields.

        Returns:
            The text, and the slice of it that holds each field's value.

        Raises:
            MissingFieldError: a field has no value.
            FieldTypeError: a value is not a string.
        """
        text, spans = self._layout.render(item, ())
        return text, self._layout.ranges(spans)
