"""The bundled model and prompts: what the model card promises."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from corpora import corpus
from safetensors import safe_open

from ruprompt_fast import FastPromptModel, bundled

HERE = Path(bundled.__file__).parent
FIGURES = json.loads((HERE / "prompts" / "figures.json").read_text(encoding="utf-8"))
PRETRAINING = json.loads((HERE / "model" / "pretraining.json").read_text(encoding="utf-8"))
EXAMPLES = Path(__file__).parents[1] / "examples" / "bundled_model"


@pytest.fixture(scope="module")
def model() -> FastPromptModel:
    return bundled.load()


def test_size_and_architecture(model: FastPromptModel) -> None:
    weights = bundled.MODEL / "model.safetensors"
    assert weights.stat().st_size <= 16_000_000
    with safe_open(weights, "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118
    assert model.model.config.model_type == "gpt2"
    assert len(model.tokenizer) <= 8192


def test_prompts_name_no_folder_of_a_machine() -> None:
    assert set(bundled.PROMPTS) >= {"proverb", "verse", "gogol", "kind"}
    for folder in bundled.PROMPTS.values():
        config = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))["config"]
        assert config["pretrained_model_name"] == "ruprompt-fast/ruslit-gpt2-7m"


def test_every_style_prompt_is_the_best_on_its_own_text() -> None:
    matrix = FIGURES["nats_per_token"]
    for kind, margin in FIGURES["margin"].items():
        best_other = min(row[kind] for name, row in matrix.items() if name != kind)
        assert best_other - matrix[kind][kind] == pytest.approx(margin["nats_per_token"], abs=0.0015)
        assert margin["nats_per_token"] > 10 * margin["standard_error"]


def test_the_classifier_beats_the_majority() -> None:
    assert FIGURES["kind"]["accuracy"] > FIGURES["kind"]["majority"] + 0.2


def test_the_card_quotes_the_recorded_figures() -> None:
    card = (HERE / "README.md").read_text(encoding="utf-8")
    quoted = [PRETRAINING["steps"], PRETRAINING["held_out_bits_per_byte"], FIGURES["kind"]["accuracy"]]
    quoted += [value for row in FIGURES["nats_per_token"].values() for value in row.values()]
    for value in quoted:
        assert (f"{value:,}" if isinstance(value, int) else str(value)) in card


def test_mixed_batch_equals_each_request_alone(model: FastPromptModel) -> None:
    inputs = ["Без труда", "Я помню", "Иван Иванович", "Вечером", "Белеет парус одинокой"]
    names = ["proverb", "verse", "gogol", None, "kind"]
    together = model.generate(inputs, prompt=names, max_new_tokens=24, do_sample=False)
    for output, text, name in zip(together, inputs, names, strict=True):
        assert output == model.generate(text, prompt=name, max_new_tokens=24, do_sample=False)[0]
        assert output.text


def test_it_writes_russian(model: FastPromptModel) -> None:
    outputs = model.generate(["Он", "Когда"], max_new_tokens=60, do_sample=False, no_repeat_ngram_size=3)
    letters = [c for output in outputs for c in output.text if c.isalpha()]
    assert sum("а" <= c.lower() <= "я" or c in "ёЁ" for c in letters) > 0.95 * len(letters)


@pytest.mark.slow
def test_recorded_matrix_is_what_the_shipped_files_give(
    model: FastPromptModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    literature, proverbs = corpus("ruslit.tar.xz"), corpus("proverbs.txt")
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    import measure_prompts
    import train_prompts

    items = train_prompts.labelled(literature, held_out=True, size=FIGURES["kind"]["items"])
    assert measure_prompts.measure_classifier(model, items)["accuracy"] == pytest.approx(
        FIGURES["kind"]["accuracy"], abs=0.005
    )
    data = train_prompts.styles(literature, proverbs)
    served = bundled.load()
    prompts = dict(served.prompts)
    found = measure_prompts.measure_styles(served.detach(), served.tokenizer, prompts, data)["nats_per_token"]
    for name, row in FIGURES["nats_per_token"].items():
        assert found[name] == pytest.approx(row, abs=0.01)
