"""Requests with deep prompts, which only the engine serves."""

from __future__ import annotations

from collections.abc import Sequence

from ruprompt_fast.errors import SettingError, UnsupportedModelError
from ruprompt_fast.requests.inputs import Request


def check_deep(request: Request, reason: str, settings: Sequence[str] = ()) -> None:
    """Refuse a deep prompt where a request takes the transformers fallback, which cannot run it.

    Args:
        request: the request.
        reason: why the model needs the fallback; empty if it does not.
        settings: the settings of the request that need the fallback.

    Raises:
        UnsupportedModelError: because of the model.
        SettingError: because of the settings.
    """
    if request.prompt is None or not request.prompt.is_deep:
        return
    only = f"prompt {request.prompt.name!r} is a deep prompt, which only the engine serves, and"
    if reason:
        raise UnsupportedModelError(
            f"{only} this model takes transformers' own generate because {reason} Use a prompt of embedding rows with "
            "this model (TensorPromptProvider)."
        )
    if settings:
        raise SettingError(
            f"{only} this request takes transformers' own generate because of {', '.join(settings)}. Leave "
            "that out, or use a prompt of embedding rows (TensorPromptProvider)."
        )
