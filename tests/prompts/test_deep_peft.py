"""Prefix tuning that PEFT trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import sharp_model, tiny_tokenizer
from tolerances import LOGITS_ERROR
from transformers import DynamicCache

from ruprompt_fast import FastPromptModel, PrefixTuningProvider, Prompt
from ruprompt_fast.errors import PromptFileError
from ruprompt_fast.prompts import KVShape

SHAPE = KVShape(num_layers=2, num_key_value_heads=2, head_dim=3)


def adapter(folder: Path, num_rows: int = 4, width: int = SHAPE.row_width, **changes: Any) -> Path:
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": 4,
        "num_layers": 2,
        "num_attention_heads": 2,
        "token_dim": 6,
        "num_transformer_submodules": 1,
        "base_model_name_or_path": "gpt2",
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"prompt_embeddings": torch.rand(num_rows, width)}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_logits_equal_pefts(tmp_path: Path, family: str, projection: bool) -> None:
    peft = pytest.importorskip("peft", reason="compares with PEFT's own model; peft is not installed")
    model, tokenizer = sharp_model(family), tiny_tokenizer()
    ids = torch.tensor([tokenizer("привет, как дела")["input_ids"]])
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=9, prefix_projection=projection, encoder_hidden_size=8
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        text = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
            suppress_tokens=list(range(len(tokenizer), model.config.vocab_size)) or None,
        )[0, ids.shape[1] :]
        plain = theirs.base_model(input_ids=ids).logits
    assert (plain - expected).abs().max() > 0.1

    prompt = Prompt.from_pretrained(tmp_path)
    assert isinstance(prompt.provider, PrefixTuningProvider)
    assert prompt.format.template == "<P*9>{text}"
    cache = DynamicCache()
    for layer, pair in enumerate(prompt.provider.keys_values()):
        cache.update(*(part.detach().transpose(0, 1)[None] for part in pair), layer)
    with torch.no_grad():
        logits = sharp_model(family)(input_ids=ids, past_key_values=cache).logits
    assert (logits - expected).abs().max() <= LOGITS_ERROR
    served = FastPromptModel.from_pretrained(sharp_model(family), {"peft": tmp_path}, tokenizer)
    (output,) = served.generate("привет, как дела", "peft", max_new_tokens=8, do_sample=False, eos_token_id=2)
    assert output.token_ids == text.tolist()[: len(output.token_ids)]
    assert served.stats().path == "engine"


def test_sizes(tmp_path: Path) -> None:
    prompt = Prompt.from_pretrained(adapter(tmp_path))
    assert prompt.provider.kv_shape == SHAPE
    assert prompt.config.pretrained_model_name == "gpt2"
    prompt.save_pretrained(tmp_path / "ours")
    assert torch.equal(Prompt.from_pretrained(tmp_path / "ours").rows(), prompt.rows())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"num_layers": None}, "num_layers=None"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_attention_heads": 4}, "a multiple of the heads; found .*num_attention_heads=4, token_dim=6"),
        ({"token_dim": "6"}, "token_dim='6'"),
        ({"num_transformer_submodules": 2}, "found an encoder-decoder's"),
        ({"width": 23}, r"expected rows \[rows, 24\]"),
        ({"num_rows": 8}, "expected 4 rows.*found 8"),
    ],
)
def test_adapters_that_contradict_themselves(tmp_path: Path, changes: dict[str, Any], found: str) -> None:
    with pytest.raises(PromptFileError, match=found):
        Prompt.from_pretrained(adapter(tmp_path, **changes))
