"""``ruprompt-fast convert-base``: a GGUF file becomes a folder that is served."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ruprompt_fast import FastPromptModel
from ruprompt_fast.cli.convert_base import convert_base, run
from ruprompt_fast.errors import HubError, MissingDependencyError, OutputExistsError

WIDTH, HEADS, LAYERS, WIDE, CONTEXT = 32, 2, 2, 64, 64
TOKENS = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "b", "c", "▁a", "▁b"]

# Names of transformers' Llama, and what GGUF calls them.
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=WIDE,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def file(model: LlamaForCausalLM, tmp_path: Path) -> Path:
    path = tmp_path / "base.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([-float(index) for index in range(len(TOKENS))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(TOKENS) - 259)])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for layer in range(LAYERS):
        names |= {f"model.layers.{layer}.{ours}": f"blk.{layer}.{theirs}" for ours, theirs in _LAYER.items()}
    for ours, theirs in names.items():
        weight = model.get_submodule(ours).weight.detach()
        if "attn_q" in theirs or "attn_k" in theirs:  # GGUF has the halves of a rotary pair beside each other
            weight = weight.view(HEADS, 2, WIDTH // HEADS // 2, WIDTH).transpose(1, 2).reshape(WIDTH, WIDTH)
        writer.add_tensor(f"{theirs}.weight", np.ascontiguousarray(weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_folder_holds_the_files_model(
    file: Path, model: LlamaForCausalLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "base"
    run([str(file), str(folder)])
    assert str(folder) in capsys.readouterr().out
    assert [path.name for path in folder.parent.iterdir()] == ["base"]
    served = FastPromptModel.from_pretrained(folder)
    assert served.stats().path == "engine"
    ids = torch.tensor([served.tokenizer("ab ca").input_ids])
    expected = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert served.generate("ab ca", max_new_tokens=5, eos_token_id=[])[0].token_ids == expected.tolist()


def test_the_weights_take_the_dtype_that_is_asked_for(file: Path, tmp_path: Path) -> None:
    run([str(file), str(tmp_path / "base"), "--dtype", "bfloat16"])
    assert LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype="auto").dtype == torch.bfloat16


def test_a_folder_that_is_there_is_kept(file: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(OutputExistsError, match="base"):
        convert_base(file, tmp_path / "base")
    assert not list((tmp_path / "base").iterdir())


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04", b"GGUF\x03\x00\x00\x00 and nothing more"])
def test_what_is_no_such_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(HubError, match=r"bad\.gguf"):
        convert_base(tmp_path / "bad.gguf", tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_missing_package_is_named_with_its_extra(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"ruprompt-fast\[gguf\]"):
        convert_base(file, tmp_path / "base")
