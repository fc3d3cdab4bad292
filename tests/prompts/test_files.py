"""Prompts on disk: what is written, what is read, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts.tiny import WIDTH, tiny_model, tiny_tokenizer
from safetensors.torch import save, save_file
from torch import Tensor

from ruprompt_fast.errors import (
    NonFiniteRowsError,
    NotInitializedError,
    PromptFileError,
    PromptFolderError,
    RupromptError,
    UnknownArgumentError,
    UnsafeFileError,
)
from ruprompt_fast.prompts import LSTMPromptProvider, Prompt, PromptFormat, TensorPromptProvider

ROWS = torch.arange(3 * WIDTH, dtype=torch.float32).reshape(3, WIDTH)


def content(**config: object) -> dict[str, Any]:
    return {
        "format": {"template": "<P*2>{text}<P>", "compiled_template": "<|P|><|P|>{text}<|P|>"},
        "config": {
            "embedding_dim": WIDTH,
            "prompt_length": 3,
            "pretrained_model_name": "ai-forever/rugpt3large_based_on_gpt2",
            "is_safe": False,
            **config,
        },
    }


def write_folder(folder: Path, description: object = None, *, rows: Any = ROWS, name: str | None = None) -> Path:
    """A folder as ruPrompts writes it, or with rows in a safetensors file."""
    folder.mkdir(exist_ok=True)
    text = description if isinstance(description, str) else json.dumps(description or content())
    (folder / "prompt.json").write_text(text, encoding="utf-8")
    path = folder / (name or "prompt_provider.bin")
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif path.suffix == ".safetensors":
        save_file({"prompt_embeddings": rows}, path)
    elif rows is not None:
        torch.save(rows, path)
    return folder


@pytest.fixture
def prompt() -> Prompt:
    prompt = Prompt(PromptFormat("<P>on</P>{text}<P*2>"), TensorPromptProvider())
    prompt.initialize(tiny_model(), tiny_tokenizer())
    return prompt


class TestWriting:
    def test_round_trip(self, prompt: Prompt, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "b"
        prompt.save_pretrained(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["prompt.json", "prompt_provider.safetensors"]
        assert json.loads((folder / "prompt.json").read_text()) == prompt.as_dict()
        for name in (folder, str(folder)):
            loaded = Prompt.from_pretrained(name)
            assert loaded.is_initialized
            assert not loaded.is_attached
            assert loaded.as_dict() == prompt.as_dict()
            assert torch.equal(loaded.rows(), prompt.rows())
            assert isinstance(loaded.provider, TensorPromptProvider)

    def test_files_have_the_usual_permissions(self, prompt: Prompt, tmp_path: Path) -> None:
        (tmp_path / "usual").touch()
        prompt.save_pretrained(tmp_path / "prompt", save_bin=True)
        modes = {path.stat().st_mode for path in [tmp_path / "usual", *(tmp_path / "prompt").iterdir()]}
        assert len(modes) == 1

    def test_for_ruprompts(self, prompt: Prompt, tmp_path: Path) -> None:
        prompt.save_pretrained(tmp_path, save_bin=True)
        tensor = torch.load(tmp_path / "prompt_provider.bin")
        assert type(tensor) is Tensor
        assert torch.equal(tensor, prompt.rows())
        stored = json.loads((tmp_path / "prompt.json").read_text())
        assert set(stored) == {"format", "config", "base_model"}  # ruPrompts reads the first two
        assert set(stored["format"]) == {"template", "compiled_template"}
        assert set(stored["config"]) == {"embedding_dim", "prompt_length", "pretrained_model_name", "is_safe"}

    def test_an_old_bin_is_not_left_behind(self, prompt: Prompt, tmp_path: Path) -> None:
        write_folder(tmp_path)
        prompt.save_pretrained(tmp_path)
        assert torch.equal(torch.load(tmp_path / "prompt_provider.bin"), prompt.rows())

    def test_networks_are_saved_as_rows(self, tmp_path: Path) -> None:
        prompt = Prompt(PromptFormat("<P*3>{text}"), LSTMPromptProvider())
        prompt.initialize(tiny_model(), tiny_tokenizer())
        prompt.save_pretrained(tmp_path)
        assert torch.equal(Prompt.from_pretrained(tmp_path).rows(), prompt.rows())

    def test_saved_under_a_key(self, prompt: Prompt, tmp_path: Path) -> None:
        prompt.format.set_key("joke")
        prompt.save_pretrained(tmp_path)
        loaded = Prompt.from_pretrained(tmp_path)
        assert loaded("x", return_ranges=True) == prompt("x", return_ranges=True)
        assert loaded.format.prompt_token == "<|[joke]P|>"

    def test_half_precision(self, prompt: Prompt, tmp_path: Path) -> None:
        for dtype in (torch.float16, torch.bfloat16):
            prompt.provider.to(dtype)
            prompt.save_pretrained(tmp_path)
            assert Prompt.from_pretrained(tmp_path).rows().dtype == dtype

    def test_nothing_is_written_of_an_uninitialized_prompt(self, tmp_path: Path) -> None:
        prompt = Prompt(PromptFormat("<P>"), TensorPromptProvider())
        with pytest.raises(NotInitializedError) as caught:
            prompt.save_pretrained(tmp_path / "new")
        assert isinstance(caught.value, UserWarning)
        assert not (tmp_path / "new").exists()

    def test_target_is_a_file(self, prompt: Prompt, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(PromptFolderError) as caught:
            prompt.save_pretrained(tmp_path / "file")
        assert isinstance(caught.value, UserWarning)

    def test_arguments_of_an_upload_without_one(self, prompt: Prompt, tmp_path: Path) -> None:
        with pytest.raises(UnknownArgumentError, match="repo_id"):
            prompt.save_pretrained(tmp_path / "new", repo_id="a/b")
        assert not (tmp_path / "new").exists()


class TestReading:
    def test_files_of_ruprompts(self, tmp_path: Path) -> None:
        prompt = Prompt.from_pretrained(write_folder(tmp_path))
        assert prompt.format.template == "<P*2>{text}<P>"
        assert prompt("x", return_ranges=True) == ("<|P|><|P|>x<|P|>", {"text": slice(10, 11)})
        assert prompt.config.pretrained_model_name == "ai-forever/rugpt3large_based_on_gpt2"
        assert torch.equal(prompt.rows(), ROWS)

    def test_without_config(self, tmp_path: Path) -> None:
        write_folder(tmp_path, {"format": content()["format"]})
        prompt = Prompt.from_pretrained(tmp_path)
        assert prompt.config.prompt_length is None
        assert prompt.is_initialized

    def test_safetensors_are_preferred(self, tmp_path: Path) -> None:
        write_folder(tmp_path)
        write_folder(tmp_path, rows=ROWS + 1, name="prompt_provider.safetensors")
        assert torch.equal(Prompt.from_pretrained(tmp_path).rows(), ROWS + 1)

    def test_further_entries_of_config_are_kept(self, tmp_path: Path) -> None:
        write_folder(tmp_path, content(note="hello"))
        prompt = Prompt.from_pretrained(tmp_path)
        prompt.save_pretrained(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "prompt.json").read_text())["config"]["note"] == "hello"

    def test_without_compiled_template(self, tmp_path: Path) -> None:
        write_folder(tmp_path, {"format": {"template": "<P*2>{text}<P>"}})
        assert Prompt.from_pretrained(tmp_path)("x") == "<|P|><|P|>x<|P|>"
        write_folder(tmp_path, {"format": {"template": "<P>a b c</P>{text}", "compiled_template": None}})
        with pytest.raises(PromptFileError, match="expected compiled_template"):
            Prompt.from_pretrained(tmp_path)

    @pytest.mark.parametrize("view", [ROWS.t().contiguous().t(), torch.nn.Parameter(ROWS), ROWS.double()])
    def test_harmless_tensors(self, tmp_path: Path, view: Tensor) -> None:
        rows = Prompt.from_pretrained(write_folder(tmp_path, rows=view)).rows()
        assert torch.equal(rows, ROWS)
        assert rows.dtype == torch.float32
        assert rows.is_contiguous()

    def test_subfolder(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "joke")
        assert Prompt.from_pretrained(tmp_path, subfolder="joke").is_initialized

    def test_old_serialization(self, tmp_path: Path) -> None:
        """ruPrompts' first prompts may have been saved without the zip container."""
        write_folder(tmp_path)
        torch.save(ROWS, tmp_path / "prompt_provider.bin", _use_new_zipfile_serialization=False)
        assert torch.equal(Prompt.from_pretrained(tmp_path).rows(), ROWS)


