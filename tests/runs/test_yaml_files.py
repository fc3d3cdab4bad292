"""Configurations that somebody made to do harm are refused before they are expanded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ruprompt_fast.errors import MAX_MESSAGE_CHARS, ConfigError
from ruprompt_fast.runs.config import TrainConfig
from ruprompt_fast.runs.parsing import read_config
from ruprompt_fast.runs.yaml_files import read_yaml


def levels(first: str, following: Callable[[int], str], count: int = 40) -> str:
    return "\n".join([f"a0: &a0 {first}", *(f"a{i}: &a{i} {following(i - 1)}" for i in range(1, count))])


HOSTILE = {
    "aliases of aliases": (
        levels("[x, x]", lambda i: f"[*a{i}, *a{i}, *a{i}]"),
        "all aliases written out",
    ),
    "merged mappings": (
        levels("{k: v}", lambda i: f"{{<<: [*a{i}, *a{i}]}}"),
        "all aliases written out",
    ),
    "a long text": (levels("x" * 100_000, lambda _: "[*a0, *a0]"), "all aliases written out"),
    "an alias of what it is in": ("a: &a [*a]", "an anchor before the alias"),
    "an alias of nothing": ("a: *b", "an anchor before the alias"),
    "nested lists": ("[" * 60_000, "at most 32 levels"),
    "nested mappings": ("{a: " * 30_000, "at most 32 levels"),
    "indentation": ("\n".join(" " * i + "a:" for i in range(40)), "at most 32 levels"),
    "an integer of 5,000 digits": ("seed: " + "9" * 5_000, "expected YAML"),
    "a date that is none": ("output: 2001-99-99", "expected YAML"),
    "code": ("a: !!python/object/apply:os.system ['touch /tmp/x']", "expected YAML"),
    "a list as a key": ("? [a]\n: b", "expected YAML"),
    "half a character": ('output: "\\ud800"', "half a character"),
    "a null byte": ("a: \0", "expected YAML"),
    "a long file": ("#" * 200_000, "at most 131072 bytes"),
}


@pytest.mark.parametrize(("text", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    for read in (read_yaml, lambda path: read_config(TrainConfig, path)):
        with pytest.raises(ConfigError, match=reason) as caught:
            read(path)
        assert len(str(caught.value)) <= MAX_MESSAGE_CHARS


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="expected a regular file"):
        read_config(TrainConfig, tmp_path / "config.yaml")


def test_ordinary_aliases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("base: &base {a: 1, b: [x, y]}\nother: {<<: *base, a: 2}\nlist: [*base, *base]\n")
    base = {"a": 1, "b": ["x", "y"]}
    assert read_yaml(path) == {"base": base, "other": {**base, "a": 2}, "list": [base, base]}
