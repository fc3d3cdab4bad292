"""What leaves a served model as it is does not have its engine made again."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from model.test_changed_models import answers, prompts_for, serve
from model_cases import make_prompt
from tiny_models import sharp_model, tiny_tokenizer

from ruprompt_fast import FastPromptModel

IDS = torch.tensor([[5, 6, 7, 8]])


@torch.inference_mode()
def _run(served: FastPromptModel, **settings: Any) -> None:
    served.model(**{"input_ids": IDS, **settings})


def _generate(served: FastPromptModel, **settings: Any) -> None:
    served.model.generate(IDS, **{"max_new_tokens": 3, "pad_token_id": 0, **settings})


def _in_threads(served: FastPromptModel) -> None:
    threads = [threading.Thread(target=_run, args=(served,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _profiled(served: FastPromptModel) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        answers(served)


def _other_prompt(served: FastPromptModel) -> None:
    served.add_prompt("other", make_prompt("<P*3>{text}", served.model, tiny_tokenizer(), 9))
    served.generate("да", "other", max_new_tokens=2)
    served.remove_prompt("other")


USES: dict[str, Callable[[FastPromptModel], Any]] = {
    "settings": lambda served: setattr(served.model.generation_config, "max_new_tokens", 9),
    "warnings": lambda served: setattr(served.model, "warnings_issued", {"length": True}),
    "forward": _run,
    "loss": lambda served: _run(served, labels=IDS),
    "long forward": lambda served: _run(served, input_ids=torch.arange(100)[None] % 50 + 3),
    "generate": _generate,
    "beams": lambda served: _generate(served, num_beams=2),
    "static cache": lambda served: _generate(served, cache_implementation="static"),
    "larger static cache": lambda served: _generate(served, cache_implementation="static", max_new_tokens=20),
    "lookup": lambda served: _generate(served, prompt_lookup_num_tokens=2),
    "pipeline": lambda served: tf.pipeline("text-generation", model=served.model, tokenizer=tiny_tokenizer())("да"),
    "reading": lambda served: (str(served.model), served.model.num_parameters(), served.model.state_dict()),
    "evaluation": lambda served: served.model.eval().requires_grad_(False).zero_grad(),
    "same device": lambda served: served.model.to("cpu").float(),
    "copies": lambda served: copy.deepcopy(served.model),
    "threads": _in_threads,
    "profiler": _profiled,
    "compiled function": lambda served: torch.compile(lambda x: x + 1, backend="eager")(IDS),
    "prompts": _other_prompt,
    "rows": lambda served: [prompt.rows() for prompt in served.prompts.values()],
}


def _num_steps(served: FastPromptModel) -> int:
    engine = served.stats().engine
    assert engine is not None
    return engine.scheduler["steps"]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "opt", "gemma3", "qwen3", "mistral"])
def test_the_engine_stays(family: str) -> None:
    model = sharp_model(family)
    served = serve(model, prompts_for(model))
    expected = answers(served)
    for name, use in USES.items():
        before = _num_steps(served)
        use(served)
        assert answers(served)[0] == expected[0], name
        assert _num_steps(served) > before, name  # an engine that is made again counts from 0
