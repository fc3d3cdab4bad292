"""Loading from and pushing to a hub that answers over HTTP on localhost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prompts.hostile_cases import HOSTILE
from prompts.hostile_files import Hostile
from prompts.hub_server import OWNER, TOKEN, Hub, running_hub
from prompts.tiny import WIDTH, tiny_model, tiny_tokenizer
from safetensors.torch import save

from ruprompt_fast.errors import HubError, NotInitializedError, PromptFileError, RupromptError
from ruprompt_fast.prompts import Prompt, PromptFormat, TensorPromptProvider

REPO = "someone/prompt_joke"


def json_file(rows: int = 3) -> bytes:
    template = {"template": f"<P*{rows}>{{text}}", "compiled_template": "<|P|>" * rows + "{text}"}
    return json.dumps({"format": template, "config": {"prompt_length": rows}}).encode()


def safetensors_file(value: float = 1.0, rows: int = 3) -> bytes:
    return save({"prompt_embeddings": torch.full((rows, WIDTH), value)})


def bin_file(folder: Path, value: float, rows: int = 3) -> bytes:
    path = folder / "rows.bin"
    torch.save(torch.full((rows, WIDTH), value), path)
    return path.read_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "")
    with running_hub() as hub:
        yield hub


def load(hub: Hub, tmp_path: Path, repo: str = REPO, **arguments: object) -> Prompt:
    return Prompt.from_pretrained(repo, cache_dir=tmp_path / "cache", endpoint=hub.endpoint, **arguments)


class TestDownload:
    def test_files_of_this_package(self, hub: Hub, tmp_path: Path) -> None:
        hub.create(REPO, {"prompt.json": json_file(), "prompt_provider.safetensors": safetensors_file(2.0)})
        prompt = load(hub, tmp_path)
        assert prompt.is_initialized
        assert prompt(text="hi") == "<|P|><|P|><|P|>hi"
        assert torch.equal(prompt.rows(), torch.full((3, WIDTH), 2.0))

    def test_files_of_ruprompts(self, hub: Hub, tmp_path: Path) -> None:
        hub.create(REPO, {"prompt.json": json_file(), "prompt_provider.bin": bin_file(tmp_path, 4.0)})
        assert torch.equal(load(hub, tmp_path).rows(), torch.full((3, WIDTH), 4.0))

    def test_safetensors_are_preferred_and_the_other_is_not_downloaded(self, hub: Hub, tmp_path: Path) -> None:
        files = {
            "prompt.json": json_file(),
            "prompt_provider.bin": bin_file(tmp_path, 4.0),
            "prompt_provider.safetensors": safetensors_file(2.0),
            "huge_model.safetensors": b"x",
        }
        hub.create(REPO, files)
        assert load(hub, tmp_path).rows()[0, 0] == 2.0
        assert not [path for _, path in hub.requests if path.endswith((".bin", "huge_model.safetensors"))]

    @pytest.mark.parametrize("hostile", [case for case in HOSTILE if "nested" in case.name], ids=lambda case: case.name)
    def test_hostile_files(self, hub: Hub, tmp_path: Path, hostile: Hostile) -> None:
        """What was downloaded is read like any other file."""
        hub.create(REPO, {name: content for name, content in hostile.files.items() if isinstance(content, bytes)})
        with pytest.raises(PromptFileError, match=hostile.found):
            load(hub, tmp_path)

    def test_peft_adapter(self, hub: Hub, tmp_path: Path) -> None:
        config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "base_model_name_or_path": "gpt2"}
        hub.create(
            REPO,
            {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": safetensors_file(5.0)},
        )
        prompt = load(hub, tmp_path)
        assert prompt.format.template == "<P*3>{text}"
        assert prompt.config.pretrained_model_name == "gpt2"

    def test_subfolder(self, hub: Hub, tmp_path: Path) -> None:
        files = {"prompt.json": json_file(), "prompt_provider.safetensors": safetensors_file(7.0)}
        hub.create(REPO, {f"prompts/joke/{name}": content for name, content in files.items()})
        assert load(hub, tmp_path, subfolder="prompts/joke").rows()[0, 0] == 7.0
        with pytest.raises(HubError, match="subfolder"):
            load(hub, tmp_path)

    def test_revisions(self, hub: Hub, tmp_path: Path) -> None:
        repo = hub.create(REPO, {"prompt.json": json_file(), "prompt_provider.safetensors": safetensors_file(1.0)})
        first = repo.branches["main"]
        repo.commit({"prompt_provider.safetensors": safetensors_file(2.0)})
        repo.branches["v1"] = first
        assert load(hub, tmp_path).rows()[0, 0] == 2.0
        assert load(hub, tmp_path, revision="v1").rows()[0, 0] == 1.0
        assert load(hub, tmp_path, revision=first).rows()[0, 0] == 1.0
        with pytest.raises(HubError, match="no revision 'v9'"):
            load(hub, tmp_path, revision="v9")

    def test_all_files_are_of_one_commit(self, hub: Hub, tmp_path: Path) -> None:
        repo = hub.create(REPO, {"prompt.json": json_file(3), "prompt_provider.safetensors": safetensors_file(rows=3)})
        prompt = load(hub, tmp_path)
        asked = [path for _, path in hub.requests if path.endswith("prompt_provider.safetensors")]
        assert asked
        assert all(f"/resolve/{repo.branches['main']}/" in path for path in asked)
        assert prompt.format.prompt_length == 3

    def test_token(self, hub: Hub, tmp_path: Path) -> None:
        hub.create(REPO, {"prompt.json": json_file(), "prompt_provider.safetensors": safetensors_file()}, private=True)
        for token in (False, "hf_wrong"):
            with pytest.raises(HubError, match="private"):
                load(hub, tmp_path, token=token)
        assert load(hub, tmp_path, token=TOKEN).is_initialized

    def test_gated(self, hub: Hub, tmp_path: Path) -> None:
        hub.create(REPO, {"prompt.json": json_file()}, gated=True)
        with pytest.raises(HubError, match="ask for it"):
            load(hub, tmp_path, token=TOKEN)

    def test_missing_repository(self, hub: Hub, tmp_path: Path) -> None:
        with pytest.raises(HubError, match="someone/prompt_joke: no such repository") as caught:
            load(hub, tmp_path)
        assert isinstance(caught.value, RupromptError)
        assert isinstance(caught.value, OSError)

    def test_no_prompt_in_it(self, hub: Hub, tmp_path: Path) -> None:
        hub.create(REPO, {"README.md": b"hello"})
        with pytest.raises(HubError, match=r"expected prompt\.json or adapter_config\.json"):
            load(hub, tmp_path)

    def test_rows_are_missing(self, hub: Hub, tmp_path: Path) -> None:
        hub.create(REPO, {"prompt.json": json_file()})
        with pytest.raises(HubError, match=r"prompt_provider\.safetensors or prompt_provider\.bin"):
            load(hub, tmp_path)

    def test_malformed_files(self, hub: Hub, tmp_path: Path) -> None:
        hub.create(REPO, {"prompt.json": b"<html>", "prompt_provider.safetensors": safetensors_file()})
        with pytest.raises(PromptFileError, match="expected JSON"):
            load(hub, tmp_path)

    @pytest.mark.parametrize("name", ["bad name/x", "a--b/c", "-x"])
    def test_names_that_cannot_be(self, hub: Hub, tmp_path: Path, name: str) -> None:
        with pytest.raises(HubError, match="spelling"):
            load(hub, tmp_path, repo=name)

    def test_a_failing_hub(self, hub: Hub, tmp_path: Path) -> None:
        hub.failing = True
        with pytest.raises(HubError, match=REPO):
            load(hub, tmp_path)
        assert [path for _, path in hub.requests] == ["/", f"/{REPO}/resolve/main/prompt.json"]


class TestCache:
    @pytest.fixture
    def cached(self, hub: Hub, tmp_path: Path) -> Hub:
        hub.create(REPO, {"prompt.json": json_file(), "prompt_provider.bin": bin_file(tmp_path, 4.0)})
        load(hub, tmp_path)
        hub.requests.clear()
        return hub

    def test_local_files_only(self, cached: Hub, tmp_path: Path) -> None:
        assert load(cached, tmp_path, local_files_only=True).rows()[0, 0] == 4.0
        assert cached.requests == []
        with pytest.raises(HubError, match="not in the cache"):
            load(cached, tmp_path, repo="someone/other", local_files_only=True)

    def test_an_unchanged_file_is_not_downloaded_again(self, cached: Hub, tmp_path: Path) -> None:
        load(cached, tmp_path)
        assert [method for method, _ in cached.requests] == ["HEAD", "HEAD"]  # does it answer, and has it changed
        load(cached, tmp_path, force_download=True)
        assert "GET" in {method for method, _ in cached.requests}

    def test_the_cache_serves_when_the_hub_is_away(self, cached: Hub, tmp_path: Path) -> None:
        cached.failing = True
        assert load(cached, tmp_path).rows()[0, 0] == 4.0
        assert load(Hub(endpoint="http://127.0.0.1:9"), tmp_path).rows()[0, 0] == 4.0

    def test_environment(self, cached: Hub, tmp_path: Path) -> None:
        """``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are read when huggingface_hub is imported, so in a new process."""
        script = (
            "import sys; from ruprompt_fast.prompts import Prompt\n"
            "print(Prompt.from_pretrained(sys.argv[1], cache_dir=sys.argv[2]).rows()[0, 0].item())"
        )

        def run(cache: str, **environment: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", script, REPO, str(tmp_path / cache)],
                env={**os.environ, "HF_ENDPOINT": cached.endpoint, **environment},
                capture_output=True,
                text=True,
                check=False,
                cwd=Path(__file__).parents[2],
            )

        fresh = run("another_cache")
        assert fresh.stdout.strip() == "4.0", fresh.stderr
        cached.requests.clear()
        assert run("cache", HF_HUB_OFFLINE="1").stdout.strip() == "4.0"
        refused = run("empty_cache", HF_HUB_OFFLINE="1")
        assert "HubError" in refused.stderr
        assert "HF_HUB_OFFLINE" in refused.stderr
        assert cached.requests == []


class TestUpload:
    @pytest.fixture
    def prompt(self) -> Prompt:
        prompt = Prompt(PromptFormat("<P*2>{text}<P>"), TensorPromptProvider(seed=1))
        prompt.initialize(tiny_model(), tiny_tokenizer())
        return prompt

    def test_round_trip(self, hub: Hub, tmp_path: Path, prompt: Prompt) -> None:
        url = prompt.push_to_hub(f"{OWNER}/mine", token=TOKEN, endpoint=hub.endpoint, private=True)
        repo = hub.repos[f"{OWNER}/mine"]
        assert repo.private
        assert url == f"{hub.endpoint}/{OWNER}/mine/commit/{repo.branches['main']}"
        assert sorted(repo.files("main")) == [".gitattributes", "prompt.json", "prompt_provider.safetensors"]
        loaded = load(hub, tmp_path, repo=f"{OWNER}/mine", token=TOKEN)
        assert torch.equal(loaded.rows(), prompt.rows())
        assert loaded.as_dict() == prompt.as_dict()

    def test_pushing_again_makes_a_second_commit(self, hub: Hub, prompt: Prompt) -> None:
        prompt.push_to_hub(f"{OWNER}/mine", token=TOKEN, endpoint=hub.endpoint)
        prompt.push_to_hub(f"{OWNER}/mine", token=TOKEN, endpoint=hub.endpoint, save_bin=True)
        assert "prompt_provider.bin" in hub.repos[f"{OWNER}/mine"].files("main")

    def test_branch(self, hub: Hub, tmp_path: Path, prompt: Prompt) -> None:
        prompt.push_to_hub(f"{OWNER}/mine", token=TOKEN, endpoint=hub.endpoint, revision="dev")
        repo = hub.repos[f"{OWNER}/mine"]
        assert "prompt.json" in repo.files("dev")
        assert "prompt.json" not in repo.files("main")
        assert load(hub, tmp_path, repo=f"{OWNER}/mine", revision="dev").is_initialized

    def test_pull_request(self, hub: Hub, prompt: Prompt) -> None:
        url = prompt.push_to_hub(f"{OWNER}/mine", token=TOKEN, endpoint=hub.endpoint, create_pr=True)
        assert url == f"{hub.endpoint}/{OWNER}/mine/discussions/1"

    def test_through_save_pretrained(self, hub: Hub, tmp_path: Path, prompt: Prompt) -> None:
        folder = tmp_path / "named_like_this"
        prompt.save_pretrained(folder, push_to_hub=True, token=TOKEN, endpoint=hub.endpoint)
        assert (folder / "prompt.json").is_file()
        assert "prompt.json" in hub.repos[f"{OWNER}/named_like_this"].files("main")

    def test_refusals(self, hub: Hub, prompt: Prompt) -> None:
        with pytest.raises(HubError, match="token"):
            prompt.push_to_hub(f"{OWNER}/mine", token="hf_wrong", endpoint=hub.endpoint)
        with pytest.raises(HubError, match="the hub refused"):
            prompt.push_to_hub("someone-else/mine", token=TOKEN, endpoint=hub.endpoint)
        with pytest.raises(HubError, match="spelling"):
            prompt.push_to_hub("bad name", token=TOKEN, endpoint=hub.endpoint)
        assert hub.repos == {}

    def test_nobody_there(self, hub: Hub, prompt: Prompt) -> None:
        with pytest.raises(HubError, match="check the network"):
            prompt.push_to_hub(f"{OWNER}/mine", token=TOKEN, endpoint="http://127.0.0.1:9")

    def test_uninitialized(self, hub: Hub) -> None:
        with pytest.raises(NotInitializedError):
            Prompt(PromptFormat("<P>"), TensorPromptProvider()).push_to_hub("x/y", endpoint=hub.endpoint)
        assert hub.requests == []
