"""The file of results: what was written stays, what was half written goes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from full_disk import no_room_after

from ruprompt_fast.errors import CheckpointError, FileWriteError
from ruprompt_fast.runs.sweep_store import CellResult, open_store

FIRST = CellResult("a1", {"length": 5, "init": None}, "<P*5>{text}", "finished", {"loss": 2.5}, 1.25)
SECOND = CellResult("b2", {"length": 1, "init": "vocab"}, "<P*1>{text}", "diverged", {}, 0.5, "потеря: NaN")


def test_results_come_back(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with open_store(path) as store:
        assert store.results == {}
        store.append(FIRST)
        store.append(SECOND)
    with open_store(path) as store:
        assert store.results == {"a1": FIRST, "b2": SECOND}


@pytest.mark.parametrize("size", [1, 20, -1])
def test_a_half_written_line_is_cut(tmp_path: Path, size: int) -> None:
    path = tmp_path / "results.jsonl"
    with open_store(path) as store:
        store.append(FIRST)
    complete = path.read_bytes()
    path.write_bytes(complete + complete[:size])
    with open_store(path) as store:
        assert list(store.results) == ["a1"]
        store.append(SECOND)
    assert path.read_bytes().startswith(complete)
    with open_store(path) as store:
        assert store.results == {"a1": FIRST, "b2": SECOND}


def test_the_later_of_two_results_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with open_store(path) as store:
        store.append(FIRST)
        store.append(replace(FIRST, seconds=9.0))
    with open_store(path) as store:
        assert store.results["a1"].seconds == 9.0


RESULT = asdict(FIRST)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "[" * 100_000,
        json.dumps({"digest": "a1"}),
        json.dumps({**RESULT, "digest": ["a1"]}),
        json.dumps({**RESULT, "status": "lost"}),
        json.dumps({**RESULT, "metrics": {"loss": "2.5"}}),
    ],
)
def test_another_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    with open_store(path) as store:
        store.append(FIRST)
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"results\.jsonl, line 2"), open_store(path):
        pass


def test_a_whole_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with open_store(path) as store:
        store.append(FIRST)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with open_store(path) as store:
        assert store.results == {"a1": FIRST}
        store.append(SECOND)
    assert path.read_bytes().startswith(whole)
    with open_store(path) as store:
        assert store.results == {"a1": FIRST, "b2": SECOND}


def test_a_full_disk_leaves_the_results_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with open_store(path) as store:
        store.append(FIRST)
        whole = path.read_bytes()
        with no_room_after(len(whole) + 30), pytest.raises(FileWriteError, match=r"results\.jsonl: cannot be written"):
            store.append(SECOND)
        assert path.read_bytes() == whole
        store.append(SECOND)
    with open_store(path) as store:
        assert store.results == {"a1": FIRST, "b2": SECOND}
