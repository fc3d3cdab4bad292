"""How many calls there are between a request and the module that computes it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType

from engine.engine_cases import ENDLESS, Fault, hooked, serve

import ruprompt_fast

PACKAGE = str(Path(ruprompt_fast.__file__).parent)


def own_calls(frame: FrameType | None) -> list[str]:
    """The package's functions that a thread is inside, the last one first."""
    found = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            found.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name)
        frame = frame.f_back
    return found


def test_a_request_reaches_the_module_in_seven_calls() -> None:
    """On the caller's thread as on the engine's, whatever the two are begun with included."""
    model = serve()
    caller = threading.get_ident()
    found: list[list[str]] = []

    def look() -> None:
        found.append(own_calls(sys._getframe()))
        found.append(own_calls(sys._current_frames()[caller]))

    with hooked(model, Fault(look)):
        model.generate("да", "short", max_new_tokens=3, **ENDLESS)
    assert found
    for calls in found:
        assert len(calls) <= 7, calls
