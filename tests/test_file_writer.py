"""Whatever is written appears complete or not at all, and what cannot be written says why."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import no_room_after
from safetensors.torch import load_file

from ruprompt_fast.errors import CheckpointError, FileWriteError
from ruprompt_fast.file_writer import (
    append_all,
    checked_path,
    file_digest,
    is_stream,
    is_unfinished,
    make_folder,
    naming_write_errors,
    remove_unfinished,
    tensors_writer,
    text_writer,
    torch_writer,
    unfinished_folder,
    write_atomically,
    write_json,
    write_tensors,
    write_text,
    write_together,
)

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}


def half(temporary: Path) -> None:
    temporary.write_bytes(b"half")
    raise KeyboardInterrupt


class TestFiles:
    def test_content(self, tmp_path: Path) -> None:
        write_text(tmp_path / "text", "а\n")
        write_json(tmp_path / "json", {"а": [1]})
        write_tensors(tmp_path / "tensors", TENSORS)
        write_atomically(tmp_path / "tensor", torch_writer(TENSORS["a"]))
        assert (tmp_path / "text").read_bytes() == "а\n".encode()
        assert (tmp_path / "json").read_text(encoding="utf-8") == '{\n  "а": [\n    1\n  ]\n}\n'
        assert all(torch.equal(load_file(tmp_path / "tensors")[name], tensor) for name, tensor in TENSORS.items())
        assert torch.equal(torch.load(tmp_path / "tensor"), TENSORS["a"])

    @pytest.mark.parametrize("writer", [text_writer("x"), tensors_writer(TENSORS), torch_writer(TENSORS["a"])])
    def test_others_may_read_it_as_the_umask_says(self, tmp_path: Path, writer: Callable[[Path], Any]) -> None:
        before = os.umask(0o027)
        try:
            write_atomically(tmp_path / "file", writer)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640

    def test_an_interrupted_write_leaves_the_old_file(self, tmp_path: Path) -> None:
        write_text(tmp_path / "file", "old")
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "file", half)
        assert (tmp_path / "file").read_text() == "old"
        assert os.listdir(tmp_path) == ["file"]

    def test_no_file_changes_before_all_are_complete(self, tmp_path: Path) -> None:
        write_text(tmp_path / "first", "old")
        with pytest.raises(KeyboardInterrupt):
            write_together({tmp_path / "first": text_writer("new"), tmp_path / "second": half})
        assert (tmp_path / "first").read_text() == "old"
        assert os.listdir(tmp_path) == ["first"]

    @pytest.mark.parametrize(
        "writer",
        [text_writer("x" * 200), tensors_writer(TENSORS), torch_writer(TENSORS["a"]), lambda path: torch.save(1, path)],
    )
    def test_a_full_disk(self, tmp_path: Path, writer: Callable[[Path], Any]) -> None:
        write_text(tmp_path / "file", "old")
        with no_room_after(100), pytest.raises(FileWriteError, match="file: cannot be written: .*make room") as caught:
            write_atomically(tmp_path / "file", writer)
        assert isinstance(caught.value, OSError)
        assert (tmp_path / "file").read_text() == "old"
        assert os.listdir(tmp_path) == ["file"]

    @pytest.mark.parametrize("path", [3, None, b"x", "a\0b", "\ud800", "/", ""])
    def test_what_is_no_path(self, path: Any) -> None:
        with pytest.raises(FileWriteError, match="expected a path|a path cannot hold"):
            write_atomically(path, text_writer(""))

    def test_paths_of_a_caller(self) -> None:
        assert checked_path(Path("a")) == checked_path("a") == "a"


class TestFolders:
    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(FileWriteError, match="cannot be written: "):
            make_folder(tmp_path / "file" / "x")

    def test_it_is_gone_unless_it_was_renamed(self, tmp_path: Path) -> None:
        with unfinished_folder(tmp_path) as folder:
            (folder / "x").touch()
            folder.rename(tmp_path / "done")
        with pytest.raises(KeyboardInterrupt), unfinished_folder(tmp_path) as folder:
            half(folder / "x")
        assert is_unfinished(folder.name)
        assert os.listdir(tmp_path) == ["done"]
        assert os.listdir(tmp_path / "done") == ["x"]


class TestAppending:
    def test_all_or_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "lines"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            append_all(descriptor, b"one\n", 0, sync=True)
            with no_room_after(10), pytest.raises(OSError, match="File too large"):
                append_all(descriptor, b"x" * 100, 4)
            append_all(descriptor, b"two\n", 4)
        finally:
            os.close(descriptor)
        assert path.read_bytes() == b"one\ntwo\n"

    def test_a_pipe_takes_it_in_parts(self) -> None:
        reading, writing = os.pipe()
        append_all(writing, b"x" * 10, None)
        os.close(writing)
        assert os.read(reading, 100) == b"x" * 10
        os.close(reading)


class TestNamedErrors:
    def test_what_has_a_name_keeps_it(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError), naming_write_errors(tmp_path):
            raise CheckpointError("no")

    def test_errors_of_a_program_are_its_own(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="no"), naming_write_errors(tmp_path):
            raise RuntimeError("no")


def test_what_a_killed_run_leaves_is_removed(tmp_path: Path) -> None:
    kept = ["complete", ".0123.tmp", f".{'0' * 32}.tmp.txt"]
    for name in [*kept, f".{'0' * 32}.tmp"]:
        (tmp_path / name).touch()
    (tmp_path / f".{'1' * 32}.tmp").symlink_to("complete")
    remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, f".{'1' * 32}.tmp"])


def test_streams(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    assert all(map(is_stream, [tmp_path / "pipe", Path("/dev/null"), Path("/dev/stdout"), Path("/dev/fd/3")]))
    assert not any(map(is_stream, [tmp_path, tmp_path / "file", tmp_path / "nothing"]))


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
