"""FastPromptModel.generate: mixed batches equal what every request gives alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import VOCAB, tiny_tokenizer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from ruprompt_fast import FastPromptModel, GenerationOutput, Prompt
from ruprompt_fast.embedding import detach_prompts, original_embedding
from ruprompt_fast.errors import SettingError

REQUESTS = [
    ("привет, как дела", "short"),
    ("да", "around"),
    ({"question": "где ключ", "answer": "под ковром"}, "fields"),
    ("просто текст без подсказки", None),
    ("жили были", "bare"),
    ("а", "short"),
    ("ещё один пример, подлиннее остальных!", "around"),
]
INPUTS = [item for item, _ in REQUESTS]
NAMES = [name for _, name in REQUESTS]

SETTINGS = {
    "greedy": {},
    "long": {"max_new_tokens": 40},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2, "max_new_tokens": 20},
    "encoder_penalties": {"encoder_repetition_penalty": 1.4, "encoder_no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[20, 21], [9]]},
    "sequence_bias": {"sequence_bias": {(10,): -50.0, (11, 12): 4.0}},
    "guidance": {"guidance_scale": 1.5, "repetition_penalty": 1.3},
    "prompt_lookup": {"prompt_lookup_num_tokens": 2},
    "beams": {"num_beams": 4},
    "beam_options": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "repetition_penalty": 1.3},
    "many_beams_kept": {"num_beams": 4, "num_return_sequences": 4},
    "max_length": {"max_new_tokens": None, "max_length": 60},
    "min_length": {"min_length": 55, "max_new_tokens": 60},
    "min_new_tokens": {"min_new_tokens": 9, "max_new_tokens": 12},
    "suppress": {"suppress_tokens": [5, 6, 7], "begin_suppress_tokens": [8]},
    "no_cache": {"use_cache": False},
    "renormalized": {"num_beams": 2, "renormalize_logits": True, "no_repeat_ngram_size": 2},
}


def texts(outputs: list[GenerationOutput]) -> list[tuple[list[int], str]]:
    return [(output.token_ids, output.finish_reason) for output in outputs]


@pytest.mark.parametrize("name", list(SETTINGS))
def test_each_request_equals_the_same_request_alone(served: FastPromptModel, name: str) -> None:
    settings = {"max_new_tokens": 8, "do_sample": False, **SETTINGS[name]}
    if name == "guidance" and served.model.config.is_encoder_decoder:
        with pytest.raises(SettingError, match="decoder-only"):
            served.generate(INPUTS, prompt=NAMES, **settings)
        return
    together = served.generate(INPUTS, prompt=NAMES, **settings)
    per_request = settings.get("num_return_sequences", 1)
    assert len(together) == len(REQUESTS) * per_request
    for index, (item, prompt) in enumerate(REQUESTS):
        alone = served.generate(item, prompt=prompt, **settings)
        assert texts(together[index * per_request : (index + 1) * per_request]) == texts(alone)


@pytest.mark.parametrize("beams", [1, 3])
def test_equals_transformers_on_embeddings(
    base: PreTrainedModel, prompts: dict[str, Prompt], tokenizer: PreTrainedTokenizerFast, beams: int
) -> None:
    """Transformers' own generate from embeddings put together by hand, one request at a time."""
    table = base.get_input_embeddings()
    expected = []
    unused = list(range(len(tokenizer), VOCAB))
    for text, name in [("привет", "short"), ("как дела", "around")]:
        rows = prompts[name].rows()
        cut = {"short": 3, "around": 7}[name]
        middle = table(torch.tensor(tokenizer(text)["input_ids"]))
        embeds = torch.cat([rows[:cut], middle, rows[cut:]])[None]
        expected.append(
            base.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                max_new_tokens=12,
                num_beams=beams,
                do_sample=False,
                suppress_tokens=unused,
            )[0].tolist()
        )
    served = FastPromptModel.from_pretrained(base, prompts=prompts, tokenizer=tokenizer)
    found = served.generate(["привет", "как дела"], ["short", "around"], max_new_tokens=12, num_beams=beams)
    for output, ids in zip(found, expected, strict=True):
        start = 1 if base.config.is_encoder_decoder else 0
        assert output.token_ids == ids[start : start + len(output.token_ids)]


