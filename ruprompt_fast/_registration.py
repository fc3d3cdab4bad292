"""Registers the pipeline tasks as soon as transformers' pipelines are imported, and not before.

A ruPrompts script says ``import ruprompts`` and then ``transformers.pipeline("text-generation-with-prompt", ...)``, so
the tasks must be known; importing transformers' pipelines with this package would cost everyone else two seconds.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_TARGET = "transformers.pipelines"
_OURS = "ruprompt_fast.pipelines"


def register_tasks_on_import() -> None:
    """Import our pipelines now if transformers' are loaded, and right behind them otherwise."""
    if _TARGET in sys.modules:
        importlib.import_module(_OURS)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds transformers' pipelines as usual, with a loader that goes on to import ours."""

    def __init__(self) -> None:
        self._is_asking_others = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TARGET or self._is_asking_others:
            return None
        self._is_asking_others = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_asking_others = False
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenOurs(spec.loader)
        return spec


class _ThenOurs(importlib.abc.Loader):
    """Runs another loader, then imports our pipelines."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module(_OURS)
