"""A small Russian model and prompts for it, part of the package: no network is needed to try anything.

``README.md`` in this folder is the model card.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ruprompt_fast.model import FastPromptModel

_HERE = Path(__file__).parent

MODEL = _HERE / "model"
"""Folder of the model and its tokenizer: a GPT-2 of 7 million parameters, float16."""

PROMPTS = MappingProxyType({file.parent.name: file.parent for file in sorted(_HERE.glob("prompts/*/prompt.json"))})
"""Folders of the prompts, by name."""

LABELS = (" стихи", " рассказ")
"""The label words of the prompt ``kind``: verse or prose."""


def load() -> FastPromptModel:
    """The bundled model with all of its prompts."""
    from ruprompt_fast.model import FastPromptModel

    return FastPromptModel.from_pretrained(MODEL, prompts=PROMPTS)
