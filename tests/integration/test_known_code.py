"""A function's digest tells its code, and nothing else about it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from ruprompt_fast.integration.known_code import code_digest

CODE = """
def forward(self, x, scale=2, **kwargs):
    y = self.norm(x)
    if y is None:
        raise ValueError(f"no norm of {x}")
    return y * scale
"""
SAME = [
    'def forward(self, x: int, scale: float = 2, **kwargs: object) -> int:\n    """What it does."""',
    "def forward(\n    self,\n    x,\n    scale=2,  # a comment\n    **kwargs,\n):",
]
DIFFERENT = [
    ("scale=2", "scale=3"),
    ("self.norm", "self.norm2"),
    ("y * scale", "scale * y"),
    (", **kwargs", ""),
    ("x, scale", "x, *, scale"),
    ("y is None", "y is not None"),
    ("return y * scale", "return y * scale + 0"),
]


def function_of(code: str, folder: Path) -> object:
    path = folder / f"module_{abs(hash(code))}.py"
    path.write_text(code)
    module = ModuleType(path.stem)
    exec(compile(code, str(path), "exec"), vars(module))
    return module.forward


def test_how_it_is_written_does_not_count(tmp_path: Path) -> None:
    expected = code_digest(function_of(CODE, tmp_path))
    for head in SAME:
        code = CODE.replace("def forward(self, x, scale=2, **kwargs):", head).replace("no norm of", "there is none of")
        assert code_digest(function_of(code, tmp_path)) == expected


@pytest.mark.parametrize(("old", "new"), DIFFERENT)
def test_every_statement_counts(old: str, new: str, tmp_path: Path) -> None:
    assert code_digest(function_of(CODE.replace(old, new), tmp_path)) != code_digest(function_of(CODE, tmp_path))


def test_what_cannot_be_read_equals_nothing(tmp_path: Path) -> None:
    decorated = function_of("import functools\n@functools.lru_cache\ndef forward(x):\n    return x\n", tmp_path)
    for function in (torch.add, len, lambda x: x, decorated):
        assert code_digest(function) == ""
