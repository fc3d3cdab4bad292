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

# What knows a device, and who may import it.
DEVICES = {
    "ruprompt_fast.backends.cpu": {"backends"},
    "ruprompt_fast.backends.cuda": {"backends"},
    "ruprompt_fast.ops.cpu": {"ops", "backends"},
    "ruprompt_fast.ops.cuda": {"ops", "backends"},
}
SERVING = ("engine", "cache", "requests", "sampling", "dispatch")
NEUTRAL = SERVING[:4]
WORDS = {"cpu", "cuda", "device", "get_device", "is_cpu", "is_cuda", "non_blocking", "pin_memory"}
NAMED_ANYWAY = {
    "cache/hashing.py": {"cpu"},  # a digest reads numbers on the host
    "requests/registry.py": {"device"},  # is told where rows are kept
    "sampling/beam_search.py": {"cpu"},  # the search runs on the host, and copies its logits there
    "sampling/sampler.py": {"cpu"},  # and so does this sampler
}
LOOKS_AT_A_TYPE = {"dispatch/model_sources.py"}  # the dtype and the place of a model that is loaded


def component(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of every import from this package, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute in this package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "ruprompt_fast":
                yield node.lineno, name


def imported_components(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and component of every import from this package."""
    for line, name in imported_names(tree):
        yield line, name.removeprefix("ruprompt_fast").removeprefix(".").partition(".")[0] or "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = component(path)
    for line, other in imported_components(ast.parse(path.read_text(encoding="utf-8"))):
        assert other in RANKS, f"{path.name}:{line} imports {other}, which has no layer"
        assert other == own or RANKS[other] < RANKS[own], f"{path.name}:{line}: {own} may not import {other}"


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda path: path.name)
def test_kernels_import_nothing_of_the_package_but_kernels(path: Path) -> None:
    assert {name for _, name in imported_components(ast.parse(path.read_text(encoding="utf-8")))} <= {"kernels"}


def test_every_module_has_a_layer() -> None:
    assert {component(path) for path in MODULES} <= RANKS.keys()


def modules_of(*components: str) -> list[Path]:
    return [path for path in MODULES if component(path) in components]


def named(tree: ast.AST) -> Iterator[str]:
    """Names, attributes, arguments and whole strings; of a string like "cuda:0" what comes before the colon."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg is not None:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition(":")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_device_is_known_to_its_backend(path: Path) -> None:
    for line, name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
        for device, importers in DEVICES.items():
            assert component(path) in importers or not f"{name}.".startswith(f"{device}."), f"line {line}: {name}"


@pytest.mark.parametrize("path", modules_of("engine"), ids=lambda path: path.name)
def test_the_engine_knows_backends_by_their_protocols(path: Path) -> None:
    for line, name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
        if name.startswith("ruprompt_fast.backends"):
            assert name.startswith("ruprompt_fast.backends.base."), f"line {line}: {name}"


@pytest.mark.parametrize("path", modules_of(*NEUTRAL), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_device_is_named(path: Path) -> None:
    found = WORDS & set(named(ast.parse(path.read_text(encoding="utf-8"))))
    assert found == NAMED_ANYWAY.get(path.relative_to(PACKAGE).as_posix(), set())


def test_only_the_choice_of_a_backend_looks_at_a_type_of_device() -> None:
    looking = {
        path.relative_to(PACKAGE).as_posix()
        for path in modules_of(*SERVING)
        if "type" in {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    }
    assert looking == LOOKS_AT_A_TYPE
