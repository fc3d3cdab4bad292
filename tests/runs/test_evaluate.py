"""Evaluation against losses and verdicts computed row by row with plain transformers and the served model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs.run_cases import KIND, ensemble_folder, read_jsonl, task_of, trained, write_jsonl
from tolerances import LOGPROB_ERROR
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ruprompt_fast import FastPromptModel, Prompt, bundled
from ruprompt_fast.errors import (
    ConfigError,
    ContextLengthError,
    LabelError,
    MissingFieldError,
    OutputExistsError,
    RupromptError,
    TaskError,
    TrainingDataError,
)
from ruprompt_fast.prompts.ensemble import PromptEnsemble
from ruprompt_fast.runs.answer_config import EvaluateConfig, ServedModelConfig
from ruprompt_fast.runs.evaluate import evaluate
from ruprompt_fast.runs.loss import teacher_forced_loss
from ruprompt_fast.runs.measuring import evaluate_prompt
from ruprompt_fast.runs.metrics import text_metrics

KINDS = [
    {"text": "Я помню чудное мгновенье: Передо мной явилась ты,", "kind": "verse"},
    {"text": "В департаменте… но лучше не называть, в каком департаменте.", "kind": "prose"},
    {"text": "Белеет парус одинокий В тумане моря голубом!", "kind": "prose"},
    {"text": "Мы стояли в местечке. Жизнь офицера известна.", "kind": "prose"},
]
PROVERBS = [
    {"begin": "Без труда", "end": "не вытащишь и рыбку из пруда.", "other": "не вынешь рыбку из пруда."},
    {"begin": "Старый друг", "end": "лучше новых двух.", "other": ""},
    {"begin": "Кто рано встаёт,", "end": "тому Бог подаёт.", "other": "тому Бог даёт."},
]


@pytest.fixture
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(bundled.MODEL, dtype=torch.float32).eval()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(bundled.MODEL)


@pytest.fixture
def proverbs(tmp_path: Path) -> EvaluateConfig:
    task = task_of("kind", target=" {end}", columns={"text": "begin"})
    data = write_jsonl(tmp_path / "proverbs.jsonl", PROVERBS)
    return EvaluateConfig(
        trained(tmp_path / "proverb", "kind", task), data, references=["other"], generation={"max_new_tokens": 8}
    )


@pytest.fixture
def kinds(tmp_path: Path) -> EvaluateConfig:
    data = write_jsonl(tmp_path / "kinds.jsonl", KINDS)
    return EvaluateConfig(trained(tmp_path / "kind", "kind", KIND), data)


class TestTexts:
    def test_loss(self, proverbs: EvaluateConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        prompt = Prompt.from_pretrained(proverbs.prompt)
        table, rows, first = model.get_input_embeddings(), prompt.rows(), len(tokenizer)
        total, num_tokens = 0.0, 0
        for row in PROVERBS:
            ids = prompt.format.encode({"text": row["begin"]}, tokenizer, first_row_id=first).input_ids
            target = [*tokenizer(" " + row["end"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            ids = torch.tensor([*ids, *target])
            embeds = torch.where((ids >= first)[:, None], rows[(ids - first).clamp(0)], table(ids.clamp(max=first - 1)))
            with torch.no_grad():
                logprobs = model(inputs_embeds=embeds[None]).logits[0].log_softmax(-1)
            total -= logprobs[-len(target) - 1 : -1].gather(1, ids[-len(target) :, None]).sum().item()
            num_tokens += len(target)
        found = evaluate(proverbs)
        assert found.metrics["loss"] == pytest.approx(total / num_tokens, abs=LOGPROB_ERROR)

    def test_predictions_and_their_metrics(self, proverbs: EvaluateConfig, tmp_path: Path) -> None:
        found = evaluate(replace(proverbs, output=str(tmp_path / "a" / "figures")))
        assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["figures"]
        written = json.loads((tmp_path / "a" / "figures" / "metrics.json").read_text())
        assert {name: written[name] for name in found.metrics} == found.metrics
        assert written["baselines"] == found.baselines
        assert read_jsonl(tmp_path / "a" / "figures" / "predictions.jsonl") == found.predictions
        outputs = bundled.load().generate([row["begin"] for row in PROVERBS], "kind", max_new_tokens=8, do_sample=False)
        assert [row["output"] for row in found.predictions] == [output.text.strip() for output in outputs]
        assert [row["row"]["end"] for row in found.predictions] == [row["end"] for row in PROVERBS]
        references = [
            ["не вытащишь и рыбку из пруда.", "не вынешь рыбку из пруда."],
            ["лучше новых двух."],
            ["тому Бог подаёт.", "тому Бог даёт."],
        ]
        assert [row["references"] for row in found.predictions] == references
        expected = text_metrics([output.text for output in outputs], references)
        assert {name: value for name, value in found.metrics.items() if name != "loss"} == expected

    def test_sampling_is_repeatable(self, proverbs: EvaluateConfig) -> None:
        config = replace(proverbs, generation={"max_new_tokens": 8, "do_sample": True}, seed=3)
        first = evaluate(config)
        assert evaluate(config).predictions == first.predictions
        assert evaluate(replace(config, seed=9)).predictions != first.predictions

    def test_a_prompt_without_fields_begins_by_itself(self, proverbs: EvaluateConfig, tmp_path: Path) -> None:
        rows = [{"text": "лучше новых двух."}, {"text": "тому Бог подаёт."}]
        prompt = trained(tmp_path / "bare", "proverb", task_of("proverb", target="{text}"))
        data = write_jsonl(tmp_path / "bare.jsonl", rows)
        found = evaluate(replace(proverbs, prompt=prompt, data=data, references=[]))
        (output,) = bundled.load().generate("", "proverb", max_new_tokens=8, do_sample=False)
        assert [row["output"] for row in found.predictions] == [output.text.strip()] * 2

    def test_baselines(self, proverbs: EvaluateConfig, tmp_path: Path) -> None:
        instruction = "Пословица: {text}"
        config = replace(proverbs, instruction=instruction, output=str(tmp_path / "figures"))
        found = evaluate(config)
        assert list(found.baselines) == ["no_prompt", "instruction", "copy"]
        inputs, references = [row["begin"] for row in PROVERBS], [row["references"] for row in found.predictions]
        served = bundled.load()
        for name, template in (("no_prompt", "{text}"), ("instruction", instruction)):
            texts = [template.format(text=text) for text in inputs]
            outputs = served.generate(texts, max_new_tokens=8, do_sample=False)
            expected = [output.text.strip() for output in outputs]
            assert [row["baselines"][name] for row in found.predictions] == expected
            measured = {key: value for key, value in found.baselines[name].items() if key != "loss"}
            assert measured == text_metrics(expected, references)
        assert found.baselines["copy"] == text_metrics(inputs, references)
        written = json.loads((tmp_path / "figures" / "metrics.json").read_text())
        difference = written["differences"]["copy"]["chrf"]
        assert difference["value"] == pytest.approx(found.metrics["chrf"] - found.baselines["copy"]["chrf"])
        assert difference["is_certain"] == (difference["p_value"] < 0.05)

    # A target that a prompt's rows keep apart from the text joins it nowhere, as what is generated after a text.
    @pytest.mark.parametrize("space", [" ", ""])
    def test_loss_of_baselines(
        self,
        space: str,
        proverbs: EvaluateConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tmp_path: Path,
    ) -> None:
        task = task_of("kind", target=f"{space}{{end}}", columns={"text": "begin"})
        prompt, instruction = trained(tmp_path / "own", "kind", task), "Закончи: {text}"
        found = evaluate(replace(proverbs, prompt=prompt, instruction=instruction))
        for name, template in (("no_prompt", "{text}"), ("instruction", instruction)):
            total, num_tokens = 0.0, 0
            for row in PROVERBS:
                ids = tokenizer(template.format(text=row["begin"]), add_special_tokens=False)["input_ids"]
                target = tokenizer(f"{space}{row['end']}", add_special_tokens=False)["input_ids"]
                target = [*target, tokenizer.eos_token_id]
                with torch.no_grad():
                    logprobs = model(torch.tensor([[*ids, *target]])).logits[0].log_softmax(-1)
                total -= logprobs[len(ids) - 1 : -1].gather(1, torch.tensor(target)[:, None]).sum().item()
                num_tokens += len(target)
            assert found.baselines[name]["loss"] == pytest.approx(total / num_tokens, abs=LOGPROB_ERROR)
            assert "loss" in found.differences[name]

    def test_an_instruction_in_place_of_a_prompt_without_fields(self, proverbs: EvaluateConfig, tmp_path: Path) -> None:
        prompt = trained(tmp_path / "bare", "proverb", task_of("proverb", objective="style", columns={"text": "begin"}))
        found = evaluate(replace(proverbs, prompt=prompt, references=[], instruction="Пословица: "))
        assert [list(figures) for figures in found.baselines.values()] == [["loss"], ["loss"]]

    def test_without_baselines(self, proverbs: EvaluateConfig) -> None:
        found = evaluate(replace(proverbs, baselines=False))
        assert (found.baselines, found.differences) == ({}, {})
        assert all("baselines" not in row for row in found.predictions)
        assert found.metrics == evaluate(proverbs).metrics

    def test_rude_words(self, proverbs: EvaluateConfig, tmp_path: Path) -> None:
        (tmp_path / "words.txt").write_text("# слова\nруб\nРЫБ\n", encoding="utf-8")
        found = evaluate(replace(proverbs, word_list=str(tmp_path / "words.txt")))
        outputs = [row["output"].lower() for row in found.predictions]
        assert found.metrics["word_list_share"] == sum(" рыб" in f" {text}" for text in outputs) / 3
        assert found.baselines["copy"]["word_list_share"] == 0.0
        assert "word_list_share" not in evaluate(proverbs).metrics
        data = write_jsonl(tmp_path / "rude.jsonl", [{**row, "begin": f"{row['begin']}, дурак"} for row in PROVERBS])
        assert evaluate(replace(proverbs, data=data)).baselines["copy"]["word_list_share"] == 1.0

    def test_quantized(self, proverbs: EvaluateConfig) -> None:
        found = evaluate(replace(proverbs, model=ServedModelConfig(quantization="int8"), baselines=False))
        served = FastPromptModel.from_pretrained(bundled.MODEL, {"kind": bundled.PROMPTS["kind"]}, quantization="int8")
        outputs = served.generate([row["begin"] for row in PROVERBS], "kind", max_new_tokens=8, do_sample=False)
        assert [row["output"] for row in found.predictions] == [output.text.strip() for output in outputs]
        loss = evaluate(replace(proverbs, baselines=False)).metrics["loss"]
        assert 0 < abs(found.metrics["loss"] - loss) < 0.1

    def test_style_has_its_loss_alone(self, proverbs: EvaluateConfig, tmp_path: Path) -> None:
        task = task_of("kind", objective="style", columns={"text": "begin"})
        found = evaluate(replace(proverbs, prompt=trained(tmp_path / "style", "kind", task)))
        assert list(found.metrics) == list(found.baselines["no_prompt"]) == ["loss"]
        assert found.predictions == []


class TestClassification:
    def test_loss_and_accuracy(self, kinds: EvaluateConfig) -> None:
        found = evaluate(kinds)
        outputs = bundled.load().classify([row["text"] for row in KINDS], "kind", labels=list(bundled.LABELS))
        words = dict(zip(["verse", "prose"], bundled.LABELS, strict=True))
        losses = [
            -math.log(output.probabilities[words[row["kind"]]]) for row, output in zip(KINDS, outputs, strict=True)
        ]
        assert found.metrics["loss"] == pytest.approx(sum(losses) / 4, abs=LOGPROB_ERROR)
        right = [output.label == words[row["kind"]] for row, output in zip(KINDS, outputs, strict=True)]
        assert found.metrics["accuracy"] == sum(right) / 4
        for prediction, row, output in zip(found.predictions, KINDS, outputs, strict=True):
            assert prediction["row"] == row
            assert words[prediction["label"]] == prediction["output"] == output.label

    def test_baselines(self, kinds: EvaluateConfig) -> None:
        found = evaluate(kinds)
        assert list(found.baselines) == ["no_prompt", "majority"]
        outputs = bundled.load().classify([row["text"] for row in KINDS], labels=list(bundled.LABELS))
        words = dict(zip(["verse", "prose"], bundled.LABELS, strict=True))
        right = [words[row["kind"]] == output.label for row, output in zip(KINDS, outputs, strict=True)]
        assert found.baselines["no_prompt"]["accuracy"] == sum(right) / 4
        assert found.baselines["majority"] == {"accuracy": 3 / 4}

    def test_ensemble(
        self, kinds: EvaluateConfig, tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        folder = ensemble_folder(tmp_path / "kinds", "kind", KIND)
        found = evaluate(replace(kinds, prompt=folder))
        ensemble = PromptEnsemble.from_pretrained(folder)
        losses = [teacher_forced_loss(model, tokenizer, member, KIND, KINDS).mean for member in ensemble.members]
        assert len(set(losses)) == 3
        assert found.metrics["loss"] == pytest.approx(sum(losses) / 3, abs=LOGPROB_ERROR)
        served = FastPromptModel.from_pretrained(model, tokenizer=tokenizer)
        served.add_prompt("kinds", ensemble)
        outputs = served.classify([row["text"] for row in KINDS], "kinds", labels=KIND.label_words)
        assert [row["output"] for row in found.predictions] == [output.label for output in outputs]

    def test_the_model_is_given_back(
        self, kinds: EvaluateConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        table, names = model.get_input_embeddings(), list(model.state_dict())
        found = evaluate_prompt(model, tokenizer, Prompt.from_pretrained(kinds.prompt), KIND, KINDS, kinds)
        assert found.metrics["accuracy"] >= 0.5
        assert model.get_input_embeddings() is table
        assert list(model.state_dict()) == names


class TestRefusals:
    def refuse(self, config: EvaluateConfig, error: type[RupromptError], match: str, tmp_path: Path) -> None:
        with pytest.raises(error, match=match):
            evaluate(replace(config, output=str(tmp_path / "output")))
        assert not (tmp_path / "output").exists()
        assert not list(tmp_path.glob(".*"))

    def test_an_output_that_exists(self, kinds: EvaluateConfig, tmp_path: Path) -> None:
        with pytest.raises(OutputExistsError, match="Choose another"):
            evaluate(replace(kinds, output=str(tmp_path)))

    def test_no_task(self, kinds: EvaluateConfig, tmp_path: Path) -> None:
        without = replace(kinds, prompt=str(bundled.PROMPTS["kind"]))
        self.refuse(without, TaskError, "task=FILE", tmp_path)
        given = evaluate(replace(without, task=f"{kinds.prompt}/config.yaml"))
        assert given.metrics == evaluate(kinds).metrics

    def test_columns(self, proverbs: EvaluateConfig, tmp_path: Path) -> None:
        self.refuse(replace(proverbs, references=["othr"]), MissingFieldError, "Did you mean 'other'", tmp_path)
        data = write_jsonl(tmp_path / "data.jsonl", [{"begin": "Без труда"}])
        self.refuse(replace(proverbs, data=data), MissingFieldError, "'end'", tmp_path)

    def test_an_answer_without_room(self, proverbs: EvaluateConfig, tmp_path: Path) -> None:
        config = replace(proverbs, generation={"max_new_tokens": 1000})
        self.refuse(config, ContextLengthError, r"proverbs\.jsonl:1 has .* asks for 1000 new ones", tmp_path)

    def test_instructions(self, kinds: EvaluateConfig, tmp_path: Path) -> None:
        self.refuse(replace(kinds, instruction="Что это: {txt}"), MissingFieldError, r"\['txt'\]", tmp_path)
        self.refuse(replace(kinds, instruction="<P*3>{text}"), ConfigError, "without virtual tokens", tmp_path)
        with pytest.raises(ConfigError, match="baselines=true"):
            replace(kinds, instruction="{text}", baselines=False)

    @pytest.mark.parametrize("content", [b"", b"# only a comment\n", b"\xff\xfe", None])
    def test_word_lists(self, content: bytes | None, proverbs: EvaluateConfig, tmp_path: Path) -> None:
        if content is not None:
            (tmp_path / "words.txt").write_bytes(content)
        self.refuse(replace(proverbs, word_list=str(tmp_path / "words.txt")), ConfigError, "word_list", tmp_path)

    def test_broken_rows(self, kinds: EvaluateConfig, tmp_path: Path) -> None:
        broken = replace(kinds, data=write_jsonl(tmp_path / "broken.jsonl", [*KINDS, {"text": "", "kind": "verse"}]))
        self.refuse(broken, TrainingDataError, r"broken\.jsonl:5 has an empty value", tmp_path)
        found = evaluate(replace(broken, on_bad_row="skip"))
        assert [row.line for row in found.bad] == [5]
        assert found.metrics == evaluate(kinds).metrics

    def test_an_unknown_class(self, kinds: EvaluateConfig, tmp_path: Path) -> None:
        data = write_jsonl(tmp_path / "data.jsonl", [*KINDS, {"text": "Вечер", "kind": "drama"}])
        self.refuse(replace(kinds, data=data), LabelError, r"data\.jsonl:5: .*'drama'", tmp_path)
