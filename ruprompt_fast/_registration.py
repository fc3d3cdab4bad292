"""Registers our operators as soon as torch is imported, and the pipeline tasks with transformers' pipelines.

``torch.ops.ruprompt_fast`` exists once this package and torch are imported. A ruPrompts script calls ``import
ruprompts`` and then ``transformers.pipeline("text-generation-with-prompt", ...)``, so the tasks must be registered.
Importing torch and transformers' pipelines with this package would take seconds: the command line must answer
``--help`` without either.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

_FOLLOWERS = {"torch": "ruprompt_fast.ops", "transformers.pipelines": "ruprompt_fast.pipelines"}
"""Our modules, by the module that each is imported after."""


def register_on_import() -> None:
    """Import each of our modules now if the module before it is loaded, and otherwise right after it."""
    waiting = {}
    for leader, follower in _FOLLOWERS.items():
        if leader in sys.modules:
            importlib.import_module(follower)
        else:
            waiting[leader] = follower
    if waiting and not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(waiting))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds modules as usual, with a loader that imports ours afterwards."""

    def __init__(self, followers: Mapping[str, str]) -> None:
        self._followers = followers
        self._is_asking_others = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._followers or self._is_asking_others:
            return None
        self._is_asking_others = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_asking_others = False
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenOurs(spec.loader, self._followers[fullname])
        return spec


class _ThenOurs(importlib.abc.Loader):
    """Runs another loader, then imports one of our modules."""

    def __init__(self, loader: importlib.abc.Loader, follower: str) -> None:
        self._loader = loader
        self._follower = follower

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module(self._follower)
