"""Names of models and prompts that lead nowhere: said at once, and paths are never asked of the hub."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from model_cases import make_prompt
from tiny_models import tiny_model, tiny_tokenizer

from ruprompt_fast import FastPromptModel, LSTMPromptProvider, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.errors import HubError, NotInitializedError, PromptFileError, TrainingDataError
from ruprompt_fast.runs.data.rows import load_rows


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A hub that hangs up on everybody; the list grows with every caller."""
    server, callers = socket.create_server(("127.0.0.1", 0)), []

    def refuse() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            callers.append(1)
            connection.close()

    thread = threading.Thread(target=refuse, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Once in a process the library asks for names of its own to put into its headers, whatever is loaded.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    yield callers
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def load_model(name: str) -> None:
    FastPromptModel.from_pretrained(name)


def load_tokenizer(name: str) -> None:
    FastPromptModel.from_pretrained(tiny_model("gpt2"), tokenizer=name)


def load_prompt(name: str) -> None:
    Prompt.from_pretrained(name)


LOADERS = pytest.mark.parametrize("load", [load_model, load_tokenizer, load_prompt])


@LOADERS
@pytest.mark.parametrize(
    "name",
    [
        "./modell",
        "../modell",
        "/no/such/model",
        "~/no_such_model",
        r"C:\models\gpt",
        "C:/models",
        "models\\gpt",
        "a/b/c",
    ],
)
def test_a_path_is_not_asked_of_the_hub(hub: list[int], load: Callable[[str], None], name: str) -> None:
    with pytest.raises((HubError, PromptFileError), match="no such folder|nothing there"):
        load(name)
    assert not hub


@LOADERS
@pytest.mark.parametrize("name", ["models/gptt", "gptt/"])
def test_nor_is_what_begins_with_a_folder_or_ends_with_a_slash(
    hub: list[int], load: Callable[[str], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "gpt").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((HubError, PromptFileError), match="no such folder|nothing there"):
        load(name)
    assert not hub


@LOADERS
@pytest.mark.parametrize("name", ["gptt", "someone/gptt"])
def test_what_may_be_an_id_is_asked_for_with_one_retry(hub: list[int], load: Callable[[str], None], name: str) -> None:
    with pytest.raises(HubError, match="no such folder"):
        load(name)
    assert len(hub) == 2  # the library by itself asks six times for every file


def test_the_id_of_a_data_set_is_asked_for_with_one_retry(hub: list[int]) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(TrainingDataError, match="no such file or folder, and the hub was not reached"):
        load_rows("nobody/nothing", ["text"])
    assert len(hub) == 2


def test_a_folder_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt")
    assert FastPromptModel.from_pretrained("~/gpt").count_tokens("где") == [3]


@pytest.mark.parametrize("provider", [TensorPromptProvider, LSTMPromptProvider])
def test_a_prompt_without_rows_is_said_to_have_none(provider: Callable[[], TensorPromptProvider]) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    empty = Prompt(PromptFormat("<P*3>{text}"), provider())
    with pytest.raises(NotInitializedError, match=r"no rows yet; call initialize"):
        FastPromptModel.from_pretrained(model, {"p": empty}, tokenizer)
    served = FastPromptModel.from_pretrained(model, {"p": make_prompt("<P>{text}", model, tokenizer, 0)}, tokenizer)
    with pytest.raises(NotInitializedError, match=r"no rows yet; call initialize"):
        served.add_prompt("q", empty)
    assert list(served.prompts) == ["p"]
