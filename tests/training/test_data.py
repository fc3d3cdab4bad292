"""Rows from files and data sets, and what is said about broken ones."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ruprompt_fast.errors import MissingDependencyError, MissingFieldError, SettingError, TrainingDataError
from ruprompt_fast.training.data import BadRow, load_rows

COLUMNS = ("question", "answer")
ROWS = [{"question": "Где мяч?", "answer": "в «саду»,\nу ворот"}, {"question": 'Кто "он"?', "answer": "кот"}]

Writer = Callable[[Path, list[dict]], Path]


def write_jsonl(folder: Path, rows: list[dict]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def write_table(folder: Path, rows: list[dict], suffix: str) -> Path:
    path = folder / f"rows{suffix}"
    separator = "\t" if suffix == ".tsv" else ","

    def quoted(value: object) -> str:
        return '"' + str(value).replace('"', '""') + '"'

    lines = [separator.join(rows[0]), *(separator.join(map(quoted, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_parquet(folder: Path, rows: list[dict]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = folder / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


WRITERS: dict[str, Writer] = {
    "jsonl": write_jsonl,
    "csv": lambda folder, rows: write_table(folder, rows, ".csv"),
    "tsv": lambda folder, rows: write_table(folder, rows, ".tsv"),
    "parquet": write_parquet,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_format_gives_the_same_rows(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, [{"id": str(index), **row} for index, row in enumerate(ROWS)])
    loaded = load_rows(str(path), COLUMNS)
    assert loaded.rows == ROWS
    assert loaded.bad == []
    assert loaded.source == str(path)
    assert load_rows(str(path), COLUMNS, limit=1).rows == ROWS[:1]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_numbers_become_the_text_that_json_writes(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, [{"text": "а", "label": 1}, {"text": "б", "label": 0}])
    assert [row["label"] for row in load_rows(str(path), ["label"]).rows] == ["1", "0"]


def test_a_folder_is_a_data_set_with_splits(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write_jsonl(tmp_path, ROWS).rename(tmp_path / "train.jsonl")
    write_jsonl(tmp_path, ROWS[1:]).rename(tmp_path / "test.jsonl")
    assert load_rows(str(tmp_path), COLUMNS).rows == ROWS
    assert load_rows(str(tmp_path), COLUMNS, split="test").rows == ROWS[1:]
    with pytest.raises(TrainingDataError, match="'dev'.*train"):
        load_rows(str(tmp_path), COLUMNS, split="dev")


def test_a_data_set_that_is_a_script_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("raise SystemExit('this must not run')\n", encoding="utf-8")
    with pytest.raises(TrainingDataError, match="scripted"):
        load_rows(str(folder), COLUMNS)


def test_a_hub_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(TrainingDataError, match="nobody/nothing.*data set"):
        load_rows("nobody/nothing", COLUMNS)


BROKEN_JSONL = b"""\xef\xbb\xbf{"question": "a", "answer": "b"}
{"question": "a", "answer": "b"

["a", "b"]
{"question": "a"}
{"question": "a", "answer": null}
{"question": "a", "answer": ["b"]}
{"question": "a", "answer": "  "}
{"question": "a", "answer": "\xff"}
{"question": "a", "answer": "\\ud800"}
{"question": "a", "answer": NaN}
{"question": "c", "answer": "d"}
"""


def test_broken_jsonl_rows_by_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(BROKEN_JSONL)
    with caplog.at_level(logging.WARNING):
        loaded = load_rows(str(path), COLUMNS, on_bad_row="skip")
    assert loaded.rows == [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]
    expected = {
        2: "not JSON",
        4: "JSON object; found list",
        5: "no value in the column 'answer'",
        6: "no value in the column 'answer'",
        7: "string in the column 'answer'; found list",
        8: "empty value in the column 'answer'",
        9: "not UTF-8",
        10: "not UTF-8",
        11: "string in the column 'answer'; found float",
    }
    assert [row.line for row in loaded.bad] == list(expected)
    for row, reason in zip(loaded.bad, expected.values(), strict=True):
        assert reason in row.reason
    assert f"skipped 9 of 11 rows: {path}:2 " in caplog.text
    assert "and 6 more" in caplog.text


def test_a_broken_row_fails_with_file_line_reason_and_count(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(BROKEN_JSONL)
    with pytest.raises(TrainingDataError) as caught:
        load_rows(str(path), COLUMNS)
    message = str(caught.value)
    assert f"{path}:2 is not JSON" in message
    assert f"{path}:5 has no value in the column 'answer'" in message
    assert f"{path}:6" not in message
    assert "9 of 11 rows" in message
    assert "on_bad_row=skip" in message


BROKEN_CSV = b'question,answer\na,b\na\n"two\nlines",b,c\na,\n\na,\xff\na,"b"c\nc,"d\ne"\n"never closed,d\ne,f\n'


def test_broken_csv_rows_by_the_line_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "broken.csv"
    path.write_bytes(BROKEN_CSV)
    loaded = load_rows(str(path), COLUMNS, on_bad_row="skip")
    assert loaded.rows == [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d\ne"}]
    assert loaded.bad[:4] == [
        BadRow(3, "must have 2 values, one for each column; found 1"),
        BadRow(4, "must have 2 values, one for each column; found 3"),
        BadRow(6, "has an empty value in the column 'answer'"),
        BadRow(8, "has text in the column 'answer' that is not UTF-8"),
    ]
    assert [row.line for row in loaded.bad[4:]] == [9, 12]
    assert all("is not CSV" in row.reason for row in loaded.bad[4:])


def test_broken_parquet_rows_by_number(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, [ROWS[0], {"question": "a", "answer": None}, ROWS[1]])
    loaded = load_rows(str(path), COLUMNS, on_bad_row="skip")
    assert loaded.rows == ROWS
    assert loaded.bad == [BadRow(2, "has no value in the column 'answer'")]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_missing_column_names_those_that_are_there(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    with pytest.raises(MissingFieldError) as caught:
        load_rows(str(path), ["question", "anser"], on_bad_row="skip")
    message = str(caught.value)
    assert str(path) in message
    assert "no 'anser'. Did you mean 'answer'?" in message
    assert "['question', 'answer']" in message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jsonl", b"", "found none"),
        ("empty.jsonl", b"\n\n", "found none"),
        ("empty.csv", b"", "found none"),
        ("empty.csv", b"question,answer\n", "found none"),
        ("twice.csv", b"question,answer,answer\na,b,c\n", "'answer'"),
        ("head.tsv", b'question\t"answer"x\n', ":1: expected the names of the columns"),
        ("broken.parquet", b"PAR1 but no more", "broken.parquet"),
        ("rows.xlsx", b"PK", "suffix '.xlsx'"),
        ("rows", b"", r"\.parquet"),
    ],
)
def test_files_without_rows(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TrainingDataError, match=reason):
        load_rows(str(path), COLUMNS)


def test_a_file_of_broken_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "broken.csv"
    path.write_text("question,answer\na\n", encoding="utf-8")
    with pytest.raises(TrainingDataError, match="only rows that cannot be used"):
        load_rows(str(path), COLUMNS, on_bad_row="skip")


@pytest.mark.parametrize("source", ["nowhere/rows.jsonl", "rows.csv", "../rows.parquet", "/nowhere/at/all", "", "a b"])
def test_a_source_that_is_not_there(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingDataError, match="expected a file"):
        load_rows(source, COLUMNS)


def test_wrong_settings(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, ROWS)
    with pytest.raises(SettingError, match="fail, skip; found 'drop'"):
        load_rows(str(path), COLUMNS, on_bad_row="drop")
    with pytest.raises(SettingError, match="at least 1"):
        load_rows(str(path), COLUMNS, limit=0)


def test_without_datasets_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path, ROWS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"ruprompt-fast\[train\]"):
        load_rows(str(path), COLUMNS)
    assert load_rows(str(write_jsonl(tmp_path, ROWS)), COLUMNS).rows == ROWS
