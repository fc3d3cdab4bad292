"""Odd inputs, labels, names and constructor arguments: a named error that says where, at once, or an answer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from engine.engine_cases import ENDLESS, assert_nothing_left, serve
from model_cases import make_prompt
from tiny_models import CONTEXT, VOCAB, tiny_model, tiny_tokenizer
from transformers import GenerationConfig, GPT2Model

from ruprompt_fast import FastPromptModel, errors

HALF = "\ud83d"
LONG = "а" * 40_000_000


@pytest.fixture(scope="module")
def model() -> FastPromptModel:
    return serve()


def quick(call: Callable[[], object], error: type[Exception], match: str) -> None:
    """The call is refused without much work, in a message of a size to read."""
    start = time.process_time()
    with pytest.raises(error, match=match) as caught:
        call()
    assert time.process_time() - start < 20.0
    assert len(str(caught.value)) <= errors.MAX_MESSAGE_CHARS


# inputs

INPUTS: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (None, errors.FieldTypeError, "NoneType"),
    "number": (5, errors.FieldTypeError, "int"),
    "bytes": (b"abc", errors.FieldTypeError, "bytes"),
    "array of no dimension": (np.array(3), errors.FieldTypeError, "ndarray"),
    "endless": (count(), errors.FieldTypeError, "input 0"),
    "list of lists": ([["да"]], errors.FieldTypeError, "input 0.*list"),
    "second is bytes": (["да", b"a"], errors.FieldTypeError, "input 1.*bytes"),
    "no inputs": ([], errors.EmptyInputError, "empty"),
    "half a pair": (["да", f"нет {HALF}"], errors.FieldTypeError, r"'text' of input 1 holds '\\ud83d' at character 4"),
    "half a pair in a field": ({"text": HALF}, errors.FieldTypeError, "'text' of input 0"),
    "value of another type": ({"text": 3}, errors.FieldTypeError, "'text' of input 0.*int"),
    "name of another type": ({3: "а", "text": "а"}, errors.ExtraFieldError, "3"),
    "many names": ({str(k): "а" for k in range(50_000)}, errors.MissingFieldError, "text"),
    "long": (["да", LONG], errors.ContextLengthError, f"input 1 has 40000000 characters.*{100 * CONTEXT}"),
    "long name": ({"text": "а", "б" * 5_000_000: "а"}, errors.ExtraFieldError, "found also"),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("prompt", [None, "short"])
def test_inputs(model: FastPromptModel, prompt: str | None, name: str) -> None:
    inputs, error, match = INPUTS[name]
    quick(lambda: model.generate(inputs, prompt, max_new_tokens=2), error, match)
    quick(lambda: model.count_tokens(inputs, prompt), error, match)
    quick(lambda: model.classify(inputs, prompt, labels=["да", "нет"]), error, match)
    assert_nothing_left(model)


def test_long_inputs_without_a_limit_of_the_model() -> None:
    quick(lambda: serve("t5").generate(LONG, max_new_tokens=2), errors.ContextLengthError, "40000000 characters")
    quick(lambda: serve("t5").generate("да", max_new_tokens=10**6), errors.ContextLengthError, "1000000")


def test_strings_of_numpy_are_strings(model: FastPromptModel) -> None:
    expected = model.generate(["да", "нет"], "short", max_new_tokens=3)
    assert model.generate(np.array(["да", "нет"]), "short", max_new_tokens=3) == expected
    assert model.generate((text for text in ("да", "нет")), "short", max_new_tokens=3) == expected


@pytest.mark.parametrize("name", [5, {"short"}, {"short": 1}, b"short", ["short", ["short"]], "б" * 1_000_000, HALF])
def test_names_of_prompts(model: FastPromptModel, name: Any) -> None:
    quick(lambda: model.generate(["да", "да"], name, max_new_tokens=2), errors.UnknownPromptError, "name|loaded")


@pytest.mark.parametrize("names", ["short", 5, b"short"])
def test_names_to_warm_up(model: FastPromptModel, names: Any) -> None:
    quick(lambda: model.warm_up(names), errors.UnknownPromptError, "list of names")


@pytest.mark.parametrize("name", [5, None, [], {"a"}])
def test_names_to_load_prompts_under(model: FastPromptModel, name: Any) -> None:
    quick(lambda: model.add_prompt(name, model.prompts["short"]), errors.FieldTypeError, "name")
    quick(lambda: model.remove_prompt(name), errors.UnknownPromptError, "loaded")
    quick(lambda: model.warm_up([name]), errors.UnknownPromptError, "loaded")


# labels

LABELS: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (None, errors.LabelError, "None"),
    "set": ({"да", "нет"}, errors.LabelError, "list"),
    "generator": ((label for label in ("да", "нет")), errors.LabelError, "list"),
    "text": ("да нет", errors.LabelError, "list"),
    "one": (["да"], errors.LabelError, "two"),
    "number": (["да", 5], errors.LabelError, "label 1.*5"),
    "empty": (["да", ""], errors.LabelError, "label 1"),
    "equal": (["да", "да"], errors.LabelError, "differ"),
    "half a pair": (["да", f"нет{HALF}"], errors.LabelError, "label 1.*character 3"),
    "long": (["да", LONG], errors.LabelError, "label 1 may have 4096 characters; found 40000000"),
    "many tokens": (["да", "а" * 300], errors.LabelError, "at most 256.*has 300"),
    "many": (["да"] * 1_000_000, errors.LabelError, "at most 4096"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels(model: FastPromptModel, name: str) -> None:
    labels, error, match = LABELS[name]
    quick(lambda: model.classify("да", "short", labels=labels), error, match)
    assert_nothing_left(model)


def test_many_requests_with_long_labels_are_scored_as_each_alone(model: FastPromptModel) -> None:
    texts, labels = [f"да {letter}" for letter in "абвгд" * 20], ["а" * 90, "б" * 90, "нет"]
    together = model.classify(texts, "short", labels=labels)
    for text, output in list(zip(texts, together, strict=True))[::17]:
        alone = model.classify(text, "short", labels=labels)[0]
        assert output.probabilities == pytest.approx(alone.probabilities, abs=1e-5)


# tokens that the model has no row for


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("added", ["before", "after"])
def test_tokens_without_a_row(family: str, added: str) -> None:
    """Refused before anything runs, also where they were added since; whoever does not use them is served."""
    base, tokenizer = tiny_model(family), tiny_tokenizer()
    more = [f"[{index}]" for index in range(VOCAB - len(tokenizer) + 5)]
    if added == "before":
        tokenizer.add_tokens(more)
    prompts = {"short": make_prompt("<P*3>{text}", base, tiny_tokenizer(), 0)}
    served = FastPromptModel.from_pretrained(base, prompts, tokenizer=tokenizer)
    expected = served.generate(["да", "да"], ["short", None], max_new_tokens=5, **ENDLESS)
    if added == "after":
        tokenizer.add_tokens(more)
    for text in (more[-1], more[-2], f"да{more[-1]}нет"):
        with pytest.raises(errors.TokenIdError, match=r"input 1 holds the token '\[\d*\]' with id 6\d.*60 rows"):
            served.generate(["да", text], ["short", None], max_new_tokens=2)
        with pytest.raises(errors.TokenIdError, match="input 0"):
            served.generate({"text": text}, "short", max_new_tokens=2)
        with pytest.raises(errors.TokenIdError, match="label 1"):
            served.classify("да", labels=["да", text])
    literal = make_prompt(f"{more[-1]}<P*3>{{text}}", base, tiny_tokenizer(), 0)
    with pytest.raises(errors.TokenIdError, match="template of prompt 'literal'"):
        served.add_prompt("literal", literal)
    assert "literal" not in served.prompts
    assert served.generate(["да", "да"], ["short", None], max_new_tokens=5, **ENDLESS) == expected
    assert served.generate(["да", "да"], ["short", None], max_new_tokens=5, stop_strings=[more[-1]], **ENDLESS)
    served.warm_up()
    served.check_integrity()


# how much one request may ask for

TOO_MUCH: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "beams": ({"num_beams": 10_000}, errors.CapacityError, "num_beams may be at most 256.*found 10000"),
    "samples": (
        {"num_return_sequences": 20_000, "do_sample": True},
        errors.CapacityError,
        "num_return_sequences may be at most 256.*found 20000",
    ),
    "n-grams": ({"encoder_no_repeat_ngram_size": 2**31}, errors.SettingError, f"at most {CONTEXT}; found 2147483648"),
    "stop strings": ({"stop_strings": ["а"] * 1000}, errors.SettingError, "at most 256.*found 1000"),
    "stop string": ({"stop_strings": LONG}, errors.SettingError, "1024 characters; found 40000000"),
    "bad words": ({"bad_words_ids": [[5, 6]] * 50_000}, errors.SettingError, "at most 65536.*found 100000"),
    "bad word": ({"bad_words_ids": [[5] * 1000]}, errors.SettingError, f"at most {CONTEXT}"),
    "biases": ({"sequence_bias": [[[5], 1.0]] * 70_000}, errors.SettingError, "at most 65536.*found 70000"),
    "suppressed": ({"suppress_tokens": range(10**9)}, errors.SettingError, f"at most {VOCAB}.*found 1000000000"),
    "logit biases": ({"logit_bias": dict.fromkeys(range(10**6), 1.0)}, errors.SettingError, f"at most {VOCAB}"),
    "ends": ({"eos_token_id": list(range(1000))}, errors.SettingError, "at most 128"),
    "power": ({"length_penalty": 400.0, "num_beams": 3}, errors.SettingError, "length_penalty must be at most"),
    "id": ({"suppress_tokens": [2**63]}, errors.SettingError, "suppress_tokens"),
    "end": ({"eos_token_id": 2**63, "num_beams": 2}, errors.SettingError, "eos_token_id"),
}


# A T5 has no positions to run out of.
ON_BOTH = [(family, name) for family in ("llama", "t5") for name in TOO_MUCH if (family, name) != ("t5", "bad word")]


@pytest.mark.parametrize(("family", "name"), ON_BOTH)
def test_too_much_for_one_request(model: FastPromptModel, family: str, name: str) -> None:
    settings, error, match = TOO_MUCH[name]
    if family == "t5":
        model, match = serve("t5"), match.replace(f"{CONTEXT}; found", "32768; found")
    quick(lambda: model.generate("да", "short", **{"max_new_tokens": 4, **settings}), error, match)


def test_as_many_sequences_as_a_request_may_have() -> None:
    served = serve(max_batch_size=2)
    assert len(served.generate("да", "short", num_beams=8, num_return_sequences=8, max_new_tokens=3)) == 8
    with pytest.raises(errors.CapacityError, match="at most 8, 4 times max_batch_size=2; found 9"):
        served.generate("да", "short", num_beams=9, max_new_tokens=3)


def test_length_penalties_at_the_border(model: FastPromptModel) -> None:
    for penalty in (-25.0, 25.0):
        output = model.generate("да", "short", num_beams=3, length_penalty=penalty, max_new_tokens=10)[0]
        assert output.token_ids


def test_ngrams_of_one_token_after_a_prompt(model: FastPromptModel) -> None:
    for name in ("encoder_no_repeat_ngram_size", "no_repeat_ngram_size"):
        settings = {"encoder_repetition_penalty": 1.1, name: 1, "max_new_tokens": 10, **ENDLESS}
        output = model.generate("привет", "short", **settings)[0]
        read = set(model.tokenizer("привет")["input_ids"])
        assert not read & set(output.token_ids)


# what callers give is theirs, and numbers may come from libraries


def test_nothing_that_is_given_changes(model: FastPromptModel) -> None:
    lists: dict[str, Any] = {
        "suppress_tokens": [7, 8],
        "eos_token_id": [2],
        "stop_strings": ["я"],
        "bad_words_ids": [[5]],
    }
    config = GenerationConfig(max_new_tokens=4, sequence_bias={(6,): 1.0}, **copy.deepcopy(lists))
    before, kept = config.to_dict(), copy.deepcopy(lists)
    for served in (model, serve("t5")):
        served.generate(["да", "нет"], "short", config)
        served.generate("да", "short", max_new_tokens=4, **lists)
        served.generate("да", "short", config, do_sample=True, num_beams=2)
    assert (config.to_dict(), lists) == (before, kept)


def test_the_models_settings_are_those_of_its_loading() -> None:
    base = tiny_model("llama")
    base.generation_config.max_new_tokens = 3
    served = FastPromptModel.from_pretrained(base, tokenizer=tiny_tokenizer())
    base.generation_config.max_new_tokens = 7
    base.generation_config.num_beams = "many"
    assert len(served.generate("да", eos_token_id=None)[0].token_ids) == 3
    assert base.generation_config.max_new_tokens == 7


def test_numbers_of_other_libraries(model: FastPromptModel) -> None:
    plain = {"eos_token_id": 3, "suppress_tokens": [5, 6], "temperature": 0.5, "do_sample": True, "seed": 4, "top_k": 9}
    other = {
        "eos_token_id": torch.tensor(3),
        "suppress_tokens": np.array([5, 6]),
        "temperature": np.float64(0.5),
        "do_sample": np.bool_(True),
        "seed": np.int64(4),
        "top_k": torch.tensor(9),
    }
    assert model.generate("да", "short", **plain) == model.generate("да", "short", **other)


# the constructor

CONSTRUCTOR: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "memory": ({"kv_cache_bytes": 10**15}, errors.SettingError, "kv_cache_bytes=1000000000000000"),
    "memory of a float": ({"kv_cache_bytes": 1e9}, errors.SettingError, "kv_cache_bytes"),
    "memory beyond integers": ({"host_cache_bytes": 10**5000}, errors.SettingError, "host_cache_bytes.*bits"),
    "batch": ({"max_batch_size": 10**9}, errors.SettingError, "max_batch_size"),
    "batch as a text": ({"max_batch_size": "8"}, errors.SettingError, "max_batch_size"),
    "step": ({"max_step_tokens": 2**40}, errors.SettingError, "max_step_tokens"),
    "dtype int4": ({"dtype": "int4"}, errors.SettingError, "int4"),
    "dtype of integers": ({"dtype": torch.int8}, errors.SettingError, "int8"),
    "dtype of another kind": ({"dtype": np.array(["int8"])}, errors.SettingError, "dtype"),
    "dtype that is none": ({"dtype": "nn"}, errors.SettingError, "nn"),
    "device": ({"device": "nope"}, errors.SettingError, "device.*nope"),
    "device without numbers": ({"device": "meta"}, errors.SettingError, "device.*meta"),
    "device of another kind": ({"device": 1.5}, errors.SettingError, "device"),
    "prompts in a list": ({"prompts": ["a"]}, errors.PromptInitError, "prompts"),
    "prompts of another kind": ({"prompts": {"a": 5}}, errors.PromptInitError, "int"),
    "tokenizer": ({"tokenizer": 5}, errors.UnsupportedModelError, "tokenizer.*int"),
    "tokenizer elsewhere": ({"tokenizer": "/no/such/folder"}, errors.HubError, "tokenizer.*no/such"),
    "model": ({"model": 5}, errors.UnsupportedModelError, "model.*int"),
    "module": ({"model": torch.nn.Linear(2, 2)}, errors.UnsupportedModelError, "model.*Linear"),
    "model elsewhere": ({"model": "/no/such/folder"}, errors.HubError, "model.*no/such"),
    "model without a name": ({"model": ""}, errors.HubError, "model"),
}


@pytest.mark.parametrize("name", CONSTRUCTOR)
def test_constructor(name: str) -> None:
    arguments, error, match = CONSTRUCTOR[name]
    base = tiny_model("llama").train()
    embedding = base.get_input_embeddings()
    quick(
        lambda: FastPromptModel.from_pretrained(**{"model": base, "tokenizer": tiny_tokenizer(), **arguments}),
        error,
        match,
    )
    assert base.get_input_embeddings() is embedding
    assert base.training


def test_models_and_options_that_cannot_work() -> None:
    quick(
        lambda: FastPromptModel(GPT2Model(tiny_model("gpt2").config), tiny_tokenizer()),
        errors.UnsupportedModelError,
        "GPT2Model.*cannot generate",
    )
    quick(lambda: FastPromptModel(tiny_model("gpt2"), tiny_tokenizer(), options=5), errors.SettingError, "options")
