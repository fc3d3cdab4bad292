"""Imports flow one way through the package's layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ruprompt_fast"
KERNELS = PACKAGE.parent / "kernels"

# Lowest first; a module imports from layers below its own and from its own component.
LAYERS = [
    {"__version__", "_lazy", "errors", "core", "precision", "_C", "kernels"},
    {"concurrency", "file_writer"},
    {"ops"},
    {"embedding"},
    {"prompts"},
    {"prompt", "prompt_format", "prompt_provider", "preprocessing"},  # ruPrompts' module names
    {"cache"},
    {"integration"},
    {"requests"},
    {"sampling"},
    {"backends"},
    {"engine", "fallback", "training"},
    {"dispatch"},
    {"model"},
    {"pipelines", "callbacks", "bundled"},
    {"runs"},
    {"serving", "cli"},
    {"_registration"},
    {"__init__"},
]
RANKS = {component: rank for rank, layer in enumerate(LAYERS) for component in layer}
MODULES = sorted(PACKAGE.rglob("*.py"))


def component(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_components(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and component of every import from this package, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute in this package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "ruprompt_fast":
                yield node.lineno, rest.partition(".")[0] or "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = component(path)
    for line, other in imported_components(ast.parse(path.read_text(encoding="utf-8"))):
        assert other in RANKS, f"{path.name}:{line} imports {other}, which has no layer"
        assert other == own or RANKS[other] < RANKS[own], f"{path.name}:{line}: {own} may not import {other}"


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda path: path.name)
def test_kernels_import_nothing_of_the_package(path: Path) -> None:
    assert not list(imported_components(ast.parse(path.read_text(encoding="utf-8"))))


def test_every_module_has_a_layer() -> None:
    assert {component(path) for path in MODULES} <= RANKS.keys()
