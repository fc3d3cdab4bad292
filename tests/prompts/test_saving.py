"""A save loses no file: it removes what it wrote itself, writes over no link and no device, and fails as a whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from full_disk import no_room_after
from prompts.hostile_files import GOOD, write_files
from prompts.tiny import tiny_model, tiny_tokenizer

from ruprompt_fast.errors import FileWriteError, PromptFileError, PromptFolderError
from ruprompt_fast.prompts import Prompt, PromptEnsemble, PromptFormat, TensorPromptProvider


def make_ensemble() -> PromptEnsemble:
    ensemble = PromptEnsemble.of("<P*2>{text}", lambda seed: TensorPromptProvider(seed=seed), seeds=range(2))
    ensemble.initialize(tiny_model(), tiny_tokenizer())
    return ensemble


def make_prompt(seed: int = 0, template: str = "<P*2>{text}") -> Prompt:
    prompt = Prompt(PromptFormat(template), TensorPromptProvider(seed=seed))
    prompt.initialize(tiny_model(), tiny_tokenizer())
    return prompt


@pytest.fixture
def prompt() -> Prompt:
    return make_prompt()


@pytest.fixture
def ensemble() -> PromptEnsemble:
    return make_ensemble()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def index(folder: Path, *members: str) -> None:
    (folder / "ensemble.json").write_text(str({"members": list(members)}).replace("'", '"'))


class TestEnsembleRemovesOnlyItsOwn:
    @pytest.mark.parametrize("own", [".git/0", "photos/0", "members/photo", "members/00", "members-0/0", "Members/0"])
    def test_folders_of_the_users(self, ensemble: PromptEnsemble, tmp_path: Path, own: str) -> None:
        write_files(tmp_path / own, {"prompt.json": b"{}", "prompt_provider.bin": b""})
        write_files(tmp_path / "more", {"x": b"dear"})
        index(tmp_path, own)
        before = names(tmp_path)
        ensemble.save_pretrained(tmp_path)
        assert set(before) <= set(names(tmp_path))
        assert len(PromptEnsemble.from_pretrained(tmp_path)) == 2

    @pytest.mark.parametrize(
        "extra", ["members/notes.txt", "members/0/photo.jpg", "members/0/more/x", "members/2/x", "members/0/.hidden"]
    )
    def test_files_among_the_members(self, ensemble: PromptEnsemble, tmp_path: Path, extra: str) -> None:
        ensemble.save_pretrained(tmp_path)
        write_files(tmp_path, {extra: b"dear"})
        before = names(tmp_path)
        ensemble.save_pretrained(tmp_path)
        assert set(before) <= set(names(tmp_path))

    @pytest.mark.parametrize("place", ["members", "members/0", "members/0/prompt.json"])
    def test_links(self, ensemble: PromptEnsemble, tmp_path: Path, place: str) -> None:
        folder = tmp_path / "ensemble"
        ensemble.save_pretrained(folder)
        target = tmp_path / "target"
        (folder / place).rename(target)
        (folder / place).symlink_to(target)
        before = names(tmp_path)
        ensemble.save_pretrained(folder)
        assert set(before) <= set(names(tmp_path))
        assert (folder / place).is_symlink()
        assert len(PromptEnsemble.from_pretrained(folder)) == 2

    @pytest.mark.parametrize(
        "members", [["../other/0"], ["members/../../other"], ["/{root}/other"], ["./0"], ["members"]]
    )
    def test_names_that_lead_elsewhere(self, ensemble: PromptEnsemble, tmp_path: Path, members: list[str]) -> None:
        folder = tmp_path / "ensemble"
        for place in ("ensemble/0", "other/0", "ensemble/members/0"):
            write_files(tmp_path / place, GOOD)
        index(folder, *(name.format(root=tmp_path) for name in members))
        before = names(tmp_path)
        with pytest.raises(PromptFileError):
            PromptEnsemble.from_pretrained(folder)
        ensemble.save_pretrained(folder)
        assert set(before) <= set(names(tmp_path))

    def test_its_own_are_removed(self, ensemble: PromptEnsemble, tmp_path: Path) -> None:
        for _ in range(3):
            ensemble.save_pretrained(tmp_path)
            (members,) = (path for path in tmp_path.iterdir() if path.is_dir())
            ensemble.members[0].save_pretrained(members / "0", save_bin=True)

    def test_too_many_members(self, tmp_path: Path) -> None:
        """What could not be loaded is not saved."""
        prompt = make_prompt()
        many = PromptEnsemble([prompt])
        many.members = [prompt] * 1_001
        with pytest.raises(FileWriteError, match="at most 1000 members"):
            many.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()


def _link(path: Path) -> None:
    (path.parent / "target").write_text("dear")
    path.symlink_to("target")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


class TestTargets:
    @pytest.mark.parametrize(
        "make", [os.mkfifo, Path.mkdir, _link, _dangling], ids=["pipe", "folder", "link", "dangling"]
    )
    @pytest.mark.parametrize("name", ["prompt.json", "prompt_provider.safetensors", "prompt_provider.bin"])
    def test_what_is_no_file_stays(
        self, prompt: Prompt, tmp_path: Path, make: Callable[[Path], None], name: str
    ) -> None:
        prompt.save_pretrained(tmp_path, save_bin=True)
        (tmp_path / name).unlink()
        make(tmp_path / name)
        before = {path: path.lstat() for path in tmp_path.iterdir()}
        with pytest.raises(FileWriteError, match="expected a file to write; found"):
            make_prompt(1).save_pretrained(tmp_path, save_bin=True)
        assert {path: path.lstat() for path in tmp_path.iterdir()} == before

    @pytest.mark.parametrize("name", ["rows.bin", "rows.safetensors"])
    def test_of_a_provider(self, prompt: Prompt, tmp_path: Path, name: str) -> None:
        for make in (os.mkfifo, Path.mkdir, _link):
            path = tmp_path / make.__name__ / name
            path.parent.mkdir()
            make(path)
            kind = path.lstat().st_mode
            with pytest.raises(FileWriteError, match="expected a file to write"):
                prompt.provider.save_pretrained(path)
            assert path.lstat().st_mode == kind

    def test_a_folder_that_is_something_else(self, prompt: Prompt, ensemble: PromptEnsemble, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        _dangling(tmp_path / "dangling")
        for name in ("pipe", "dangling"):
            for saved in (prompt, ensemble):
                with pytest.raises(PromptFolderError, match="expected a folder"):
                    saved.save_pretrained(tmp_path / name)

    def test_a_folder_through_a_link(self, prompt: Prompt, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        prompt.save_pretrained(tmp_path / "link")
        assert torch.equal(Prompt.from_pretrained(tmp_path / "real").rows(), prompt.rows())

    def test_the_longest_name(self, prompt: Prompt, tmp_path: Path) -> None:
        prompt.provider.save_pretrained(tmp_path / ("x" * 243 + ".safetensors"))
        assert len(names(tmp_path)) == 1


class TestFailures:
    def test_a_full_disk(self, prompt: Prompt, ensemble: PromptEnsemble, tmp_path: Path) -> None:
        prompt.save_pretrained(tmp_path / "prompt", save_bin=True)
        ensemble.save_pretrained(tmp_path / "ensemble")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        other = make_prompt(2, "<P*5>{text}")
        with no_room_after(100):
            for save in (
                lambda: other.save_pretrained(tmp_path / "prompt"),
                lambda: PromptEnsemble([other]).save_pretrained(tmp_path / "ensemble"),
                lambda: other.provider.save_pretrained(tmp_path / "prompt" / "prompt_provider.bin"),
            ):
                with pytest.raises(FileWriteError, match="File too large") as caught:
                    save()
                assert isinstance(caught.value, OSError)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, _link])
    def test_an_index_that_cannot_be_written(
        self, ensemble: PromptEnsemble, tmp_path: Path, make: Callable[[Path], None]
    ) -> None:
        make(tmp_path / "ensemble.json")
        before = names(tmp_path)
        with pytest.raises(FileWriteError, match="expected a file to write"):
            ensemble.save_pretrained(tmp_path)
        assert names(tmp_path) == before

    def test_no_file_changes_before_all_are_complete(self, prompt: Prompt, tmp_path: Path) -> None:
        """The last of the files cannot be written, so the first ones stay those of the old prompt."""
        prompt.save_pretrained(tmp_path)
        (tmp_path / "prompt.json").rename(tmp_path / "kept")
        (tmp_path / "prompt.json").mkdir()
        with pytest.raises(FileWriteError):
            make_prompt(1).save_pretrained(tmp_path)
        (tmp_path / "prompt.json").rmdir()
        (tmp_path / "kept").rename(tmp_path / "prompt.json")
        assert torch.equal(Prompt.from_pretrained(tmp_path).rows(), prompt.rows())

    def test_what_could_not_be_read_again(self, prompt: Prompt, tmp_path: Path) -> None:
        deep: object = 1
        for _ in range(2_000):
            deep = [deep]
        for value in (float("nan"), 10**30, "\ud800", deep, object(), "x" * 3_000_000, [[]] * 200_000):
            prompt.config.extra["note"] = value
            with pytest.raises(FileWriteError):
                prompt.save_pretrained(tmp_path / "new")
            assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("place", ["", "prompt", "ensemble", "prompt/prompt.json", "ensemble/ensemble.json"])
    def test_without_permission(self, prompt: Prompt, ensemble: PromptEnsemble, place: str) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o711)
            prompt.save_pretrained(folder / "prompt")
            ensemble.save_pretrained(folder / "ensemble")
            with locked(folder / place):
                for path in (folder / "prompt", folder / "prompt" / "new"):
                    with pytest.raises(FileWriteError, match="cannot be written: Permission denied"):
                        prompt.save_pretrained(path)
                with pytest.raises(FileWriteError, match="cannot be written: Permission denied"):
                    prompt.provider.save_pretrained(folder / "prompt" / "rows.bin")
                with pytest.raises(FileWriteError, match="cannot be written: Permission denied"):
                    ensemble.save_pretrained(folder / "ensemble")
                if "ensemble" not in place:
                    with pytest.raises(PromptFileError, match="Permission denied"):
                        Prompt.from_pretrained(folder / "prompt")
                if "prompt" not in place:
                    with pytest.raises(PromptFileError, match="Permission denied"):
                        PromptEnsemble.from_pretrained(folder / "ensemble")
            assert torch.equal(Prompt.from_pretrained(folder / "prompt").rows(), prompt.rows())
            assert len(PromptEnsemble.from_pretrained(folder / "ensemble")) == 2


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within the block nobody may read a path; an administrator, who may, is somebody else meanwhile."""
    mode, user = path.stat().st_mode, os.geteuid()
    path.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(0)
        path.chmod(mode)
