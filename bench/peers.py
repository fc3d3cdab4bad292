"""Our model and its peers with one method: greedy continuations of tasks, of exact lengths.

All of them tokenize the texts themselves. Whatever pads, pads left with a mask, as its users do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ruprompt_fast import FastPromptModel, Prompt

THREADS = torch.get_num_threads()


class Task(NamedTuple):
    """A text to continue by exactly so many tokens, after a prompt or none."""

    text: str
    num_new_tokens: int
    prompt: str | None = None


class System(Protocol):
    """Something that continues texts."""

    def generate(self, tasks: Sequence[Task]) -> list[list[int]]:
        """The new token ids of every task."""


def greedy(num_new_tokens: int) -> GenerationConfig:
    """Greedy decoding of exactly so many tokens."""
    return GenerationConfig(do_sample=False, max_new_tokens=num_new_tokens, min_new_tokens=num_new_tokens)


class Ours:
    """A :class:`FastPromptModel`.

    Args:
        source: a model, or the folder of one.
        dtype: ``float32``, ``bfloat16`` or, for weights of 8 bits, ``int8``.
        prompts: the prompts by name.
        tokenizer: of a model given as an object.
        max_batch_size: maximum number of concurrent tasks.
        threads: how many threads compute; the model decides by default.
        device: where the model computes.
    """

    def __init__(
        self,
        source: PreTrainedModel | Path,
        dtype: str,
        prompts: Mapping[str, Prompt] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_batch_size: int = 64,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        precision: Any = {"quantization": "int8"} if dtype == "int8" else {"dtype": dtype}
        self.model = FastPromptModel.from_pretrained(
            source, prompts, tokenizer, device=device, max_batch_size=max_batch_size, threads=threads, **precision
        )

    def generate(self, tasks: Sequence[Task]) -> list[list[int]]:
        configs = {length: greedy(length) for length in {task.num_new_tokens for task in tasks}}
        outputs = self.model.generate(
            [task.text for task in tasks],
            [task.prompt for task in tasks],
            [configs[task.num_new_tokens] for task in tasks],
        )
        return [output.token_ids for output in outputs]


class Transformers:
    """transformers' own ``generate`` on one padded batch, without prompts."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model: Any = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def from_folder(cls, folder: Path) -> Transformers:
        """In float32, as PyTorch and transformers choose their kernels."""
        return cls(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))

    def generate(self, tasks: Sequence[Task]) -> list[list[int]]:
        input_ids, mask = padded(self.tokenizer([task.text for task in tasks])["input_ids"])
        return self.continue_batch(input_ids, mask, tasks)

    def continue_batch(self, input_ids: Tensor, mask: Tensor, tasks: Sequence[Task]) -> list[list[int]]:
        """Continue a padded batch [tasks, longest] until its longest task is done."""
        config = greedy(max(task.num_new_tokens for task in tasks))
        input_ids, mask = input_ids.to(self.model.device), mask.to(self.model.device)
        with torch.inference_mode():
            sequences = self.model.generate(input_ids=input_ids, attention_mask=mask, generation_config=config)
        new = sequences[:, input_ids.shape[1] :].tolist()
        return [ids[: task.num_new_tokens] for ids, task in zip(new, tasks, strict=True)]


class CTranslate2:
    """CTranslate2 on one batch of tokens, without prompts; one worker with as many threads as PyTorch."""

    def __init__(self, folder: Path, compute_type: str) -> None:
        ctranslate2: Any = pytest.importorskip("ctranslate2", reason=missing("ctranslate2"))
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        converted = folder / "ctranslate2"
        if not converted.exists():
            _converter(ctranslate2, self.tokenizer.convert_ids_to_tokens(0))(str(folder)).convert(str(converted))
        self.generator = ctranslate2.Generator(
            str(converted), device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=THREADS
        )

    def generate(self, tasks: Sequence[Task]) -> list[list[int]]:
        [length] = {task.num_new_tokens for task in tasks}
        starts = [self.tokenizer.tokenize(task.text) for task in tasks]
        results = self.generator.generate_batch(
            starts, max_length=length, min_length=length, sampling_topk=1, include_prompt_in_result=False
        )
        return [result.sequences_ids[0] for result in results]


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [sequences, longest], padded left with id 0."""
    longest = max(len(ids) for ids in sequences)
    input_ids = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in sequences])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in sequences])
    return input_ids, mask


def missing(package: str) -> str:
    """Why a peer is skipped."""
    return f'the peer {package} is not installed: pip install "ruprompt-fast[bench]"'


def _converter(ctranslate2: Any, special: str) -> Any:
    """CTranslate2's converter; it wants special tokens, which a model without an end of text does not have."""

    class Converter(ctranslate2.converters.TransformersConverter):  # type: ignore[misc]
        def load_tokenizer(self, tokenizer_class: Any, model_name_or_path: str, **kwargs: Any) -> Any:
            tokens = {"bos_token": special, "eos_token": special, "unk_token": special}
            return tokenizer_class.from_pretrained(model_name_or_path, **tokens, **kwargs)

    return Converter
