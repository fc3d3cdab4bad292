"""Rows from files and data sets, and what is said about broken ones."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from ruprompt_fast.errors import MissingDependencyError, MissingFieldError, SettingError, TrainingDataError
from ruprompt_fast.runs.data.row_format import RowFormat
from ruprompt_fast.runs.data.rows import BadRow, load_rows

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
        return '"' + str(value).replace('"', '""') + '"' if suffix == ".csv" else str(value).replace("\n", " ")

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
    rows = ROWS
    if path.suffix == ".tsv":  # whose values cannot hold line ends
        rows = [{name: value.replace("\n", " ") for name, value in row.items()} for row in ROWS]
    loaded = load_rows(str(path), COLUMNS)
    assert loaded.rows == rows
    assert loaded.bad == []
    assert loaded.source == str(path)
    assert load_rows(str(path), COLUMNS, limit=1).rows == rows[:1]


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
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
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
# Each broken row is one line, so that what a quotation mark would swallow is read as rows of its own.


def test_broken_csv_rows_by_the_line_they_begin_on(tmp_path: Path) -> None:
    path = tmp_path / "broken.csv"
    path.write_bytes(BROKEN_CSV)
    loaded = load_rows(str(path), COLUMNS, on_bad_row="skip")
    assert loaded.rows == [
        {"question": "a", "answer": "b"},
        {"question": "c", "answer": "d\ne"},
        {"question": "e", "answer": "f"},
    ]
    assert loaded.bad == [
        BadRow(3, "must have 2 values, one for each column; found 1"),
        BadRow(4, "must have 2 values, one for each column; found 3"),
        BadRow(5, "must have 2 values, one for each column; found 3"),
        BadRow(6, "has an empty value in the column 'answer'"),
        BadRow(8, "has text in the column 'answer' that is not UTF-8"),
        BadRow(9, "has text after the quotation mark that closes value 2; double marks in a value"),
        BadRow(12, "opens a quotation mark before value 1 that is never closed"),
    ]


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
        ("head.csv", b'question,"answer"x\n', ":1: expected the names of the columns"),
        ("utf16.csv", "question,answer\na,b\n".encode("utf-16-le"), "null byte at byte 2.*encoding=utf-16-le"),
        ("utf16.tsv", "вопрос\tответ\nа\tб\n".encode("utf-16-be"), "null byte"),
        ("cut.csv", "\ufeffquestion,answer\na,b\n".encode("utf-16-le")[:-1], "the mark at the beginning"),
        ("zeros.jsonl", bytes(4096), "null byte at byte 1"),
        ("wide.csv", b",".join(b"%d" % number for number in range(100_000)) + b"\n", "found none"),
        ("twice.csv", b",".join(b"%d" % (number // 2) for number in range(100_000)) + b"\n", "for each column"),
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


def test_a_tsv_file_has_a_row_on_each_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "marks.tsv"
    path.write_text('question\tanswer\n"a\t1\nb\t2\nc"\t3\n"d"\t4\n', encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        rows = load_rows(str(path), COLUMNS).rows
    assert [tuple(row.values()) for row in rows] == [('"a', "1"), ("b", "2"), ('c"', "3"), ('"d"', "4")]
    assert "1 rows have values in quotation marks, which stay; quoting=standard" in caplog.text
    loaded = load_rows(str(path), COLUMNS, on_bad_row="skip", format=RowFormat(quoting="standard"))
    assert [tuple(row.values()) for row in loaded.rows] == [("a\t1\nb\t2\nc", "3"), ("d", "4")]


@pytest.mark.parametrize("num_strays", [1, 2, 7])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("quoting", [None, "standard"])
def test_stray_quotation_marks_lose_no_row(num_strays: int, suffix: str, quoting: Any, tmp_path: Path) -> None:
    separator = "," if suffix == ".csv" else "\t"
    rng = random.Random(num_strays)
    strays = rng.sample(range(100, 19_900, 97), num_strays)
    lines = [f"вопрос {number}{separator}ответ {number}" for number in range(20_000)]
    for number in strays:
        question, answer = lines[number].split(separator)
        lines[number] = rng.choice([f'"{question}{separator}{answer}', f'{question}{separator}"{answer}'])
    path = tmp_path / f"stray{suffix}"
    path.write_text("\n".join([f"question{separator}answer", *lines]) + "\n", encoding="utf-8")
    loaded = load_rows(str(path), COLUMNS, on_bad_row="skip", format=RowFormat(quoting=quoting))
    assert len(loaded.rows) + len(loaded.bad) == 20_000
    if suffix == ".tsv" and quoting is None:
        assert loaded.bad == []
        assert [separator.join(row.values()) for row in loaded.rows] == lines
    else:
        assert [row.line for row in loaded.bad] == sorted(number + 2 for number in strays)


def test_marks_that_close_each_other_far_apart_swallow_no_rows(tmp_path: Path) -> None:
    """The rows between two stray marks are a valid value, but not one that anybody wrote."""
    lines = [f"q{number},a{number}" for number in range(3_000)]
    for first, last in ((10, 30), (100, 2_900)):
        lines[first] = f'q,"a{first}'
        lines[last] = f'q{last},a"'
    path = tmp_path / "far.csv"
    path.write_text("\n".join(["question,answer", *lines]), encoding="utf-8")
    loaded = load_rows(str(path), COLUMNS, on_bad_row="skip")
    assert len(loaded.rows) + len(loaded.bad) == 3_000
    assert [row.line for row in loaded.bad] == [12, 102]
    assert "look like rows" in loaded.bad[0].reason
    assert "not closed within 1000 lines" in loaded.bad[1].reason
    with pytest.raises(TrainingDataError, match=r"far\.csv:12 .*look like rows"):
        load_rows(str(path), COLUMNS)


def test_long_values_are_read(tmp_path: Path) -> None:
    text = "слово " * 40_000
    poem = "\n".join(f'строка "{number}", и ещё' for number in range(900))
    path = write_table(tmp_path, [{"question": text, "answer": "б"}, {"question": "а", "answer": poem}], ".csv")
    assert load_rows(str(path), COLUMNS).rows == [{"question": text, "answer": "б"}, {"question": "а", "answer": poem}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_encodings_with_a_mark_are_found(encoding: str, ends: str, tmp_path: Path) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    for name, lines in (
        ("rows.csv", ["question,answer", 'что,"это, да"']),
        ("rows.tsv", ["question\tanswer", "что\tэто, да"]),
        ("rows.jsonl", ["", '{"question": "что", "answer": "это, да"}']),
    ):
        if name == "rows.jsonl" and ends == "\r":
            continue
        (tmp_path / name).write_bytes((mark + ends.join(lines) + ends).encode(encoding))
        assert load_rows(str(tmp_path / name), COLUMNS).rows == [{"question": "что", "answer": "это, да"}]


def test_other_encodings_and_delimiters_are_named(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes("question;answer\nчто;это\n".encode("cp1251"))
    with pytest.raises(MissingFieldError, match="separated by ';': set delimiter"):
        load_rows(str(path), COLUMNS, on_bad_row="skip")
    with pytest.raises(TrainingDataError, match=r"excel\.csv:2 .*not UTF-8"):
        load_rows(str(path), COLUMNS, format=RowFormat(delimiter=";"))
    rows = load_rows(str(path), COLUMNS, format=RowFormat(delimiter=";", encoding="cp1251")).rows
    assert rows == [{"question": "что", "answer": "это"}]
    path.write_bytes(b"question;answer\n\x98;a\n")
    with pytest.raises(TrainingDataError, match=r"excel\.csv:1 or one of the next lines is not cp1251"):
        load_rows(str(path), COLUMNS, format=RowFormat(delimiter=";", encoding="cp1251"))


@pytest.mark.parametrize(
    "settings",
    [
        {"delimiter": ""},
        {"delimiter": '"'},
        {"delimiter": "ab"},
        {"delimiter": 5},
        {"quoting": "maybe"},
        {"encoding": "utf-9"},
        {"encoding": "hex"},
        {"encoding": "\0"},
        {"encoding": 5},
        {"encoding": "x" * 10**6},
    ],
)
def test_formats_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"^{next(iter(settings))} must be") as caught:
        RowFormat(**settings)
    assert len(str(caught.value)) < 2000


HOSTILE_JSON = [
    b'{"question": ' + b"[" * 100_000,
    b'{"question": "a", "answer": ' + b"9" * 100_000 + b"}",
    b'{"question": "a", "answer": 1e999}',
    b'{"question": "a\x00", "answer": "b"}',
    b'{"question": "a", "answer": "\\udfff"}',
    b'{"question": "a", "question": "b", "answer": "c"}',
    b'{"question": {"deep": [1]}, "answer": "c"}',
    b'{"question": true, "answer": []}',
    b'"' + b"x" * 1_000_000,
    b"\xed\xa0\x80",
]


def test_hostile_lines_break_their_own_row_only(tmp_path: Path) -> None:
    good = b'{"question": "a", "answer": "b"}'
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(b"\n".join([good, *(line + b"\n" + good for line in HOSTILE_JSON)]))
    loaded = load_rows(str(path), COLUMNS, on_bad_row="skip")
    assert len(loaded.rows) == len(HOSTILE_JSON) + 1
    assert [row.line for row in loaded.bad] == list(range(2, 2 * len(HOSTILE_JSON) + 1, 2))
    with pytest.raises(TrainingDataError) as caught:
        load_rows(str(path), COLUMNS)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"endless{suffix}"
    path.write_bytes(b"question,answer\n")
    os.truncate(path, 3 * 2**30)  # a hole, which reads as null bytes
    with pytest.raises(TrainingDataError, match=r"endless.*:2 is longer than \d+ characters"):
        load_rows(str(path), COLUMNS, on_bad_row="skip")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("pipe.jsonl", "zero.csv"):
        with pytest.raises(TrainingDataError, match="found a pipe or a device"):
            load_rows(str(tmp_path / name), COLUMNS)
    for source in ("a\0b.jsonl", "x" * 5000 + ".csv", "/".join(["x" * 200] * 30) + ".tsv", "\ud800.jsonl", None, 5):
        with pytest.raises(TrainingDataError) as caught:
            load_rows(source, COLUMNS)
        assert len(str(caught.value)) < 2000


def test_a_folder_loses_no_row_either(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.csv").write_text('question,answer\na,"b\nc,d\ne,f\n', encoding="utf-8")
    loaded = load_rows(str(tmp_path), COLUMNS, on_bad_row="skip")
    assert [row["question"] for row in loaded.rows] == ["c", "e"]
    assert [row.line for row in loaded.bad] == [2]


def test_a_table_of_many_columns_takes_no_time(tmp_path: Path) -> None:
    names = [f"column {number}" for number in range(100_000)]
    path = tmp_path / "wide.tsv"
    path.write_text("\n".join("\t".join(names) for _ in range(3)), encoding="utf-8")
    started = time.process_time()
    assert len(load_rows(str(path), [names[-1]]).rows) == 2
    with pytest.raises(MissingFieldError) as caught:
        load_rows(str(path), ["column  7"])
    assert time.process_time() - started < 60
    assert len(str(caught.value)) < 2000
