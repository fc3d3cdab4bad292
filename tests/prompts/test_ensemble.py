"""PromptEnsemble: what it is made of, and its folder. tests/model/test_ensemble_serving.py has the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from prompts.hub_server import Hub, running_hub
from prompts.tiny import WIDTH
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from ruprompt_fast.errors import (
    DuplicatePromptError,
    HubError,
    NotInitializedError,
    PromptFileError,
    PromptFolderError,
    PromptInitError,
    PromptMismatchError,
)
from ruprompt_fast.prompts import MultiPrompt, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.prompts.ensemble import PromptEnsemble, load_prompt, single_prompt
from ruprompt_fast.prompts.files import hub as files_of_hub
from ruprompt_fast.prompts.files.ensemble_folder import is_ensemble_folder

TEMPLATE = "<P*3>{text}<P>"


def make_prompt(template: str = TEMPLATE) -> Prompt:
    return Prompt(PromptFormat(template), TensorPromptProvider(init="random"))


@pytest.fixture
def ensemble(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> PromptEnsemble:
    made = PromptEnsemble.of(TEMPLATE, lambda seed: TensorPromptProvider(init="random", seed=seed), range(3))
    made.initialize(model, tokenizer)
    return made


def rows(ensemble: PromptEnsemble) -> torch.Tensor:
    return torch.stack([member.rows() for member in ensemble.members])


class TestMembers:
    def test_of_makes_members_of_different_seeds(
        self, ensemble: PromptEnsemble, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        assert len(ensemble) == 3
        assert ensemble.template == TEMPLATE
        assert ensemble.is_initialized
        assert rows(ensemble).shape == (3, 4, WIDTH)
        assert len(rows(ensemble).unique(dim=0)) == 3
        again = PromptEnsemble.of(TEMPLATE, lambda seed: TensorPromptProvider(init="random", seed=seed), [2, 1, 0])
        assert not again.is_initialized
        again.initialize(model, tokenizer)
        assert torch.equal(rows(again), rows(ensemble).flip(0))

    def test_equal_seeds_are_refused(self) -> None:
        with pytest.raises(PromptInitError, match="another seed.*1, 2, 1"):
            PromptEnsemble.of(TEMPLATE, lambda seed: TensorPromptProvider(seed=seed), [1, 2, 1])

    def test_shared_parts_are_refused(self) -> None:
        first, second = make_prompt(), make_prompt()
        with pytest.raises(DuplicatePromptError, match="format"):
            PromptEnsemble([first, second, first])
        with pytest.raises(DuplicatePromptError, match="provider"):
            PromptEnsemble([first, Prompt(PromptFormat(TEMPLATE), first.provider)])

    def test_what_is_no_ensemble(self) -> None:
        with pytest.raises(PromptInitError, match="at least one member"):
            PromptEnsemble([])
        with pytest.raises(PromptInitError, match="str"):
            PromptEnsemble([make_prompt(), "folder"])  # type: ignore[list-item]
        with pytest.raises(PromptMismatchError, match=r"one template.*<P\*2>"):
            PromptEnsemble([make_prompt(), make_prompt("<P*2>{text}")])


class TestFolder:
    def test_round_trip(self, ensemble: PromptEnsemble, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "b"
        ensemble.save_pretrained(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["ensemble.json", "members"]
        assert json.loads((folder / "ensemble.json").read_text()) == {
            "members": ["members/0", "members/1", "members/2"]
        }
        loaded = PromptEnsemble.from_pretrained(str(folder))
        assert loaded.is_initialized
        assert loaded.template == TEMPLATE
        assert torch.equal(rows(loaded), rows(ensemble))
        assert torch.equal(Prompt.from_pretrained(folder / "members" / "1").rows(), ensemble.members[1].rows())
        assert is_ensemble_folder(folder)
        assert not is_ensemble_folder(folder / "members" / "0")

    def test_saving_again_replaces_the_members_and_nothing_else(self, ensemble: PromptEnsemble, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("seed: 0")
        ensemble.save_pretrained(tmp_path)
        smaller = PromptEnsemble(ensemble.members[1:])
        for _ in range(2):
            smaller.save_pretrained(tmp_path)
            assert torch.equal(rows(PromptEnsemble.from_pretrained(tmp_path)), rows(ensemble)[1:])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "ensemble.json", "members"]

    def test_a_failed_save_leaves_what_was_there(
        self, ensemble: PromptEnsemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ensemble.save_pretrained(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        written = []

        def fail_at_the_second(tensors: dict[str, torch.Tensor], path: Path, **_: object) -> None:
            written.append(path)
            if len(written) == 2:
                raise OSError("no space left on device")
            real_save(tensors, path)

        real_save = safetensors.torch.save_file
        monkeypatch.setattr(safetensors.torch, "save_file", fail_at_the_second)
        with pytest.raises(OSError, match="no space"):
            PromptEnsemble(ensemble.members[1:]).save_pretrained(tmp_path)
        assert len(written) == 2
        assert sorted(tmp_path.rglob("*")) == before
        assert torch.equal(rows(PromptEnsemble.from_pretrained(tmp_path)), rows(ensemble))

    def test_what_cannot_be_saved(self, ensemble: PromptEnsemble, tmp_path: Path) -> None:
        with pytest.raises(NotInitializedError):
            PromptEnsemble([*ensemble.members, make_prompt()]).save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()
        (tmp_path / "file").write_text("")
        with pytest.raises(PromptFolderError, match="found a file"):
            ensemble.save_pretrained(tmp_path / "file")

    @pytest.mark.parametrize(
        "index",
        ["", "[]", "{}", '{"members": []}', '{"members": [0]}', '{"members": ["/etc/x"]}', '{"members": ["../x"]}',
         '{"members": ["0"]}', '{"members": ["members/7"]}'],
    )  # fmt: skip
    def test_broken_index(self, ensemble: PromptEnsemble, tmp_path: Path, index: str) -> None:
        ensemble.save_pretrained(tmp_path)
        (tmp_path / "ensemble.json").write_text(index)
        with pytest.raises(PromptFileError):
            PromptEnsemble.from_pretrained(tmp_path)
        ensemble.save_pretrained(tmp_path)
        assert torch.equal(rows(PromptEnsemble.from_pretrained(tmp_path)), rows(ensemble))

    def test_members_of_different_templates(
        self,
        ensemble: PromptEnsemble,
        model: GPT2LMHeadModel,
        tokenizer: PreTrainedTokenizerFast,
        tmp_path: Path,
    ) -> None:
        other = make_prompt("<P*4>{text}")
        other.initialize(model, tokenizer)
        ensemble.save_pretrained(tmp_path)
        other.save_pretrained(tmp_path / "members" / "1")
        with pytest.raises(PromptFileError, match="share one template"):
            PromptEnsemble.from_pretrained(tmp_path)

    def test_a_folder_of_one_prompt(self, ensemble: PromptEnsemble, tmp_path: Path) -> None:
        ensemble.members[0].save_pretrained(tmp_path)
        with pytest.raises(PromptFileError, match=r"ensemble\.json"):
            PromptEnsemble.from_pretrained(tmp_path)


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with running_hub() as hub:
            here = partial(files_of_hub.download_prompt, endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
            monkeypatch.setattr(files_of_hub, "download_prompt", here)
            yield hub

    def test_an_ensemble_of_the_hub(self, ensemble: PromptEnsemble, hub: Hub, tmp_path: Path) -> None:
        ensemble.save_pretrained(tmp_path / "saved")
        files = {
            path.relative_to(tmp_path / "saved").as_posix(): path.read_bytes()
            for path in (tmp_path / "saved").rglob("*")
            if path.is_file()
        }
        hub.create("someone/kinds", {**files, "members/0/huge_model.bin": b"x", "README.md": b"x"})
        for loaded in (load_prompt("someone/kinds"), PromptEnsemble.from_pretrained("someone/kinds")):
            assert isinstance(loaded, PromptEnsemble)
            assert torch.equal(rows(loaded), rows(ensemble))
        assert not [path for _, path in hub.requests if path.endswith(("huge_model.bin", "README.md"))]
        hub.failing = True
        assert torch.equal(rows(PromptEnsemble.from_pretrained("someone/kinds")), rows(ensemble))

    def test_an_index_that_points_elsewhere(self, hub: Hub) -> None:
        hub.create("someone/kinds", {"ensemble.json": b'{"members": ["../x"]}', "x/prompt.json": b"{}"})
        with pytest.raises(PromptFileError, match="expected folders such as"):
            load_prompt("someone/kinds")
        assert not [path for _, path in hub.requests if "x/prompt.json" in path]

    def test_a_member_that_is_missing(self, hub: Hub) -> None:
        hub.create("someone/kinds", {"ensemble.json": b'{"members": ["members/0"]}'})
        with pytest.raises(HubError, match="someone/kinds/members/0: expected prompt.json"):
            load_prompt("someone/kinds")


class TestOneWanted:
    def test_an_ensemble_in_a_prompts_place(self, ensemble: PromptEnsemble, tmp_path: Path) -> None:
        ensemble.save_pretrained(tmp_path)
        for source in (ensemble, tmp_path, str(tmp_path)):
            with pytest.raises(PromptInitError, match="one prompt; found an ensemble of 3"):
                MultiPrompt({"kinds": source})
        assert single_prompt(tmp_path / "members" / "1").is_initialized
