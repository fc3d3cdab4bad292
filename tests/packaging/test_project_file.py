"""What pyproject.toml lists by hand agrees with the tree."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed(project: dict) -> None:
    inits = (ROOT / "ruprompt_fast").rglob("__init__.py")
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in inits}
    listed = project["tool"]["setuptools"]["packages"]
    assert listed == sorted(listed)
    assert set(listed) == packages | {"ruprompt_fast.kernels"}


def test_every_requirement_is_pinned(project: dict) -> None:
    extras = project["project"]["optional-dependencies"].values()
    requirements = [*project["project"]["dependencies"], *(name for extra in extras for name in extra)]
    names = {re.split(r"[<>=\[;]", requirement)[0].replace("_", "-") for requirement in requirements}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].replace("_", "-") for line in lines if "==" in line}
    assert names - {"ruprompt-fast"} <= pinned


def test_the_build_needs_no_torch(project: dict) -> None:
    assert {re.split(r"[<>=]", name)[0] for name in project["build-system"]["requires"]} == {"setuptools", "pybind11"}
    sources = [ROOT / "setup.py", *(ROOT / "csrc").glob("*/*")]
    included = re.compile(r"^\s*(import torch|from torch|#include\s+[<\"](torch|ATen|c10)/)", re.MULTILINE)
    assert not [path.name for path in sources if included.search(path.read_text(encoding="utf-8"))]


def test_kernels_package_is_empty() -> None:
    # At the root of a source tree on sys.path it comes before a package of Hugging Face of the same name.
    assert (ROOT / "kernels" / "__init__.py").read_text(encoding="utf-8") == ""
