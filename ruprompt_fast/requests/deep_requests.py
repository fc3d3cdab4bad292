"""Requests with deep prompts, which only the engine serves."""

from __future__ import annotations

from collections.abc import Sequence

from ruprompt_fast.errors import SettingError, UnsupportedModelError
from ruprompt_fast.requests.inputs import Request


def check_deep(request: Request, reason: str, settings: Sequence[str] = ()) -> None:
    """Refuse a deep prompt where a request takes the padded path: transformers' generate has no place for it.

    Args:
        request: the request.
        reason: why the model needs that path; empty if it does not.
        settings: those of the request's settings that need it.

    Raises:
        UnsupportedModelError: because of the model.
        SettingError: because of the settings.
    """
    if request.prompt is None or not request.prompt.is_deep:
        return
    only = f"prompt {request.prompt.name!r} is a deep one, which only the engine serves, and"
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
