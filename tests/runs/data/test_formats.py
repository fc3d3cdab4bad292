"""Text, JSON and compressed files as rows, and what hostile ones come to."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest

from ruprompt_fast.errors import MissingDependencyError, MissingFieldError, TrainingDataError
from ruprompt_fast.runs.data.compressed import FREE_BYTES
from ruprompt_fast.runs.data.row_format import RowFormat
from ruprompt_fast.runs.data.rows import load_rows

ROWS = [{"question": "Где мяч?", "answer": "в «саду»"}, {"question": "Кто там?", "answer": "кот"}]
COLUMNS = ("question", "answer")

FILES = {
    ".jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    ".json": json.dumps(ROWS, ensure_ascii=False, indent=2),
    ".csv": "question,answer\n" + "".join(",".join(row.values()) + "\n" for row in ROWS),
    ".tsv": "question\tanswer\n" + "".join("\t".join(row.values()) + "\n" for row in ROWS),
}


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("suffix", FILES)
def test_every_format_compressed_or_not(suffix: str, pack: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}{pack}"
    path.write_bytes(PACKERS[pack](FILES[suffix].encode()))
    assert load_rows(str(path), COLUMNS).rows == ROWS


def test_compressed_files_of_several_parts(tmp_path: Path) -> None:
    first, second = FILES[".jsonl"].encode().splitlines(keepends=True)
    for suffix, pack in PACKERS.items():
        path = tmp_path / f"rows.jsonl{suffix}"
        path.write_bytes(pack(first) + pack(second))
        assert load_rows(str(path), COLUMNS).rows == ROWS
    (tmp_path / "rows.jsonl.xz").write_bytes(lzma.compress(first) + b"\0" * 8 + lzma.compress(second))
    assert load_rows(str(tmp_path / "rows.jsonl.xz"), COLUMNS).rows == ROWS


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "ROWS.CSV.GZ"
    path.write_bytes(gzip.compress(FILES[".csv"].encode()))
    assert load_rows(str(path), COLUMNS).rows == ROWS


def test_a_folder_of_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(FILES[".jsonl"].encode()))
    assert load_rows(str(tmp_path), COLUMNS).rows == ROWS


class TestText:
    def test_a_text_on_each_line(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.txt"
        path.write_bytes(' раз \r\n\n"два", {три}\nчетыре'.encode())
        assert load_rows(str(path), ["text"]).rows == [{"text": " раз "}, {"text": '"два", {три}'}, {"text": "четыре"}]

    def test_the_only_column_is_the_text(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.txt"
        path.write_text("раз\n", encoding="utf-8")
        assert load_rows(str(path), ["toxic_comment"]).rows == [{"toxic_comment": "раз"}]
        with pytest.raises(MissingFieldError, match=r"found \['text'\]. There is no 'answer'"):
            load_rows(str(path), ["text", "answer"])

    def test_encodings(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.txt"
        path.write_bytes("раз\nдва\n".encode("cp1251"))
        found = load_rows(str(path), ["text"], format=RowFormat(encoding="cp1251"))
        assert [row["text"] for row in found.rows] == ["раз", "два"]
        path.write_bytes("раз\n".encode() + b"\xff\n")
        with pytest.raises(TrainingDataError, match=r"rows.txt:2 is not UTF-8 \(byte 1"):
            load_rows(str(path), ["text"])


class TestJson:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"text": "а"}', r"expected a list of JSON objects; found '\{"),
            ("", "expected a list of JSON objects; found ''"),
            ('[{"text": "а"}\n,\n{"text": "б]', r"rows.json:3 and what is after it is not JSON"),
            ('[{"text": "а"}\n{"text": "б"}]', "rows.json:2: expected a comma"),
            ('[{"text": "а"}', "expected a comma, or the end of the list"),
            ('[{"text": "а"}] x', "nothing after the list"),
            ("[]", "found none"),
            ("[" * 100_000, "not JSON"),
            ('[{"text": ' + "9" * 5000 + "}]", "not JSON"),
        ],
    )
    def test_what_is_no_list_of_objects(self, content: str, message: str, tmp_path: Path) -> None:
        path = tmp_path / "rows.json"
        path.write_text(content, encoding="utf-8")
        with pytest.raises(TrainingDataError, match=message):
            load_rows(str(path), ["text"])

    def test_broken_rows_by_the_line_they_begin_on(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.json"
        path.write_text('[\n{"text": "а"},\n3,\n{"text": 1,\n "text": 2},\n{"txt": ""}]', encoding="utf-8")
        found = load_rows(str(path), ["text"], on_bad_row="skip")
        assert found.rows == [{"text": "а"}]
        assert [(row.line, row.reason) for row in found.bad] == [
            (3, "must be a JSON object; found int"),
            (4, "is no row (a key appears twice in an object)"),
            (6, "has no value in the column 'text'"),
        ]


class TestHostile:
    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
    def test_what_is_made_to_fill_the_memory(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"rows.jsonl{suffix}"
        block = b" " * (2**20 - 1) + b"\n"
        # The whole of it in memory would be what the bound is for.
        packer = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(suffix, pyarrow_zstd)
        with packer(path, "wb") as file:
            for _ in range(FREE_BYTES // len(block) * 2):
                file.write(block)
        tracemalloc.start()
        with pytest.raises(TrainingDataError, match="made to fill the memory"):
            load_rows(str(path), ["text"])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < FREE_BYTES

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
    def test_a_line_without_an_end(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"rows.txt{suffix}"
        path.write_bytes(PACKERS[suffix](b"x" * (FREE_BYTES + 2)))
        with pytest.raises(TrainingDataError):
            load_rows(str(path), ["text"])

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
    def test_damaged_files(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"rows.jsonl{suffix}"
        whole = PACKERS[suffix]("".join(f'{{"text": "строка {index}"}}\n' for index in range(999)).encode())
        for content in (whole[: len(whole) // 2], whole[:3], b"", b"not compressed at all", whole[:40] + b"\xff" * 40):
            path.write_bytes(content)
            with pytest.raises(TrainingDataError, match=r"rows.jsonl"):
                load_rows(str(path), ["text"])

    def test_an_xz_file_that_asks_for_much_memory(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl.xz"
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**30, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3}]
        path.write_bytes(lzma.compress(b"{}\n", filters=filters))
        with pytest.raises(TrainingDataError, match="cannot be read"):
            load_rows(str(path), ["text"])


def pyarrow_zstd(path: Path, _: str) -> pyarrow.NativeFile:
    return pyarrow.output_stream(str(path), compression="zstd")


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl.zst").write_bytes(zstd(b"{}\n"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"ruprompt-fast\[train\]"):
        load_rows(str(tmp_path / "rows.jsonl.zst"), ["text"])
