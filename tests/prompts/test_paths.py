"""Whatever is given as a path, a name or a number: a named error, with a message of bounded length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prompts.hostile_files import GOOD, adapter_json, prompt_json, torch_bytes, write_files

from ruprompt_fast.errors import (
    MAX_MESSAGE_CHARS,
    FileWriteError,
    HubError,
    PromptFileError,
    RupromptError,
    SettingError,
)
from ruprompt_fast.prompts import MultiPrompt, Prompt, PromptEnsemble


class _OddPath:
    def __fspath__(self) -> bytes:
        return b"/tmp"


PATHS: dict[str, Any] = {
    "null byte": "/a\0b",
    "null byte after ~": "~\0",
    "a long name": "/" + "a" * 5_000,
    "a long path": "/a" * 5_000,
    "a lone surrogate": "/\ud800",
    "a number": 3,
    "None": None,
    "bytes": b"/tmp",
    "a path of bytes": _OddPath(),
    "a list": ["/tmp"],
    "a device": "/dev/null",
    "below a device": "/dev/null/x",
    "below the kernel's files": "/proc/nowhere",
}


def load_ensemble(path: Any) -> Any:
    return PromptEnsemble.from_pretrained(path)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("load", [Prompt.from_pretrained, load_ensemble, lambda path: MultiPrompt({"a": path})])
def test_loading(load: Callable[[Any], Any], path: Any) -> None:
    with pytest.raises(RupromptError) as caught:
        load(path)
    assert len(str(caught.value)) <= MAX_MESSAGE_CHARS


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_saving(path: Any, tmp_path: Path) -> None:
    write_files(tmp_path, GOOD)
    prompt = Prompt.from_pretrained(tmp_path)
    for save in (prompt.save_pretrained, PromptEnsemble([prompt]).save_pretrained, prompt.provider.save_pretrained):
        with pytest.raises((FileWriteError, PromptFileError)) as caught:
            save(path)
        assert len(str(caught.value)) <= MAX_MESSAGE_CHARS
    assert sorted(GOOD) == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("subfolder", ["\0", "a" * 5_000, "\ud800", 3, b"x", "../nowhere"])
def test_subfolders(subfolder: Any, tmp_path: Path) -> None:
    with pytest.raises(PromptFileError):
        Prompt.from_pretrained(tmp_path, subfolder=subfolder)


@pytest.mark.parametrize("task_id", ["0", True, 1.0, [0]])
def test_task_ids(task_id: Any, tmp_path: Path) -> None:
    write_files(tmp_path / "ours", GOOD)
    write_files(tmp_path / "peft", {"adapter_config.json": adapter_json()})
    for name in ("ours", "peft"):
        with pytest.raises(SettingError, match="task_id to be a whole number or None; found"):
            Prompt.from_pretrained(tmp_path / name, task_id=task_id)


def test_a_task_of_a_prompt_without_tasks(tmp_path: Path) -> None:
    write_files(tmp_path, GOOD)
    assert Prompt.from_pretrained(tmp_path, task_id=0).is_initialized
    with pytest.raises(PromptFileError, match="expected a multitask adapter of PEFT for task 1"):
        Prompt.from_pretrained(tmp_path, task_id=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"revision": 3},
        {"endpoint": 3},
        {"cache_dir": 3},
        {"cache_dir": "\0"},
        {"revision": "\0"},
        {"revision": "r" * 5_000},
        {"subfolder": "\0"},
    ],
    ids=str,
)
def test_arguments_of_a_download(arguments: dict[str, Any], tmp_path: Path) -> None:
    settings = {"cache_dir": tmp_path, "local_files_only": True, **arguments}
    with pytest.raises((HubError, PromptFileError)) as caught:
        Prompt.from_pretrained("owner/name", **settings)
    assert len(str(caught.value)) <= MAX_MESSAGE_CHARS


@pytest.mark.parametrize("name", [3, None, "", "a\0", "\ud800", "a" * 5_000])
def test_names_of_an_upload(name: Any, tmp_path: Path) -> None:
    write_files(tmp_path, GOOD)
    with pytest.raises(HubError) as caught:
        Prompt.from_pretrained(tmp_path).push_to_hub(name, endpoint="http://127.0.0.1:9")
    assert len(str(caught.value)) <= MAX_MESSAGE_CHARS


def test_a_folder_of_very_many_files(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number:0200}").touch()
    with pytest.raises(PromptFileError, match="found 0.*, \\.\\.\\.") as caught:
        Prompt.from_pretrained(tmp_path)
    assert len(str(caught.value)) <= MAX_MESSAGE_CHARS


@pytest.mark.parametrize("value", [True, 1.0, 10**17, -1, [1] * 9_999, "x" * 99_999])
def test_numbers_of_a_file(value: Any, tmp_path: Path) -> None:
    folders: dict[str, dict[str, bytes]] = {
        "rows": {"adapter_config.json": adapter_json(num_virtual_tokens=value)},
        "layers": {"adapter_config.json": adapter_json("PREFIX_TUNING", num_layers=value)},
        "width": {"prompt.json": prompt_json(embedding_dim=value)},
        "length": {"prompt.json": prompt_json(prompt_length=value)},
        "heads": {
            "prompt.json": prompt_json(kind="prefix_tuning", num_layers=1, num_key_value_heads=value, head_dim=1)
        },
    }
    for name, files in folders.items():
        rows = {"prompt_provider.bin": torch_bytes(3), "adapter_model.bin": torch_bytes({})}
        write_files(tmp_path / name, {**rows, **files})
        with pytest.raises(PromptFileError) as caught:
            Prompt.from_pretrained(tmp_path / name)
        assert len(str(caught.value)) <= MAX_MESSAGE_CHARS