class TestMalformedDescriptions:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "expected JSON"),
            ("<html>not found</html>", "expected JSON"),
            ('{"format":', "expected JSON"),
            ("[" * 100_000, "expected JSON"),
            ("[]", "JSON object; found list"),
            ("{}", "compiled_template"),
            ('{"format": []}', "compiled_template"),
            ('{"format": {"template": 3}}', "compiled_template"),
            ('{"format": {"template": "<P>", "compiled_template": 3}}', "strings template and compiled_template"),
            ('{"format": {"template": "<P>", "serial": true}}', "serial"),
            ('{"format": {"template": "<P*x>"}}', "number of rows"),
            ('{"format": {"template": "<P>", "compiled_template": "<|P|>{"}}', "brace"),
            ('{"format": {"template": "<P>", "compiled_template": "text"}}', "expected markers"),
            ('{"format": {"template": "<P>"}, "config": []}', "config"),
            (json.dumps(content(prompt_length="3")), "config.prompt_length"),
            (json.dumps(content(embedding_dim=True)), "config.embedding_dim"),
            (json.dumps(content(pretrained_model_name=3)), "config.pretrained_model_name"),
            (json.dumps(content(prompt_length=4)), "prompt_length of 3"),
            (json.dumps(content(embedding_dim=4)), r"\[3, 4\]"),
            (json.dumps(content(is_safe=True)), "is_safe"),
        ],
    )
    def test_refused(self, tmp_path: Path, text: str, reason: str) -> None:
        write_folder(tmp_path, text)
        with pytest.raises(PromptFileError, match=reason) as caught:
            Prompt.from_pretrained(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert isinstance(caught.value, ValueError)

    def test_not_utf8(self, tmp_path: Path) -> None:
        write_folder(tmp_path)
        (tmp_path / "prompt.json").write_bytes('{"format": "привет"}'.encode("cp1251"))
        with pytest.raises(PromptFileError, match="expected JSON"):
            Prompt.from_pretrained(tmp_path)

    def test_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="expected a folder"):
            Prompt.from_pretrained(tmp_path / "nowhere")
        with pytest.raises(PromptFileError, match="expected a folder"):
            Prompt.from_pretrained("./nowhere")
        (tmp_path / "file").write_text("x")
        with pytest.raises(PromptFileError, match="found a file"):
            Prompt.from_pretrained(tmp_path / "file")
        with pytest.raises(PromptFileError, match=r"expected prompt\.json.*found file"):
            Prompt.from_pretrained(tmp_path)
        with pytest.raises(PromptFileError, match="no such folder"):
            Prompt.from_pretrained(tmp_path, subfolder="nowhere")
        write_folder(tmp_path, rows=None)
        with pytest.raises(PromptFileError, match=r"prompt_provider\.safetensors or prompt_provider\.bin"):
            Prompt.from_pretrained(tmp_path)


