"""Prompt files that were made to do harm: each is refused by name, quickly, and without taking memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from attack.prompt_requests import Loader
from prompts.hostile_cases import HOSTILE
from prompts.hostile_files import (
    ROWS,
    Hostile,
    adapter_json,
    bombs,
    prompt_json,
    torch_bytes,
    write_files,
)
from safetensors.torch import save

from ruprompt_fast.errors import MAX_MESSAGE_CHARS, PromptFileError, RupromptError, UnsafeFileError
from ruprompt_fast.prompts import MultiPrompt, Prompt, PromptEnsemble

LARGE = (3, 2_000_000)


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    with Loader() as made:
        yield made


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name[:60].replace("/", "|").replace("\0", "0"))
def test_refused_by_name(hostile: Hostile, tmp_path: Path) -> None:
    load = PromptEnsemble.from_pretrained if hostile.kind == "ensemble" else Prompt.from_pretrained
    with pytest.raises(PromptFileError, match=hostile.found) as caught:
        load(hostile.write(tmp_path / "p"))
    assert len(str(caught.value)) <= MAX_MESSAGE_CHARS


def test_refusals_cost_little(loader: Loader, tmp_path: Path) -> None:
    """The process judges: at most a second of the processor and 100 MB."""
    for number, hostile in enumerate(HOSTILE):
        folder = hostile.write(tmp_path / str(number))
        for kind in (hostile.kind, "multi") if hostile.kind == "prompt" else (hostile.kind,):
            assert loader.ask(kind=kind, path=str(folder))[0] == "refused", hostile.name


def test_nothing_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "owned"
    for number, (name, content) in enumerate(bombs(mark)):
        for kind, description in (("prompt_provider", prompt_json()), ("adapter_model", adapter_json())):
            folder = tmp_path / f"{kind}{number}"
            json_name = "prompt.json" if kind == "prompt_provider" else "adapter_config.json"
            write_files(folder, {json_name: description, f"{kind}.bin": content})
            with pytest.raises(UnsafeFileError, match="could run code"):
                Prompt.from_pretrained(folder)
            assert not mark.exists(), name


def test_a_file_that_changes_while_it_is_read(loader: Loader, tmp_path: Path) -> None:
    """Memory that is mapped onto a file dies with it; what is read may only be refused."""
    whole = torch_bytes(torch.zeros(LARGE))
    safe = save({"prompt_embeddings": torch.zeros(LARGE)})
    for name, data in (("prompt_provider.bin", whole), ("prompt_provider.safetensors", safe)):
        write_files(tmp_path / name, {"prompt.json": prompt_json(), name: data})
        path = tmp_path / name / name
        stop = threading.Event()

        def rewrite(path: Path = path, data: bytes = data, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                path.write_bytes(data[: len(data) // 2])
                path.write_bytes(data)

        thread = threading.Thread(target=rewrite)
        thread.start()
        try:
            outcomes = {loader.ask(kind="prompt", path=str(path.parent))[0] for _ in range(30)}
        finally:
            stop.set()
            thread.join()
        assert outcomes <= {"answered", "refused"}
        assert loader.ask(kind="prompt", path=str(path.parent)) == ("answered", "")


def test_what_loads_takes_little_more_than_its_size(tmp_path: Path) -> None:
    """A slice of a large tensor is saved with all of it; only the slice is read."""
    table = torch.rand(500_000, 20)
    write_files(tmp_path, {"prompt.json": prompt_json(), "prompt_provider.bin": torch_bytes(table[40:43])})
    assert (tmp_path / "prompt_provider.bin").stat().st_size > 40_000_000
    assert torch.equal(Prompt.from_pretrained(tmp_path).rows(), table[40:43])


def test_views(tmp_path: Path) -> None:
    table = torch.rand(20, 7)
    for number, view in enumerate((table.t()[:3], table[::2, ::3].t()[:3], table[5:8], table[:3, 1:])):
        folder = tmp_path / str(number)
        write_files(folder, {"prompt.json": prompt_json(), "prompt_provider.bin": torch_bytes(view)})
        assert torch.equal(Prompt.from_pretrained(folder).rows(), view)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_peft_and_of_modules(tmp_path: Path, zipped: bool) -> None:
    """Dictionaries, and what ``state_dict`` makes, with all that it says about versions and gradients."""
    module = torch.nn.Module()
    module.prompt_embeddings = torch.nn.Parameter(ROWS)
    module.register_buffer("count", torch.tensor(3))
    for number, value in enumerate((module.state_dict(), {"prompt_embeddings": module.prompt_embeddings, "note": 1.5})):
        folder = tmp_path / f"{number}"
        content = torch_bytes(value, _use_new_zipfile_serialization=zipped)
        write_files(folder, {"adapter_config.json": adapter_json(), "adapter_model.bin": content})
        assert torch.equal(Prompt.from_pretrained(folder).rows(), ROWS)


def test_keys_of_several_types(tmp_path: Path) -> None:
    content = torch_bytes({"prompt_embeddings": ROWS, 1: ROWS})
    write_files(tmp_path, {"adapter_config.json": adapter_json(), "adapter_model.bin": content})
    with pytest.raises(UnsafeFileError, match="1 as a name"):
        Prompt.from_pretrained(tmp_path)


def test_numbers_that_float32_does_not_hold(tmp_path: Path) -> None:
    write_files(tmp_path, {"prompt.json": prompt_json(), "prompt_provider.bin": torch_bytes(ROWS.double() * 1e300)})
    with pytest.raises(RupromptError, match="NaN or infinity"):
        Prompt.from_pretrained(tmp_path)


def test_an_ensemble_of_links_to_one_large_file(tmp_path: Path) -> None:
    names = [f"members/{number}" for number in range(10)]
    write_files(tmp_path, {"ensemble.json": str({"members": names}).replace("'", '"').encode()})
    for name in names:
        write_files(tmp_path / name, {"prompt.json": prompt_json()})
        (tmp_path / name / "prompt_provider.bin").symlink_to(tmp_path / "large")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 10**9)
    with pytest.raises(PromptFileError, match="at most 4294967296 bytes together; found 10000000000"):
        PromptEnsemble.from_pretrained(tmp_path)


def test_links_to_ordinary_files(tmp_path: Path) -> None:
    """The Hub's cache is made of them."""
    blobs = {"a": prompt_json(), "b": torch_bytes(ROWS)}
    write_files(tmp_path / "blobs", blobs)
    write_files(tmp_path / "p", {})
    (tmp_path / "p" / "prompt.json").symlink_to("../blobs/a")
    (tmp_path / "p" / "prompt_provider.bin").symlink_to("../blobs/b")
    assert torch.equal(MultiPrompt({"a": tmp_path / "p"}).prompts["a"].rows(), ROWS)
