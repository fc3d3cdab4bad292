"""Prompts that PEFT trained are read by the model as PEFT reads them: rows, then all that the tokenizer gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import VOCAB, sharp_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from ruprompt_fast import FastPromptModel, Prompt
from ruprompt_fast.prompts import kv_shape_of

ROWS, NEW = 5, 8
# The model's table has more rows; ids that the tokenizer does not have are never served.
NUM_TOKENS = len(tiny_tokenizer())
SETTINGS = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "suppress_tokens": list(range(NUM_TOKENS, VOCAB)),
}
TEXTS = ("привет, как дела", "", "а </s> б", " да")
CASES = {"none": ("", ""), "front": ("<s>", ""), "after": ("", "</s>"), "both": ("<s>", "</s>")}


def tokenizer_with(leading: str, trailing: str, metaspace: bool = False) -> PreTrainedTokenizerFast:
    """One token per character, with special tokens around every text; or with Llama's word boundaries."""
    tokenizer = tiny_tokenizer()
    if metaspace:
        vocabulary = {token.replace(" ", "▁"): index for token, index in tokenizer.get_vocab().items()}
        base = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
        base.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        base.decoder = decoders.Metaspace(prepend_scheme="first")
        names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, **names)
    single = " ".join(part for part in (leading, "$A", trailing) if part)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


def as_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids of ``tokenizer(text)``, where the text's own characters are data."""
    tokenizer.split_special_tokens = True
    try:
        return tokenizer(text).input_ids
    finally:
        tokenizer.split_special_tokens = False


def adapter(folder: Path, kind: str, model: PreTrainedModel) -> Tensor:
    """An adapter's files, made by hand; returns the rows that PEFT puts before the text."""
    generator = torch.Generator().manual_seed(1)
    width = model.get_input_embeddings().weight.shape[1]
    config: dict[str, Any] = {"peft_type": kind, "num_virtual_tokens": ROWS}
    shape = kv_shape_of(model.config) if kind == "PREFIX_TUNING" else None
    if shape is not None:
        width = shape.row_width
        config |= {
            "num_layers": shape.num_layers,
            "num_attention_heads": shape.num_key_value_heads,
            "token_dim": shape.num_key_value_heads * shape.head_dim,
        }
    rows = torch.randn(ROWS, width, generator=generator)
    tensors = {"prompt_embeddings": rows}
    if kind == "MULTITASK_PROMPT_TUNING":
        tensors["prefix_task_cols"] = torch.randn(1, ROWS, 2, generator=generator)
        tensors["prefix_task_rows"] = torch.randn(1, 2, width, generator=generator)
        rows = rows * (tensors["prefix_task_cols"][0] @ tensors["prefix_task_rows"][0])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return rows


@torch.no_grad()
def greedy_decoder(model: PreTrainedModel, rows: Tensor, ids: list[int], kind: str) -> list[int]:
    """What PEFT generates: rows in front of the embeddings of the ids, or keys and values before all of them."""
    table = model.get_input_embeddings()
    found: list[int] = []
    while len(found) < NEW and found[-1:] != [2]:
        tokens = table(torch.tensor([ids + found], dtype=torch.long))
        if kind == "PREFIX_TUNING":
            cache = DynamicCache()
            for layer, pair in enumerate(kv_shape_of(model.config).split(rows)):
                cache.update(*(part.transpose(0, 1)[None] for part in pair), layer)
            logits = model(inputs_embeds=tokens, past_key_values=cache).logits
        else:
            logits = model(inputs_embeds=torch.cat([rows[None], tokens], 1), use_cache=False).logits
        found.append(int(logits[0, -1, :NUM_TOKENS].argmax()))
    return found


@torch.no_grad()
def greedy_encoder_decoder(model: PreTrainedModel, rows: Tensor, ids: list[int]) -> list[int]:
    """Rows in front of the encoder's inputs; the decoder starts as the config says."""
    tokens = model.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))
    inputs = torch.cat([rows[None], tokens], 1)
    found: list[int] = []
    while len(found) < NEW and found[-1:] != [2]:
        begun = torch.tensor([[model.config.decoder_start_token_id, *found]])
        found.append(int(model(inputs_embeds=inputs, decoder_input_ids=begun).logits[0, -1, :NUM_TOKENS].argmax()))
    return found


def served_ids(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Any:
    served = FastPromptModel.from_pretrained(model, {"peft": folder}, tokenizer)
    outputs = served.generate(texts, "peft", max_new_tokens=NEW, do_sample=False, eos_token_id=2)
    return [output.token_ids for output in outputs]


def without_end(ids: list[int]) -> list[int]:
    return ids[:-1] if ids[-1:] == [2] else ids


@pytest.mark.parametrize("metaspace", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoders(tmp_path: Path, family: str, kind: str, case: str, metaspace: bool) -> None:
    tokenizer = tokenizer_with(*CASES[case], metaspace=metaspace)
    rows = adapter(tmp_path, kind, sharp_model(family))
    # A deep prompt alone gives no logits, so an empty text is no request.
    texts = [text for text in TEXTS if kind != "PREFIX_TUNING" or as_text(tokenizer, text)]
    expected = [greedy_decoder(sharp_model(family), rows, as_text(tokenizer, text), kind) for text in texts]
    found = served_ids(tmp_path, sharp_model(family), tokenizer, texts)
    assert list(map(without_end, found)) == list(map(without_end, expected))
    if kind == "PREFIX_TUNING":
        return
    model, prompt = sharp_model(family), Prompt.from_pretrained(tmp_path)
    prompt.patch(model, tokenizer)
    for text, ids in zip(texts, expected, strict=True):
        inputs = prompt.tokenize(text)
        dropped_in = model.generate(**inputs, **SETTINGS)[0, inputs["input_ids"].shape[1] :]
        assert without_end(dropped_in.tolist()) == without_end(ids)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "CPT", "MULTITASK_PROMPT_TUNING"])
def test_encoder_decoders(tmp_path: Path, kind: str, case: str) -> None:
    tokenizer = tokenizer_with(*CASES[case])
    rows = adapter(tmp_path, kind, sharp_model("t5"))
    expected = [greedy_encoder_decoder(sharp_model("t5"), rows, as_text(tokenizer, text)) for text in TEXTS]
    found = served_ids(tmp_path, sharp_model("t5"), tokenizer, list(TEXTS))
    assert list(map(without_end, found)) == list(map(without_end, expected))
    model, prompt = sharp_model("t5"), Prompt.from_pretrained(tmp_path)
    prompt.patch(model, tokenizer)
    for text, ids in zip(TEXTS, expected, strict=True):
        dropped_in = model.generate(**prompt.tokenize(text), **SETTINGS)[0, 1:]
        assert without_end(dropped_in.tolist()) == without_end(ids)