class _Bomb:
    """Runs code when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def nan_rows() -> Tensor:
    return torch.where(ROWS == 7, torch.nan, ROWS)


class TestUnsafeFiles:
    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_code_is_not_run(self, tmp_path: Path) -> None:
        mark = tmp_path / "owned"
        for rows in (pickle.dumps(_Bomb(mark)), _Bomb(mark), {"rows": _Bomb(mark)}, [ROWS, _Bomb(mark)]):
            write_folder(tmp_path / "p", rows=rows)
            with pytest.raises(UnsafeFileError, match="could run code") as caught:
                Prompt.from_pretrained(tmp_path / "p")
            assert isinstance(caught.value, PromptFileError)
            assert not mark.exists()

    @pytest.mark.parametrize(
        "rows",
        [
            lambda: ROWS.to_sparse(),
            lambda: ROWS.to_sparse_csr(),
            lambda: torch.quantize_per_tensor(ROWS, 0.1, 0, torch.qint8),
            lambda: torch.empty(3, WIDTH, device="meta"),
            lambda: {"weights": ROWS},
            lambda: [ROWS],
            lambda: None,
            lambda: 3,
            lambda: torch.ones(1).expand(3, WIDTH),
        ],
        ids=["sparse", "csr", "quantized", "meta", "dict", "list", "none", "number", "view"],
    )
    @pytest.mark.filterwarnings("ignore")
    def test_only_dense_tensors(self, tmp_path: Path, rows: Callable[[], Any]) -> None:
        write_folder(tmp_path, rows=b"")
        torch.save(rows(), tmp_path / "prompt_provider.bin")
        with pytest.raises(UnsafeFileError, match="safetensors"):
            Prompt.from_pretrained(tmp_path)

    @pytest.mark.parametrize("name", ["prompt_provider.bin", "prompt_provider.safetensors"])
    @pytest.mark.parametrize(
        ("rows", "error", "reason"),
        [
            (ROWS[:2], PromptFileError, r"expected rows \[3, 20\].*found \[2, 20\]"),
            (ROWS[:, :5].clone(), PromptFileError, r"found \[3, 5\]"),
            (ROWS.flatten(), PromptFileError, r"found \[60\]"),
            (ROWS[None], PromptFileError, r"found \[1, 3, 20\]"),
            (ROWS[:0], PromptFileError, r"found \[0, 20\]"),
            (ROWS.long(), PromptFileError, "floating-point"),
            (nan_rows(), NonFiniteRowsError, "NaN or infinity"),
            (ROWS / 0, NonFiniteRowsError, "NaN or infinity"),
        ],
    )
    def test_wrong_numbers(
        self, tmp_path: Path, name: str, rows: Tensor, error: type[RupromptError], reason: str
    ) -> None:
        write_folder(tmp_path, rows=rows.clone(), name=name)
        with pytest.raises(error, match=reason) as caught:
            Prompt.from_pretrained(tmp_path)
        assert name in str(caught.value)

    @pytest.mark.parametrize("name", ["prompt_provider.bin", "prompt_provider.safetensors"])
    def test_truncated(self, tmp_path: Path, name: str) -> None:
        write_folder(tmp_path, name=name)
        whole = (tmp_path / name).read_bytes()
        for size in (0, 1, 7, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(PromptFileError, match=name):
                Prompt.from_pretrained(tmp_path)

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @settings(max_examples=60, deadline=None)
    @given(data=st.binary(max_size=200))
    def test_garbage(self, tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
        folder = tmp_path_factory.mktemp("garbage")
        for name in ("prompt_provider.bin", "prompt_provider.safetensors"):
            write_folder(folder, rows=data, name=name)
            with pytest.raises(PromptFileError):
                Prompt.from_pretrained(folder)

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @settings(max_examples=60, deadline=None)
    @given(position=st.integers(0, 10_000), value=st.integers(0, 255))
    def test_one_wrong_byte(self, tmp_path_factory: pytest.TempPathFactory, position: int, value: int) -> None:
        """Whatever a damaged file is taken for, it is either rows of the right shape or a named error."""
        folder = write_folder(tmp_path_factory.mktemp("damaged"))
        path = folder / "prompt_provider.bin"
        whole = bytearray(path.read_bytes())
        whole[position % len(whole)] = value
        path.write_bytes(whole)
        try:
            prompt = Prompt.from_pretrained(folder)
        except (PromptFileError, NonFiniteRowsError):
            return
        assert prompt.rows().shape == (3, WIDTH)

    def test_other_names_in_safetensors(self, tmp_path: Path) -> None:
        write_folder(tmp_path, rows=save({"weights": ROWS}), name="prompt_provider.safetensors")
        with pytest.raises(PromptFileError, match=r"prompt_embeddings.*found \['weights'\]"):
            Prompt.from_pretrained(tmp_path)
        both = save({"prompt_embeddings": ROWS, "more": ROWS + 1})
        write_folder(tmp_path, rows=both, name="prompt_provider.safetensors")
        with pytest.raises(PromptFileError, match="one tensor"):
            Prompt.from_pretrained(tmp_path)
