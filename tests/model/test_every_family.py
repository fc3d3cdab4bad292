"""A batch of requests of different lengths against each alone, in every family that transformers generates with."""

from __future__ import annotations

import pytest
from every_family import build, family_names
from model_cases import make_prompt
from tiny_models import tiny_tokenizer
from tolerances import LOGPROB_ERROR

from ruprompt_fast import FastPromptModel

TEXTS = ["где-то там далеко", "ab", "абвгд еж"]
SETTINGS = {"max_new_tokens": 3, "eos_token_id": [], "output_scores": True}


def serve(family: str) -> FastPromptModel:
    model, tokenizer = build(family), tiny_tokenizer()
    prompt = make_prompt("<P*3>{text}", model, tokenizer, seed=0)
    return FastPromptModel.from_pretrained(model, {"p": prompt}, tokenizer)


@pytest.mark.parametrize("family", family_names())
def test_a_batch_gives_what_each_gives_alone(family: str) -> None:
    served = serve(family)
    found = served.generate(TEXTS, "p", **SETTINGS)
    for text, output in zip(TEXTS, found, strict=True):
        (alone,) = served.generate(text, "p", **SETTINGS)
        assert output.token_ids == alone.token_ids
        assert output.logprobs == pytest.approx(alone.logprobs, abs=LOGPROB_ERROR)


@pytest.mark.parametrize("family", ["seq2seq:bart", "seq2seq:t5", "causal:bart", "causal:xglm", "causal:bloom"])
def test_classes_of_a_batch_are_those_of_each_alone(family: str) -> None:
    served = serve(family)
    labels = ["а", "бв"]
    for text, output in zip(TEXTS, served.classify(TEXTS, "p", labels=labels), strict=True):
        (alone,) = served.classify(text, "p", labels=labels)
        assert list(output.probabilities.values()) == pytest.approx(
            list(alone.probabilities.values()), abs=LOGPROB_ERROR
        )


def test_an_encoder_reads_positions_as_transformers_has_them() -> None:
    """BART's positions are absolute: its own generate on unpadded ids is what every request of a batch must give."""
    model, tokenizer = build("seq2seq:bart"), tiny_tokenizer()
    ids = [tokenizer(text, return_tensors="pt").input_ids for text in TEXTS]
    plain = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 1}
    expected = [model.generate(one, **plain)[0, 1:].tolist() for one in ids]
    served = FastPromptModel.from_pretrained(model, tokenizer=tokenizer)
    found = served.generate(TEXTS, max_new_tokens=5, eos_token_id=[])
    assert [output.token_ids for output in found] == expected


def test_layers_that_attend_twice_take_transformers_own_generate() -> None:
    served = serve("causal:diffllama")
    assert served.stats().path == "fallback"
    assert "attends more than once" in served.stats().reason
