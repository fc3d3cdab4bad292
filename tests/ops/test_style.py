"""Operators are in one style: implementations by device, a reference for each, imports that go one way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ruprompt_fast import ops

PACKAGE = Path(ops.__file__).parents[1]
OPERATORS = [path for path in (PACKAGE / "ops").glob("*.py") if not path.name.startswith("_")]
IMPLEMENTATIONS = sorted((PACKAGE / "ops").glob("c*/*.py"))


class WithoutTypes(ast.NodeTransformer):
    """Leaves out what is imported for annotations only."""

    def visit_If(self, node: ast.If) -> ast.If | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def imports(path: Path) -> set[str]:
    """What a module imports from the package when it runs, functions included, as ``module.name``."""
    found: set[str] = set()
    for node in ast.walk(WithoutTypes().visit(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("ruprompt_fast.") for name in found if name.startswith("ruprompt_fast.")}


def test_only_implementations_call_compiled_code() -> None:
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[:-1]
        names = imports(path)
        assert not any(name.startswith("kernels") for name in names) or room == ("ops", "cuda"), path
        assert "_C" not in names or room[:1] != ("ops",) or room == ("ops", "cpu"), path


@pytest.mark.parametrize("path", IMPLEMENTATIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_implementations_import_no_operator_that_dispatches_to_them(path: Path) -> None:
    for operator in OPERATORS:
        dispatches = any(name.startswith(f"ops.{path.parent.name}.{path.stem}.") for name in imports(operator))
        assert not dispatches or not any(name.startswith(f"ops.{operator.stem}.") for name in imports(path)), operator


def test_every_operator_has_a_reference() -> None:
    functions = {name for name in ops.__all__ if name.islower() and not name.endswith("_reference")}
    assert functions - {"check_errors", "release_memory", "kv_page_shapes", "token_major_page_shapes"} == {
        name.removesuffix("_reference") for name in ops.__all__ if name.endswith("_reference")
    }
