"""The answers of a PromptEnsemble against those of its members, asked one by one."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from model_cases import make_prompt
from tiny_models import sharp_model, tiny_tokenizer
from tolerances import LOGPROB_ERROR
from transformers import GenerationConfig

from ruprompt_fast import FastPromptModel, Prompt
from ruprompt_fast.errors import (
    BatchMismatchError,
    EmptyBatchError,
    NonFiniteRowsError,
    UnknownArgumentError,
    UnknownPromptError,
)
from ruprompt_fast.prompts.ensemble import PromptEnsemble

TEMPLATE = "<P*4>{text}<P>"
TEXTS = ["привет", "как дела", "а", "вечером, в лесу", "да", "мы", "ночь", "где ты"]
MANY_TEXTS = [f"{first} {second}" for first in TEXTS for second in TEXTS]
LABELS = ["а", "б", "в"]


@pytest.fixture(params=["gpt2", "gptj"])  # the engine's path and the padded one
def served(request: pytest.FixtureRequest) -> FastPromptModel:
    return FastPromptModel.from_pretrained(sharp_model(request.param), tokenizer=tiny_tokenizer())


@pytest.fixture
def ensemble(served: FastPromptModel) -> PromptEnsemble:
    return PromptEnsemble(members(served, 5))


def members(served: FastPromptModel, count: int, seed: int = 0) -> list[Prompt]:
    return [make_prompt(TEMPLATE, served.model, served.tokenizer, seed + index) for index in range(count)]


class TestClassify:
    def test_majority_of_the_members(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        ensemble.add_to(served, "task")
        outputs = ensemble.classify(served, MANY_TEXTS, LABELS)
        assert len(outputs) == len(MANY_TEXTS)
        against_the_means = 0
        columns = [served.classify(MANY_TEXTS, f"task/{index}", labels=LABELS) for index in range(5)]
        for output, *votes in zip(outputs, *columns, strict=True):
            counts = Counter(vote.label for vote in votes)
            assert counts[output.label] == max(counts.values())
            assert output.prompt == "task"
            assert list(output.probabilities) == LABELS
            mean = {label: sum(vote.probabilities[label] for vote in votes) / 5 for label in LABELS}
            assert output.probabilities == pytest.approx(mean, abs=LOGPROB_ERROR)
            against_the_means += output.label != max(mean, key=mean.__getitem__)
        assert len({output.label for output in outputs}) > 1
        assert against_the_means > 0

    def test_ties_go_to_the_larger_sum_of_logprobs(self, served: FastPromptModel) -> None:
        PromptEnsemble(members(served, 4)).add_to(served, "four")
        four = [served.prompts[f"four/{index}"] for index in range(4)]
        ties = 0
        for pair in ([0, 1], [0, 2], [1, 2], [2, 3]):
            ensemble = PromptEnsemble([four[index] for index in pair])
            ensemble.add_to(served, "pair")
            for text, output in zip(TEXTS, ensemble.classify(served, TEXTS, LABELS), strict=True):
                votes = [served.classify(text, f"four/{index}", labels=LABELS)[0] for index in pair]
                tied = {vote.label for vote in votes}
                sums = {label: sum(math.log(vote.probabilities[label]) for vote in votes) for label in LABELS}
                assert output.label == max(tied, key=sums.__getitem__)
                ties += len(tied) == 2
        assert ties > 0

    def test_one_input_and_none(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        ensemble.add_to(served, "task")
        (output,) = ensemble.classify(served, {"text": "да"}, LABELS)
        assert output.label in LABELS
        with pytest.raises(EmptyBatchError):
            ensemble.classify(served, [], LABELS)


class TestGenerate:
    def test_best_mean_logprob_wins(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        ensemble.add_to(served, "task")
        outputs = ensemble.generate(served, TEXTS, max_new_tokens=6, do_sample=False)
        winners = set()
        for text, output in zip(TEXTS, outputs, strict=True):
            every = [
                served.generate(text, f"task/{index}", max_new_tokens=6, do_sample=False, output_scores=True)[0]
                for index in range(5)
            ]
            means = [sum(one.logprobs or []) / len(one.token_ids) for one in every]
            best = every[means.index(max(means))]
            assert (output.text, output.prompt) == (best.text, best.prompt)
            assert output.logprobs == pytest.approx(best.logprobs, abs=LOGPROB_ERROR)
            winners.add(output.prompt)
        assert len(winners) > 1

    def test_arguments_of_single_inputs(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        ensemble.add_to(served, "task")
        configs = [GenerationConfig(max_new_tokens=2), GenerationConfig(max_new_tokens=5, eos_token_id=[])]
        outputs = ensemble.generate(served, TEXTS[:2], generation_config=configs, eos_token_id=[2])
        assert len(outputs[0].token_ids) <= 2
        assert 2 < len(outputs[1].token_ids) <= 5 or outputs[1].finish_reason == "stop"
        with pytest.raises(BatchMismatchError, match="seed has 3 values for 2 inputs"):
            ensemble.generate(served, TEXTS[:2], seed=[1, 2, 3])
        with pytest.raises(UnknownArgumentError, match="leave prompt out"):
            ensemble.generate(served, TEXTS[:2], prompt="task/0")

    def test_samples_compete(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        ensemble.add_to(served, "task")
        settings = {"do_sample": True, "max_new_tokens": 4, "seed": [3, 4], "num_return_sequences": 3}
        outputs = ensemble.generate(served, TEXTS[:2], **settings)
        assert len(outputs) == 2
        for text, output, seed in zip(TEXTS, outputs, [3, 4], strict=False):
            every = served.generate(
                [text] * 5, [f"task/{index}" for index in range(5)], **{**settings, "seed": seed}, output_scores=True
            )
            assert len(every) == 15
            assert output.text in {one.text for one in every}
            assert sum(output.logprobs or []) / len(output.token_ids) == pytest.approx(
                max(sum(one.logprobs or []) / len(one.token_ids) for one in every), abs=LOGPROB_ERROR
            )


class TestLoading:
    def test_members_that_are_not_loaded(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        with pytest.raises(UnknownPromptError, match="5 members.*none"):
            ensemble.classify(served, "да", LABELS)
        ensemble.add_to(served, "task")
        served.add_prompt("task/3", members(served, 1)[0])
        with pytest.raises(UnknownPromptError, match="task/0, task/1"):
            ensemble.generate(served, "да")

    def test_replacing_an_ensemble(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        ensemble.add_to(served, "task")
        served.add_prompt("task/notes", ensemble.members[0])
        smaller = PromptEnsemble(members(served, 2, seed=10))
        smaller.add_to(served, "task")
        assert sorted(served.prompts) == ["task/0", "task/1", "task/notes"]
        assert len(smaller.classify(served, TEXTS, LABELS)) == len(TEXTS)

    def test_a_member_that_is_refused(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        ensemble.add_to(served, "task")
        before = dict(served.prompts)
        larger = PromptEnsemble(members(served, 7, seed=20))
        larger.members[6].provider.weights.data.fill_(float("nan"))
        with pytest.raises(NonFiniteRowsError):
            larger.add_to(served, "task")
        with pytest.raises(NonFiniteRowsError):
            larger.add_to(served, "other")
        assert dict(served.prompts) == before
