"""The source distribution and the wheel made of it: built in isolation, complete, importable from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_BEHIND = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")

# Imports the installed package from a foreign folder, and uses the extension and what is shipped beside the modules.
SMOKE_TEST = """
import importlib.metadata, importlib.resources, sys
import ruprompt_fast, torch
from ruprompt_fast.ops import splice
from ruprompt_fast import kernels

files = importlib.resources.files(ruprompt_fast)
assert str(files).startswith(sys.argv[1]), files
assert kernels.__file__.startswith(sys.argv[1]), kernels.__file__
tokens, prompts = torch.zeros(3, 4), torch.ones(2, 4)
assert splice(torch.tensor([1, 8]), tokens, prompts, 7).tolist() == [[0.0] * 4, [1.0] * 4]
for name in ("py.typed", "_C.pyi", "bundled/model/tokenizer.json", "bundled/README.md", "tasks/detoxification.yaml"):
    assert files.joinpath(name).is_file(), name
outputs = ruprompt_fast.bundled.load().generate(["Без труда", "Я помню"], prompt=["proverb", "verse"], max_new_tokens=5)
assert all(output.text for output in outputs)
scripts = importlib.metadata.distribution("ruprompt-fast").entry_points.select(group="console_scripts")
assert callable(scripts["ruprompt-fast"].load())
"""


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> None:
    result = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_BEHIND)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, folder / "source")
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built as pip builds it for a user: from the source distribution, in an environment without torch."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", sdist.parent, sdist)
    (path,) = sdist.parent.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_source_distribution_is_complete(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tops = {
        "csrc/bindings/module.cc",
        "csrc/cpu/dtype.h",
        "kernels/splice.py",
        "LICENSE",
        "Makefile",
        "constraints.txt",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/benchmarks.md",
    }
    assert tops <= names
    assert {f"tests/packaging/{Path(__file__).name}", "bench/bench_splice.py"} <= names
    assert not {name for name in names if name.endswith((".so", ".pyc"))}


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        extension = archive.read(next(name for name in names if name.endswith(".so")))
    package = [name for name in names if ".dist-info/" not in name]
    assert all(name.startswith("ruprompt_fast/") for name in package)
    assert not [name for name in package if "__pycache__" in name or name.endswith((".cc", ".h"))]
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ruprompt_fast").rglob("*.py")}
    data = {str(path.relative_to(ROOT)) for path in (ROOT / "ruprompt_fast" / "tasks").iterdir()}
    assert data <= set(package)
    kernels = {f"ruprompt_fast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert {name for name in package if name.endswith(".py")} == modules | kernels
    assert b"libtorch" not in extension
    assert b"libc10" not in extension
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_imports_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel)
    run(sys.executable, "-c", SMOKE_TEST, site, PYTHONPATH=str(site), cwd=tmp_path)