def test_prompts_change_the_answer(served: FastPromptModel) -> None:
    outputs = served.generate(["привет"] * 3, prompt=[None, "short", "around"], max_new_tokens=12, output_scores=True)
    assert len({tuple(output.logprobs) for output in outputs}) == 3
    assert [output.prompt for output in outputs] == [None, "short", "around"]


def test_more_requests_than_a_batch_holds(
    base: PreTrainedModel, prompts: dict[str, Prompt], tokenizer: PreTrainedTokenizerFast
) -> None:
    small = FastPromptModel.from_pretrained(base, prompts=prompts, tokenizer=tokenizer, max_batch_size=2)
    cut = small.generate(INPUTS, prompt=NAMES, max_new_tokens=6)
    small.detach()
    whole = FastPromptModel.from_pretrained(base, prompts=prompts, tokenizer=tokenizer)
    assert texts(cut) == texts(whole.generate(INPUTS, prompt=NAMES, max_new_tokens=6))


def test_one_config_per_request(served: FastPromptModel) -> None:
    configs = [GenerationConfig(max_new_tokens=n, do_sample=False) for n in range(1, len(INPUTS) + 1)]
    outputs = served.generate(INPUTS, prompt=NAMES, generation_config=configs, eos_token_id=None)
    for output, (item, name), config in zip(outputs, REQUESTS, configs, strict=True):
        assert texts([output]) == texts(served.generate(item, name, generation_config=config, eos_token_id=None))


def test_keywords_override_the_config(served: FastPromptModel) -> None:
    config = GenerationConfig(max_new_tokens=3, do_sample=False, num_return_sequences=1)
    assert len(served.generate("да", generation_config=config, max_new_tokens=7, eos_token_id=None)[0].token_ids) == 7
    assert config.max_new_tokens == 3


