"""Ways of computing a step that measurements and tests may fix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CudaOptions:
    """What the backend decides by itself unless it is told.

    Attributes:
        graphs: whether decode steps are captured and replayed; otherwise all steps are eager.
        runs_ahead: whether a step is launched before the tokens of the one before are read; None measures what pays.
        shares_prefixes: whether rows that begin with the same pages read these together; None takes the rule of
            :mod:`ruprompt_fast.ops.cuda.prefix_rule`.
    """

    graphs: bool = True
    runs_ahead: bool | None = None
    shares_prefixes: bool | None = None
