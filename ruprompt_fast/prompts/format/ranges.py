"""``str.format`` that also says where each value went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ruprompt_fast.prompts.format.layout import Layout
from ruprompt_fast.prompts.format.template import split_fields


class FormatStringWithRanges:
    """A template of literal text and fields, without soft rows.

        >>> FormatStringWithRanges("a {name} c").format({"name": "b"})
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
