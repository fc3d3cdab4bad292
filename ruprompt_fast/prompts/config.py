"""What a prompt remembers about the model it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ruprompt_fast.errors import PromptFileError

_TYPES: dict[str, type] = {"embedding_dim": int, "prompt_length": int, "pretrained_model_name": str, "is_safe": bool}


@dataclass
class PromptConfig:
    """The ``config`` of ``prompt.json``.

    Attributes:
        embedding_dim: width of the rows; None before initialization.
        prompt_length: number of rows; None before initialization.
        pretrained_model_name: the model that the prompt was made for, a hub id or a path; None before initialization.
        is_safe: kept for ruPrompts' files, where it is always False.
        extra: further entries of a file, kept when the prompt is saved again.
    """

    embedding_dim: int | None = None
    prompt_length: int | None = None
    pretrained_model_name: str | None = None
    is_safe: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The entries as stored."""
        return {
            **self.extra,
            "embedding_dim": self.embedding_dim,
            "prompt_length": self.prompt_length,
            "pretrained_model_name": self.pretrained_model_name,
            "is_safe": self.is_safe,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> PromptConfig:
        """Read the entries.

        Raises:
            PromptFileError: an entry has another type than it should have.
        """
        if not isinstance(stored, Mapping):
            raise PromptFileError(f"expected config to be an object; found {type(stored).__name__}.")
        values: dict[str, Any] = {}
        for name, expected in _TYPES.items():
            value = stored.get(name)
            if value is None:
                continue
            if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
                raise PromptFileError(f"expected config.{name} to be {expected.__name__}; found {value!r}.")
            values[name] = value
        extra = {name: value for name, value in stored.items() if name not in _TYPES}
        return cls(**values, extra=extra)
