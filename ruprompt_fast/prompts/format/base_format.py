"""What every prompt format offers, whatever notation it reads."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, overload

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ranges = dict[str, slice]
"""Where each field's value is in a text."""


class BasePromptFormat(abc.ABC):
    """What a prompt needs from its format. Subclasses say how one item becomes a text."""

    @overload
    def __call__(
        self, items: Mapping[str, Any] | None = None, /, return_ranges: Literal[False] = False, **fields: Any
    ) -> str: ...
    @overload
    def __call__(
        self, items: Mapping[str, Any] | None = None, /, *, return_ranges: Literal[True], **fields: Any
    ) -> tuple[str, Ranges]: ...
    @overload
    def __call__(self, items: list[Mapping[str, Any]], /, return_ranges: Literal[False] = False) -> list[str]: ...
    @overload
    def __call__(
        self, items: list[Mapping[str, Any]], /, return_ranges: Literal[True]
    ) -> tuple[list[str], list[Ranges]]: ...
    def __call__(self, items: Any = None, /, return_ranges: bool = False, **fields: Any) -> Any:
        """Format one item, given as a mapping or by keywords, or a list of items.

        Entries that the template has no field for are ignored, as a data set's other columns.

        Args:
            items: the values of the fields; a list of such mappings for several texts.
            return_ranges: whether to return also where each field's value is in the text, in characters.
            fields: the values of the fields, instead of ``items``.

        Returns:
            The text, or a list of texts; with ``return_ranges`` a pair of that and the ranges.

        Raises:
            NotInitializedError: the format is not initialized.
            MissingFieldError: a field has no value.
            FieldTypeError: a value is not a string.
            MarkerInFieldError: a value contains a prompt marker.
        """
        if items is None and isinstance(fields.get("items"), Mapping | list):
            items = fields.pop("items")
        if isinstance(items, list):
            return self.batch_format(items, return_ranges)
        return self.format(fields if items is None else items, return_ranges)

    @abc.abstractmethod
    def format(self, item: Mapping[str, Any], return_ranges: bool = False) -> str | tuple[str, Ranges]:
        """Format one item, see :meth:`__call__`."""

    def batch_format(
        self, items: Sequence[Mapping[str, Any]], return_ranges: bool = False
    ) -> list[str] | tuple[list[str], list[Ranges]]:
        """Format several items, see :meth:`__call__`."""
        if not return_ranges:
            return cast("list[str]", [self.format(item) for item in items])
        pairs = cast("list[tuple[str, Ranges]]", [self.format(item, return_ranges=True) for item in items])
        return [text for text, _ in pairs], [ranges for _, ranges in pairs]

    @property
    @abc.abstractmethod
    def prompt_length(self) -> int | None:
        """The number of virtual tokens; None before initialization."""

    @property
    @abc.abstractmethod
    def is_initialized(self) -> bool:
        """Whether the format is compiled."""

    @property
    @abc.abstractmethod
    def prompt_tokens(self) -> list[str]:
        """The markers of the text form."""

    @property
    @abc.abstractmethod
    def prompt_token_ids(self) -> list[int]:
        """The markers' ids; empty before :meth:`add_tokens`."""

    @property
    @abc.abstractmethod
    def init_tokens(self) -> dict[int, int] | None:
        """Token ids to initialize rows from, by row; None before initialization."""

    @abc.abstractmethod
    def initialize(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compile the template; does nothing to a compiled one."""

    @abc.abstractmethod
    def add_tokens(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Add the markers to a tokenizer and return their ids."""

    @abc.abstractmethod
    def set_key(self, key: str | None) -> None:
        """Give the markers a key, so that several prompts can share a tokenizer."""

    @abc.abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """The arguments that make an equal format."""
