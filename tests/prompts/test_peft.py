"""Prompts that PEFT trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prompts.tiny import WIDTH, tiny_model, tiny_tokenizer
from safetensors.torch import save_file
from torch import Tensor

from ruprompt_fast.errors import NonFiniteRowsError, PromptFileError, UnsafeFileError
from ruprompt_fast.prompts import Prompt

ROWS = torch.rand(4, WIDTH)


def adapter(folder: Path, kind: str = "PROMPT_TUNING", tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    values = {"peft_type": kind, "num_virtual_tokens": 4, "base_model_name_or_path": "gpt2", **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file({"prompt_embeddings": ROWS} if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "CPT"])
def test_rows_before_the_text(tmp_path: Path, kind: str) -> None:
    prompt = Prompt.from_pretrained(adapter(tmp_path, kind))
    assert prompt.format.template == "<P*4>{text}"
    assert prompt("x") == "<|P|>" * 4 + "x"
    assert prompt.config.as_dict() == {
        "embedding_dim": WIDTH,
        "prompt_length": 4,
        "pretrained_model_name": "gpt2",
        "is_safe": False,
    }
    assert torch.equal(prompt.rows(), ROWS)
    prompt.patch(tiny_model(), tiny_tokenizer())
    prompt.save_pretrained(tmp_path / "ours")
    assert torch.equal(Prompt.from_pretrained(tmp_path / "ours").rows(), ROWS)


def test_encoder_decoder_adapters_use_the_first_half(tmp_path: Path) -> None:
    both = torch.rand(8, WIDTH)
    prompt = Prompt.from_pretrained(adapter(tmp_path, tensors={"prompt_embeddings": both}))
    assert torch.equal(prompt.rows(), both[:4])


class TestMultitask:
    @pytest.fixture
    def tensors(self) -> dict[str, Tensor]:
        return {
            "prompt_embeddings": ROWS.clone(),
            "prefix_task_cols": torch.rand(3, 4, 2),
            "prefix_task_rows": torch.rand(3, 2, WIDTH),
        }

    def test_tasks(self, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        adapter(tmp_path, "MULTITASK_PROMPT_TUNING", tensors)
        for task in range(3):
            factor = tensors["prefix_task_cols"][task] @ tensors["prefix_task_rows"][task]
            prompt = Prompt.from_pretrained(tmp_path, task_id=task)
            assert torch.allclose(prompt.rows(), ROWS * factor)
        with pytest.raises(PromptFileError, match=r"holds 3 tasks; say which with task_id=0\.\.2"):
            Prompt.from_pretrained(tmp_path)
        for task in (-1, 3):
            with pytest.raises(PromptFileError, match="from 0 to 2"):
                Prompt.from_pretrained(tmp_path, task_id=task)

    def test_a_single_task_needs_no_name(self, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        single = {name: t if name == "prompt_embeddings" else t[:1].clone() for name, t in tensors.items()}
        adapter(tmp_path, "MULTITASK_PROMPT_TUNING", single)
        assert Prompt.from_pretrained(tmp_path).is_initialized

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("prefix_task_cols", torch.rand(3, 5, 2)),
            ("prefix_task_rows", torch.rand(3, 3, WIDTH)),
            ("prefix_task_rows", torch.rand(2, 2, WIDTH)),
            ("prefix_task_cols", torch.rand(3, 4)),
            ("prefix_task_cols", None),
        ],
    )
    def test_factors_that_do_not_fit(
        self, tmp_path: Path, tensors: dict[str, Tensor], name: str, value: Tensor | None
    ) -> None:
        changed = {key: tensor for key, tensor in {**tensors, name: value}.items() if tensor is not None}
        with pytest.raises(PromptFileError, match="expected"):
            Prompt.from_pretrained(adapter(tmp_path, "MULTITASK_PROMPT_TUNING", changed), task_id=0)

    def test_not_finite(self, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        tensors["prefix_task_cols"][1] = torch.inf
        adapter(tmp_path, "MULTITASK_PROMPT_TUNING", tensors)
        assert Prompt.from_pretrained(tmp_path, task_id=0).is_initialized
        with pytest.raises(NonFiniteRowsError):
            Prompt.from_pretrained(tmp_path, task_id=1)

    def test_half_precision_is_computed_in_float32(self, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        """4 * 300 * 300 is more than half precision holds, and so is what 300 * 300 would be on the way."""
        tensors["prompt_embeddings"].fill_(0.5)
        for name in ("prefix_task_cols", "prefix_task_rows"):
            tensors[name].fill_(300)
        adapter(tmp_path, "MULTITASK_PROMPT_TUNING", {name: tensor.half() for name, tensor in tensors.items()})
        rows = Prompt.from_pretrained(tmp_path, task_id=1).rows()
        assert torch.equal(rows, torch.full((4, WIDTH), 0.5 * 2 * 300 * 300))

    def test_pickled_factors(self, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        adapter(tmp_path, "MULTITASK_PROMPT_TUNING", tensors)
        expected = Prompt.from_pretrained(tmp_path, task_id=2).rows()
        (tmp_path / "adapter_model.safetensors").unlink()
        torch.save(tensors, tmp_path / "adapter_model.bin")
        assert torch.equal(Prompt.from_pretrained(tmp_path, task_id=2).rows(), expected)

    def test_a_rank_that_is_not_low(self, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
        tensors["prefix_task_cols"], tensors["prefix_task_rows"] = torch.rand(3, 4, 257), torch.rand(3, 257, WIDTH)
        with pytest.raises(PromptFileError, match="of a rank from 1 to 256"):
            Prompt.from_pretrained(adapter(tmp_path, "MULTITASK_PROMPT_TUNING", tensors), task_id=0)

    def test_other_adapters_have_no_tasks(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="expected a multitask adapter for task 1; found PROMPT_TUNING"):
            Prompt.from_pretrained(adapter(tmp_path), task_id=1)


class TestRefusals:
    @pytest.mark.parametrize("kind", ["LORA", "IA3", "CARTRIDGE", None])
    def test_other_kinds(self, tmp_path: Path, kind: str) -> None:
        with pytest.raises(PromptFileError, match="Use PEFT for it"):
            Prompt.from_pretrained(adapter(tmp_path, kind))

    @pytest.mark.parametrize("count", [None, 0, "4", True, 4.0, 20_001, 10**17])
    def test_num_virtual_tokens(self, tmp_path: Path, count: object) -> None:
        with pytest.raises(PromptFileError, match="num_virtual_tokens"):
            Prompt.from_pretrained(adapter(tmp_path, num_virtual_tokens=count))

    def test_rows(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="expected 5 rows.*found 4"):
            Prompt.from_pretrained(adapter(tmp_path, num_virtual_tokens=5))
        with pytest.raises(PromptFileError, match=r"expected a tensor 'prompt_embeddings'; found \['x'\]"):
            Prompt.from_pretrained(adapter(tmp_path, tensors={"x": ROWS}))
        (tmp_path / "adapter_model.safetensors").unlink()
        with pytest.raises(PromptFileError, match="no such file"):
            Prompt.from_pretrained(tmp_path)

    def test_files_of_old_versions(self, tmp_path: Path) -> None:
        adapter(tmp_path)
        (tmp_path / "adapter_model.safetensors").unlink()
        torch.save({"prompt_embeddings": ROWS}, tmp_path / "adapter_model.bin")
        assert torch.equal(Prompt.from_pretrained(tmp_path).rows(), ROWS)
        torch.save({"prompt_embeddings": ROWS.to_sparse()}, tmp_path / "adapter_model.bin")
        with pytest.raises(UnsafeFileError):
            Prompt.from_pretrained(tmp_path)
        torch.save([ROWS], tmp_path / "adapter_model.bin")
        with pytest.raises(PromptFileError, match="named tensors"):
            Prompt.from_pretrained(tmp_path)
