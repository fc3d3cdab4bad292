"""How requests run on a model as it was at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ruprompt_fast.dispatch.build import BuiltEngine
from ruprompt_fast.engine.generator import EngineGenerator
from ruprompt_fast.integration.watch import Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Current:
    """The engine for the model as it was, or the reason why there is none.

    Attributes:
        reason: why there is none; empty if there is one.
        built: the engine and what belongs to it.
        generator: runs requests on it.
        watch: of the whole model; without an engine of the token table, for nothing is kept of the rest then.
    """

    reason: str
    built: BuiltEngine | None
    generator: EngineGenerator | None
    watch: Watch

    def is_outdated(self, model: PreTrainedModel) -> bool:
        """Whether the model has changed since."""
        if self.built is not None:
            return self.built.is_outdated()
        return self.watch.sees_change() or any(module.training for module in model.modules())
