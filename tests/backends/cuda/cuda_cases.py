"""Engines on a card."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from backends.cuda.engine_cases import NUM_NEW, case
from engine.reference import NAMES, TEXTS
from tiny_models import tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ruprompt_fast import FastPromptModel
from ruprompt_fast.backends import BACKENDS
from ruprompt_fast.backends.cuda import CudaBackend, CudaOptions
from ruprompt_fast.cache import HostPages

CUDA = torch.device("cuda", 0)
MAX_BATCH = 4
ENDLESS: dict[str, Any] = {"eos_token_id": None}


def loaded(base: PreTrainedModel, prompts: Any = None, **settings: Any) -> FastPromptModel:
    """A copy of a model, on the card."""
    settings = {"device": CUDA, "max_batch_size": MAX_BATCH, **settings}
    served = FastPromptModel.from_pretrained(copy.deepcopy(base), prompts, tiny_tokenizer(), **settings)
    assert served.stats().path == "engine", served.stats().reason
    return served


def serve(family: str = "llama", **settings: Any) -> FastPromptModel:
    """A model and its prompts, on the card."""
    return loaded(case(family).base, case(family).prompts, **settings)


@functools.cache
def llama() -> FastPromptModel:
    """In float32, as users have it."""
    return serve()


def with_norm(wrapper: type[nn.Module]) -> PreTrainedModel:
    """The model with its last norm in a module of that kind."""
    model: Any = copy.deepcopy(case().base)
    model.model.norm = wrapper(model.model.norm)
    return model


@contextmanager
def engines_with(options: CudaOptions) -> Iterator[None]:
    """Within the block, engines on the card are made with these options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, CUDA.type, lambda device, dtype: CudaBackend(device, dtype, options))
        yield


def ids_of(served: FastPromptModel, num: int = len(TEXTS), **settings: Any) -> list[list[int]]:
    """The tokens of the first requests, greedy."""
    outputs = served.generate(TEXTS[:num], NAMES[:num], **{"max_new_tokens": NUM_NEW, **ENDLESS, **settings})
    return [output.token_ids for output in outputs]


def bits(host_pages: HostPages) -> list[Tensor]:
    """What is in pages, as soon as it has arrived."""
    torch.cuda.synchronize()
    return [part.view(torch.uint8) for part in (*host_pages.keys, *host_pages.values)]
