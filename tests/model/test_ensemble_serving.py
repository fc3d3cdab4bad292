"""The answers of a served ensemble against those of its members, loaded and asked one by one."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from model_cases import make_prompt
from tiny_models import sharp_model, tiny_tokenizer
from tolerances import LOGPROB_ERROR
from transformers import GenerationConfig
from transformers.utils.logging import warning_once

from ruprompt_fast import FastPromptModel, GenerationOutput, Prompt
from ruprompt_fast.errors import (
    BatchMismatchError,
    ContextLengthError,
    EmptyInputError,
    ExtraFieldError,
    NonFiniteRowsError,
    PromptInitError,
    SettingError,
    UnknownPromptError,
)
from ruprompt_fast.prompts.ensemble import PromptEnsemble

TEMPLATE = "<P*4>{text}<P>"
TEXTS = ["привет", "как дела", "а", "вечером, в лесу", "да", "мы", "ночь", "где ты"]
MANY_TEXTS = [f"{first} {second}" for first in TEXTS for second in TEXTS]
LABELS = ["а", "б", "в"]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(params=["gpt2", "gptj"])  # on the engine, and on the transformers fallback
def served(request: pytest.FixtureRequest) -> FastPromptModel:
    return FastPromptModel.from_pretrained(sharp_model(request.param), tokenizer=tiny_tokenizer())


@pytest.fixture
def ensemble(served: FastPromptModel) -> PromptEnsemble:
    """Five members, served as ``task`` and one by one as ``0`` to ``4``."""
    made = PromptEnsemble(members(served, 5))
    served.add_prompt("task", made)
    for index, member in enumerate(made.members):
        served.add_prompt(str(index), member)
    return made


def members(served: FastPromptModel, count: int, seed: int = 0) -> list[Prompt]:
    return [make_prompt(TEMPLATE, served.model, served.tokenizer, seed + index) for index in range(count)]


def mean_logprob(output: GenerationOutput) -> float:
    assert output.logprobs is not None
    return sum(output.logprobs) / len(output.token_ids)


def num_prefixes(served: FastPromptModel) -> int:
    engine = served.stats().engine
    assert engine is not None
    return engine.prefix_cache.entries


class TestClassify:
    def test_majority_of_the_members(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        outputs = served.classify(MANY_TEXTS, "task", labels=LABELS)
        assert len(outputs) == len(MANY_TEXTS)
        against_the_means = 0
        columns = [served.classify(MANY_TEXTS, str(index), labels=LABELS) for index in range(5)]
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

    def test_ties_go_to_the_larger_sum_of_logprobs(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        ties = 0
        for pair in ([0, 1], [0, 2], [1, 2], [2, 3]):
            served.add_prompt("pair", PromptEnsemble([ensemble.members[index] for index in pair]))
            for text, output in zip(TEXTS, served.classify(TEXTS, "pair", labels=LABELS), strict=True):
                votes = [served.classify(text, str(index), labels=LABELS)[0] for index in pair]
                tied = {vote.label for vote in votes}
                sums = {label: sum(math.log(vote.probabilities[label]) for vote in votes) for label in LABELS}
                assert output.label == max(tied, key=sums.__getitem__)
                ties += len(tied) == 2
        assert ties > 0

    def test_words_of_classes(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        for output in served.classify(TEXTS, "task", labels={"first": ["а", "б"], "second": "в"}):
            assert output.label in ("first", "second")
            assert sum(output.probabilities.values()) == pytest.approx(1)

    def test_one_input_and_none(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        (output,) = served.classify({"text": "да"}, "task", labels=LABELS)
        assert output.label in LABELS
        with pytest.raises(EmptyInputError):
            served.classify([], "task", labels=LABELS)

    @pytest.mark.every_backend
    def test_beside_other_prompts(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        names = ["task", None, "1", "task"]
        outputs = served.classify(TEXTS[:4], names, labels=LABELS)
        assert [output.prompt for output in outputs] == names
        for text, name, output in zip(TEXTS, names, outputs, strict=False):
            alone = served.classify(text, name, labels=LABELS)[0]
            assert output.label == alone.label
            assert output.probabilities == pytest.approx(alone.probabilities, abs=LOGPROB_ERROR)


class TestGenerate:
    @pytest.mark.every_backend
    def test_best_mean_logprob_wins(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        outputs = served.generate(TEXTS, "task", **GREEDY)
        winners = set()
        for text, output in zip(TEXTS, outputs, strict=True):
            every = [served.generate(text, str(index), **GREEDY, output_scores=True)[0] for index in range(5)]
            means = [mean_logprob(one) for one in every]
            best = means.index(max(means))
            assert (output.text, output.prompt) == (every[best].text, f"task/{best}")
            assert output.logprobs == pytest.approx(every[best].logprobs, abs=LOGPROB_ERROR)
            winners.add(output.prompt)
        assert len(winners) > 1

    def test_no_words_about_settings_that_nobody_gave(
        self, served: FastPromptModel, ensemble: PromptEnsemble, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """The log-probabilities that members are compared by are a setting, too."""
        logger = logging.getLogger("transformers")
        logger.addHandler(handler := logging.StreamHandler(sys.stderr))
        warning_once.cache_clear()
        try:
            served.generate("да", "task", **GREEDY)
        finally:
            logger.removeHandler(handler)
        assert "output_scores" not in capfd.readouterr().err

    def test_of_one_member(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        served.add_prompt("one", PromptEnsemble(ensemble.members[:1]))
        (output,) = served.generate("да", "one", **GREEDY)
        (alone,) = served.generate("да", "0", **GREEDY)
        assert (output.text, output.prompt) == (alone.text, "one/0")
        assert output.logprobs is not None
        assert served.classify("да", "one", labels=LABELS)[0].prompt == "one"

    @pytest.mark.every_backend
    def test_beside_other_prompts(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        names = ["3", "task", None, "task"]
        outputs = served.generate(TEXTS[:4], names, **GREEDY)
        for text, name, output in zip(TEXTS, names, outputs, strict=False):
            assert output.text == served.generate(text, name, **GREEDY)[0].text
            assert (output.logprobs is not None) == (name == "task")

    def test_arguments_of_single_inputs(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        configs = [GenerationConfig(max_new_tokens=2), GenerationConfig(max_new_tokens=5, eos_token_id=[])]
        outputs = served.generate(TEXTS[:2], "task", generation_config=configs, eos_token_id=[2])
        assert len(outputs[0].token_ids) <= 2
        assert 2 < len(outputs[1].token_ids) <= 5 or outputs[1].finish_reason == "stop"
        with pytest.raises(BatchMismatchError, match="seed has 3 values for 2 inputs"):
            served.generate(TEXTS[:2], "task", seed=[1, 2, 3])

    def test_samples_compete(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        settings = {"do_sample": True, "max_new_tokens": 4, "seed": [3, 4], "num_return_sequences": 3}
        outputs = served.generate(TEXTS[:2], "task", **settings)
        assert len(outputs) == 6
        for start, text, seed in ((0, TEXTS[0], 3), (3, TEXTS[1], 4)):
            every = served.generate(
                [text] * 5, [str(index) for index in range(5)], **{**settings, "seed": seed}, output_scores=True
            )
            assert len(every) == 15
            means = sorted(map(mean_logprob, every), reverse=True)
            assert [mean_logprob(one) for one in outputs[start : start + 3]] == pytest.approx(
                means[:3], abs=LOGPROB_ERROR
            )
            assert {one.text for one in outputs[start : start + 3]} <= {one.text for one in every}

    def test_outputs_of_each_input_without_samples_of_others(
        self, served: FastPromptModel, ensemble: PromptEnsemble
    ) -> None:
        configs = [GenerationConfig(num_return_sequences=size, do_sample=True) for size in (2, 1, 3)]
        outputs = served.generate(TEXTS[:3], ["task", "0", "task"], configs, max_new_tokens=2, seed=1)
        assert [(output.prompt or "").partition("/")[0] for output in outputs] == ["task"] * 2 + ["0"] + ["task"] * 3


class TestOtherCalls:
    def test_a_stream_is_refused(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        with pytest.raises(SettingError, match=r"ensemble 'task' chooses .* 5 members\. Call generate\(\)"):
            served.stream("да", "task")

        async def read() -> list[str]:
            return [piece async for piece in served.astream("да", "task")]

        with pytest.raises(SettingError, match="ensemble 'task'"):
            asyncio.run(read())

    def test_awaited(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        found = asyncio.run(served.agenerate(TEXTS[:3], ["task", "0", "task"], **GREEDY))
        assert [(one.text, one.prompt) for one in found] == [
            (one.text, one.prompt) for one in served.generate(TEXTS[:3], ["task", "0", "task"], **GREEDY)
        ]

    def test_positions(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        assert served.count_tokens(TEXTS, "task") == served.count_tokens(TEXTS, "0")
        assert served.count_tokens(TEXTS[:2], ["task", None]) == [
            *served.count_tokens(TEXTS[0], "0"),
            *served.count_tokens(TEXTS[1]),
        ]

    def test_what_does_not_fit_is_named_by_its_input(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        long = "да " * served.model.config.n_positions
        with pytest.raises(ContextLengthError, match="input 1 "):
            served.generate(["да", long], "task")
        with pytest.raises(ContextLengthError, match="input 1 "):
            served.classify(["да", long], "task", labels=LABELS)
        with pytest.raises(ContextLengthError, match="input 1 "):
            served.check_fits(["да", long], "task", labels=LABELS)
        with pytest.raises(ExtraFieldError, match="prompt 'task'"):
            served.generate({"text": "да", "title": "нет"}, "task")

    def test_warm_up(self) -> None:
        served = FastPromptModel.from_pretrained(sharp_model("gpt2"), tokenizer=tiny_tokenizer())
        served.add_prompt("task", PromptEnsemble(members(served, 3)))
        assert num_prefixes(served) == 0
        served.warm_up(["task"])
        assert num_prefixes(served) == 3
        served.remove_prompt("task")
        assert num_prefixes(served) == 0
        served.check_integrity()


class TestLoading:
    def test_one_name(self, served: FastPromptModel) -> None:
        ensemble = PromptEnsemble(members(served, 3))
        served.add_prompt("task", ensemble)
        assert dict(served.prompts) == {"task": ensemble}
        with pytest.raises(UnknownPromptError, match="unknown prompt 'task/0'; loaded: task"):
            served.generate("да", "task/0")
        served.remove_prompt("task")
        assert not served.prompts
        with pytest.raises(UnknownPromptError, match="unknown prompt 'task'; loaded: none"):
            served.classify("да", "task", labels=LABELS)

    def test_at_the_start_and_from_a_folder(self, served: FastPromptModel, tmp_path: Path) -> None:
        ensemble = PromptEnsemble(members(served, 3))
        ensemble.save_pretrained(tmp_path / "ensemble")
        ensemble.members[0].save_pretrained(tmp_path / "prompt")
        served.add_prompt("task", ensemble)
        expected = [output.text for output in served.generate(TEXTS, "task", **GREEDY)]
        again = FastPromptModel.from_pretrained(
            served.detach(),
            prompts={"object": ensemble, "folder": str(tmp_path / "ensemble"), "prompt": tmp_path / "prompt"},
            tokenizer=tiny_tokenizer(),
        )
        for name in ("object", "folder"):
            assert [output.text for output in again.generate(TEXTS, name, **GREEDY)] == expected
        assert isinstance(again.prompts["folder"], PromptEnsemble)
        assert isinstance(again.prompts["prompt"], Prompt)

    def test_replacing_by_a_prompt_and_back(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        expected = [served.generate(TEXTS, name, **GREEDY) for name in ("task", "0")]
        served.add_prompt("task", ensemble.members[0])
        assert [one.text for one in served.generate(TEXTS, "task", **GREEDY)] == [one.text for one in expected[1]]
        assert "".join(served.stream("да", "task", **GREEDY)) == served.generate("да", "0", **GREEDY)[0].text
        served.add_prompt("task", ensemble)
        assert [one.text for one in served.generate(TEXTS, "task", **GREEDY)] == [one.text for one in expected[0]]
        served.add_prompt("task", PromptEnsemble(members(served, 2, seed=10)))
        assert {one.prompt for one in served.generate(TEXTS, "task", **GREEDY)} <= {"task/0", "task/1"}
        served.check_integrity()

    def test_a_member_that_is_refused(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        before = dict(served.prompts)
        larger = PromptEnsemble(members(served, 7, seed=20))
        larger.members[6].provider.weights.data.fill_(float("nan"))
        with pytest.raises(NonFiniteRowsError, match="task/6"):
            served.add_prompt("task", larger)
        with pytest.raises(NonFiniteRowsError, match="other/6"):
            served.add_prompt("other", larger)
        assert dict(served.prompts) == before
        with pytest.raises(PromptInitError, match="PromptEnsemble, a folder or a hub id; found list"):
            served.add_prompt("other", list(larger.members))  # type: ignore[arg-type]

    def test_members_that_train_on(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        before = served.classify(MANY_TEXTS, "task", labels=LABELS)
        other = PromptEnsemble(members(served, 5, seed=30))
        served.add_prompt("other", other)
        with torch.no_grad():
            for member, new in zip(ensemble.members, other.members, strict=True):
                member.provider.weights.copy_(new.provider.weights)
        after = served.classify(MANY_TEXTS, "task", labels=LABELS)
        assert [one.label for one in after] == [
            one.label for one in served.classify(MANY_TEXTS, "other", labels=LABELS)
        ]
        assert [one.label for one in after] != [one.label for one in before]
        with torch.no_grad():
            ensemble.members[4].provider.weights.fill_(float("nan"))
        with pytest.raises(NonFiniteRowsError, match="task/4"):
            served.classify("да", "task", labels=LABELS)
        served.remove_prompt("task")
        assert "task" not in served.prompts

    def test_one_member_that_trains_on(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        with torch.no_grad():
            ensemble.members[2].provider.weights.mul_(-3.0)
        served.add_prompt("again", PromptEnsemble(ensemble.members))
        found = served.classify(MANY_TEXTS, "task", labels=LABELS)
        for one, other in zip(found, served.classify(MANY_TEXTS, "again", labels=LABELS), strict=True):
            assert one.label == other.label
            assert one.probabilities == pytest.approx(other.probabilities, abs=LOGPROB_ERROR)

    def test_replaced_while_requests_run(self, served: FastPromptModel, ensemble: PromptEnsemble) -> None:
        texts = [one.text for one in served.generate(TEXTS, "task", **GREEDY)]
        alone = [one.text for one in served.generate(TEXTS, "0", **GREEDY)]
        answers: list[list[str]] = []

        def ask() -> None:
            answers.extend([one.text for one in served.generate(TEXTS, "task", **GREEDY)] for _ in range(5))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            served.add_prompt("task", ensemble.members[0])
            served.add_prompt("task", ensemble)
        for thread in threads:
            thread.join()
        assert len(answers) == 10
        assert all(answer in (texts, alone) for answer in answers)
        served.check_integrity()