def test_sampling_follows_the_seed(served: FastPromptModel) -> None:
    def run(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        outputs = served.generate(
            INPUTS, prompt=NAMES, do_sample=True, num_return_sequences=3, max_new_tokens=8, top_p=0.9, temperature=1.5
        )
        return [output.token_ids for output in outputs]

    assert run(0) == run(0)
    assert run(0) != run(1)
    assert max(max(ids) for ids in run(0) if ids) < VOCAB - 1  # the id that no token of the tokenizer has


def test_finish_reasons_and_stop_strings(served: FastPromptModel) -> None:
    settings = {"prompt": "short", "max_new_tokens": 5, "suppress_tokens": [0, 1, 2, 3]}
    cut = served.generate("привет", eos_token_id=None, **settings)[0]
    assert (cut.finish_reason, len(cut.token_ids)) == ("length", 5)
    stop = served.generate("привет", eos_token_id=cut.token_ids[1], **settings)[0]
    assert stop.finish_reason == "stop"
    assert stop.token_ids == cut.token_ids[: cut.token_ids.index(cut.token_ids[1]) + 1]
    piece = cut.text[:2]
    settings["prompt"] = ["short", "around"]
    ended, other = served.generate(["привет", "да"], stop_strings=[piece], eos_token_id=None, **settings)
    assert (ended.finish_reason, ended.text) == ("stop", piece)
    assert other.finish_reason == ("stop" if piece in other.text else "length")


def test_stop_strings_do_not_look_at_the_input(served: FastPromptModel) -> None:
    settings = {"max_new_tokens": 4, "suppress_tokens": [0, 1, 2, 3], "eos_token_id": None}
    first = served.generate("привет", **settings)[0].text[0]
    output = served.generate("привет", stop_strings=["т" + first * 4], **settings)[0]
    assert output.finish_reason == "length"


def test_logprobs_are_the_models(served: FastPromptModel) -> None:
    outputs = served.generate(INPUTS[:2], prompt=NAMES[:2], max_new_tokens=4, output_scores=True, do_sample=False)
    for output, item, name in zip(outputs, INPUTS, NAMES, strict=False):
        assert output.logprobs is not None
        assert len(output.logprobs) == len(output.token_ids)
        alone = served.generate(item, prompt=name, max_new_tokens=4, output_scores=True, do_sample=False)[0]
        assert output.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        assert all(value <= 0 for value in output.logprobs)


@pytest.mark.parametrize("beams", [1, 3])
def test_logprobs_where_scores_have_columns_for_rows(served: FastPromptModel, beams: int) -> None:
    settings = {"max_new_tokens": 4, "output_scores": True, "repetition_penalty": 1.3, "num_beams": beams}
    together = served.generate(INPUTS, prompt=NAMES, num_return_sequences=beams, **settings)
    for index, (item, name) in enumerate(REQUESTS):
        alone = served.generate(item, prompt=name, num_return_sequences=beams, **settings)
        for found, expected in zip(together[index * beams : (index + 1) * beams], alone, strict=True):
            assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_markers_are_plain_text(base: PreTrainedModel, prompts: dict[str, Prompt]) -> None:
    """A tokenizer that knows a marker does not let a request's text be taken for one."""
    marked = tiny_tokenizer()
    marked.add_tokens(["<|P|>"])
    plain = FastPromptModel.from_pretrained(base, prompts=prompts, tokenizer=tiny_tokenizer())
    expected = plain.generate(["а<|P|>б"] * 2, [None, "short"], max_new_tokens=6)
    plain.detach()
    served = FastPromptModel.from_pretrained(base, prompts=prompts, tokenizer=marked)
    assert texts(served.generate(["а<|P|>б"] * 2, [None, "short"], max_new_tokens=6)) == texts(expected)


def test_padding_token_without_a_row(base: PreTrainedModel, prompts: dict[str, Prompt]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"[{index}]" for index in range(VOCAB - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == VOCAB
    base.generation_config.pad_token_id = None
    served = FastPromptModel.from_pretrained(base, prompts=prompts, tokenizer=tokenizer)
    first = served.generate(INPUTS[0], prompt=NAMES[0], max_new_tokens=2, eos_token_id=None)[0].token_ids[0]
    outputs = served.generate(INPUTS, prompt=NAMES, max_new_tokens=6, eos_token_id=[first])
    assert outputs[0].token_ids == [first]


def test_the_model_may_be_converted_while_it_serves(served: FastPromptModel) -> None:
    served.model.to(torch.bfloat16)
    assert served.generate(INPUTS, prompt=NAMES, max_new_tokens=3)
    # Rows are converted once, and lie where the model does.
    members = [member for name in served.prompts for member in served._registry.members(name)]
    assert {(member.rows.dtype, member.rows.device) for member in members} == {(torch.bfloat16, served.device)}


def test_many_threads(served: FastPromptModel, prompts: dict[str, Prompt]) -> None:
    expected = texts(served.generate(INPUTS, prompt=NAMES, max_new_tokens=4))

    def work(index: int) -> list[tuple[list[int], str]]:
        served.add_prompt(f"extra {index}", prompts["bare"])
        return texts(served.generate(INPUTS, prompt=NAMES, max_new_tokens=4))

    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(work, range(12)))
    assert len(served.prompts) == len(prompts) + 12


def test_the_model_still_works_as_itself(base: PreTrainedModel, served: FastPromptModel) -> None:
    ids = torch.tensor([[5, 6, 7]])
    patched = base.generate(ids, max_new_tokens=5, do_sample=False)
    original = original_embedding(base)
    assert served.detach() is base
    assert base.get_input_embeddings() is original
    assert torch.equal(base.generate(ids, max_new_tokens=5, do_sample=False), patched)
    assert detach_prompts(base) is original
