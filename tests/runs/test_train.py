"""Training from a configuration: the folder, what stops a run before it begins, and how an interrupted one goes on."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs.tiny_run import CLASSIFICATION, LABELLED_ROWS, ROWS, TASK, save_model, tiny_config
from tiny_models import sharp_model, tiny_tokenizer

from ruprompt_fast import FastPromptModel, Prompt, errors
from ruprompt_fast.prompts.ensemble import PromptEnsemble
from ruprompt_fast.runs.config import ModelConfig, ProviderConfig, TrainConfig, config_yaml
from ruprompt_fast.runs.data.rows import Rows
from ruprompt_fast.runs.parsing import read_config
from ruprompt_fast.runs.train import TrainOutcome, train, train_prompt
from ruprompt_fast.training.task import Task
from ruprompt_fast.training.trainer import PromptTrainer

PROMPT_FILES = ("prompt.json", "prompt_provider.safetensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, TrainOutcome]:
    config = tiny_config(
        tmp_path_factory.mktemp("finished"), model, prompt_name="ответы {a} {0}"
    )  # the card writes code around it
    return config, train(config)


def prompt_bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in PROMPT_FILES]


def run_code_of_card(folder: Path) -> None:
    """Run the card's example on a text, with the folder in the place that it names."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    place = re.search(r'"path [^"]*"', code)
    assert place is not None
    exec(code.replace(place.group(), repr(str(folder))).replace(": ...", ': "абв"'), {})


def test_the_folder_holds_the_prompt_and_all_about_it(finished: tuple[TrainConfig, TrainOutcome]) -> None:
    config, outcome = finished
    folder = outcome.folder
    assert folder == Path(config.output)
    assert torch.equal(Prompt.from_pretrained(folder).rows(), outcome.prompt.rows())
    assert read_config(TrainConfig, folder / "config.yaml") == config
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == outcome.metrics
    assert metrics["steps"] == 6
    assert metrics["train_rows"] == metrics["validation_rows"] == len(ROWS)
    assert metrics["skipped_rows"] == 0
    assert outcome.seconds == metrics["seconds"] > 0
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 6
    assert metrics["train_loss"] == losses[-1]
    assert losses[-1] < losses[0]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_tokens_per_second_counts_the_tokens_of_the_data(finished: tuple[TrainConfig, TrainOutcome]) -> None:
    _, outcome = finished
    # Twice all rows; a token per character, and one for the end of the text.
    tokens = 2 * sum(len(row["text"]) + 1 + len(row["answer"]) + 1 for row in ROWS)
    assert outcome.metrics["tokens_per_second"] * outcome.seconds == pytest.approx(tokens)


def test_the_card_is_for_the_hub(finished: tuple[TrainConfig, TrainOutcome]) -> None:
    from huggingface_hub import ModelCard

    config, outcome = finished
    card = ModelCard.load(outcome.folder / "README.md")
    assert card.data.base_model == config.model.name
    assert card.data.library_name == "ruprompt-fast"
    for text in (
        "# ответы",
        TASK.template,
        config.data.train,
        "learning_rate: `0.02`",
        "batches: `packed`",
        "| seconds |",
    ):
        assert text in card.text


def test_the_folder_generates(
    finished: tuple[TrainConfig, TrainOutcome], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = FastPromptModel.from_pretrained(model, prompts={"answer": finished[1].folder})
    output = served.generate([{"text": "абв"}], prompt="answer")[0]
    assert output.token_ids
    capsys.readouterr()
    run_code_of_card(finished[1].folder)
    assert capsys.readouterr().out == f"{output.text}\n"


def test_another_seed_gives_another_prompt(finished: tuple[TrainConfig, TrainOutcome], tmp_path: Path) -> None:
    config, outcome = finished
    other = train(replace(config, output=str(tmp_path / "other"), seed=1))
    assert not torch.equal(other.prompt.rows(), outcome.prompt.rows())


@pytest.mark.parametrize(
    "provider",
    [
        ProviderConfig("tensor", "random", std=0.1),
        ProviderConfig("tensor", "text", text="ответ"),
        ProviderConfig("tensor", "labels", labels=["да", "нет"]),
        ProviderConfig("lstm", hidden_dim=8),
        ProviderConfig("mlp", residual=True),
    ],
    ids=lambda provider: f"{provider.kind}-{provider.init}",
)
def test_every_provider_trains(provider: ProviderConfig, model: Path, tmp_path: Path) -> None:
    outcome = train(tiny_config(tmp_path, model, optimization={"max_steps": 2}, provider=provider))
    assert Prompt.from_pretrained(outcome.folder).rows().shape == (5, 32)
    assert outcome.metrics["eval_loss"] > 0


def test_prefix_tuning_trains(model: Path, tmp_path: Path) -> None:
    task = replace(TASK, template="<P*3>{text}")
    config = tiny_config(tmp_path, model, task=task, provider=ProviderConfig("prefix"), optimization={"max_steps": 2})
    outcome = train(config)
    assert Prompt.from_pretrained(outcome.folder).format.prompt_length == 3


def test_classes_are_found_as_tables_write_them(model: Path, tmp_path: Path) -> None:
    task = replace(CLASSIFICATION, labels={"true": "да", "false": "нет"})
    rows = [{"text": "абв", "label": label} for label in ("True", True, "false", "False")]
    assert train(tiny_config(tmp_path, model, task=task, rows=rows)).metrics["train_rows"] == 4


def test_a_classification_has_an_accuracy(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = train(tiny_config(tmp_path, model, task=CLASSIFICATION, rows=LABELLED_ROWS))
    assert outcome.metrics["eval_accuracy"] * len(ROWS) in range(len(ROWS) + 1)
    assert "| held-out accuracy |" in (outcome.folder / "README.md").read_text(encoding="utf-8")
    run_code_of_card(outcome.folder)
    assert capsys.readouterr().out.splitlines()[-1] in CLASSIFICATION.label_words


def test_an_ensemble_trains_in_one_run(model: Path, tmp_path: Path) -> None:
    outcome = train(tiny_config(tmp_path, model, ensemble_size=2))
    ensemble = PromptEnsemble.from_pretrained(outcome.folder)
    first, second = (member.rows() for member in ensemble.members)
    assert not torch.equal(first, second)
    run_code_of_card(outcome.folder)


def test_the_best_prompt_is_kept(model: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 8, "eval_steps": 1, "learning_rate": 1.0, "early_stopping_patience": 3}
    outcome = train(tiny_config(tmp_path, model, optimization=settings))
    lines = (outcome.folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = [entry["eval_loss"] for entry in map(json.loads, lines) if "eval_loss" in entry]
    assert outcome.metrics["eval_loss"] == pytest.approx(min(held_out), rel=1e-6)


def test_gradient_checkpointing_gives_the_same_prompt(
    finished: tuple[TrainConfig, TrainOutcome], tmp_path: Path
) -> None:
    config, outcome = finished
    optimization = replace(config.optimization, gradient_checkpointing=True)
    again = train(replace(config, output=str(tmp_path / "run"), optimization=optimization))
    torch.testing.assert_close(again.prompt.rows(), outcome.prompt.rows(), rtol=1e-4, atol=1e-5)


# Errors that need no model: each is found although the configuration names a model that does not exist.


def first_line(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "given.jsonl"
    path.write_text(text, encoding="utf-8")
    return {"train": str(path), "validation": None}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", errors.TrainingDataError, "found none"),
        ('{"text": "а"}\n', errors.MissingFieldError, "no 'answer'"),
        ('{"text": "а", "anser": "б"}\n', errors.MissingFieldError, "Did you mean 'anser'"),
        ('{"text": "а", "answer": "б"}\n{"text": "а", "answ\n', errors.TrainingDataError, r"given.jsonl:2 is not JSON"),
    ],
)
def test_bad_data_stops_before_the_model_loads(text: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data=first_line(tmp_path, text))
    with pytest.raises(error, match=message):
        train(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"provider": ProviderConfig("lstm", residual=True)}, errors.ConfigError, "lstm has the settings hidden_dim"),
        ({"provider": ProviderConfig(init="text")}, errors.PromptInitError, "belong together"),
        ({"provider": ProviderConfig(std=0.1)}, errors.ConfigError, "init=random"),
        ({"task": replace(TASK, template="{text}")}, errors.PromptLengthError, "at least one row"),
        ({"optimization": {"report_to": ["tensorbord"]}}, errors.ConfigError, "optimization.report_to.*tensorboard"),
        ({"task": CLASSIFICATION, "rows": [{"text": "а", "label": 7}]}, errors.LabelError, r"\['7'\]"),
        ({}, errors.ConfigError, "model.name: the model '/no/model/here': there is no such folder"),
    ],
)
def test_bad_settings_stop_before_the_model_loads(
    settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, **settings)
    with pytest.raises(error, match=message):
        train(config)
    assert not Path(config.output).exists()


def test_without_accelerate_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    config = tiny_config(tmp_path)
    with pytest.raises(errors.MissingDependencyError, match="accelerate.*ruprompt-fast\\[train\\]"):
        train(config)
    assert not Path(config.output).exists()


def test_an_output_folder_that_exists_is_refused(finished: tuple[TrainConfig, TrainOutcome], tmp_path: Path) -> None:
    config, outcome = finished
    before = prompt_bytes(outcome.folder)
    with pytest.raises(errors.OutputExistsError, match="finished run"):
        train(config)
    with pytest.raises(errors.OutputExistsError, match="something else"):
        train(replace(config, output=str(tmp_path)))
    assert prompt_bytes(outcome.folder) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "rows", "error", "message"),
    [
        (TASK, [{"text": "а", "answer": "б" * 200}], errors.ContextLengthError, "row 0"),
        (
            replace(TASK, truncation_field=None),
            [{"text": "а" * 200, "answer": "б"}],
            errors.ContextLengthError,
            "row 0",
        ),
        (
            replace(CLASSIFICATION, labels={"1": "да", "0": "дно"}),
            LABELLED_ROWS,
            errors.LabelError,
            "begin with the same token",
        ),
    ],
)
def test_what_only_tokens_show_stops_before_any_compute(
    task: Task, rows: list[dict[str, Any]], error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = sharp_model("gpt2")
    embedding = model.get_input_embeddings()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    config = tiny_config(tmp_path, task=task, rows=rows)
    with pytest.raises(error, match=message):
        train_prompt(
            config, model, tiny_tokenizer(), Rows([{k: str(v) for k, v in r.items()} for r in rows], [], "rows")
        )
    assert not calls
    assert not Path(config.output).exists()
    assert model.get_input_embeddings() is embedding


def test_training_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = sharp_model("gpt2")
    embedding = model.get_input_embeddings()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = tiny_config(tmp_path)
    first = train_prompt(config, model, tiny_tokenizer(), Rows(ROWS, [], "rows"))
    second = train_prompt(
        replace(config, output=str(tmp_path / "second")), model, tiny_tokenizer(), Rows(ROWS, [], "rows")
    )
    assert model.get_input_embeddings() is embedding
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert prompt_bytes(first.folder) == prompt_bytes(second.folder)
    assert first.metrics["validation_rows"] == 0


def test_skipped_rows_are_counted_at_the_end(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(
        tmp_path, model, data={"on_bad_row": "skip", "validation": None}, optimization={"max_steps": 1}
    )
    with Path(config.data.train).open("a", encoding="utf-8") as file:
        file.write("{]\n")
    with caplog.at_level(logging.WARNING):
        outcome = train(config)
    assert outcome.metrics["skipped_rows"] == 1
    assert f"{config.data.train}:{len(ROWS) + 1} is not JSON" in caplog.text
    assert "1 broken rows of the data were skipped" in caplog.messages[-1]


def test_a_finished_run_is_not_trained_again(finished: tuple[TrainConfig, TrainOutcome]) -> None:
    config, outcome = finished
    stamps = {path: path.stat().st_mtime_ns for path in outcome.folder.rglob("*")}
    again = train(replace(config, resume=True))
    assert again.metrics == outcome.metrics
    assert torch.equal(again.prompt.rows(), outcome.prompt.rows())
    assert {path: path.stat().st_mtime_ns for path in outcome.folder.rglob("*")} == stamps


def test_the_history_begins_before_the_first_step(model: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, model, optimization={"max_steps": 250})
    outcome = train(config)
    history = history_of(outcome.folder)
    held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    assert [step for step, _ in held_out] == [0, 250]
    assert outcome.metrics["eval_loss_before"] == held_out[0][1]
    assert outcome.metrics["eval_loss"] == held_out[1][1]
    # Of 250 steps every third is a point of the curve, and each of the first ones.
    assert [entry["step"] for entry in history if "loss" in entry][:4] == [1, 2, 3, 6]
    assert "held-out loss before the first step" in (outcome.folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("eval_steps", [None, 3])
def test_no_validation_runs_twice(
    eval_steps: int | None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    evaluate = PromptTrainer.evaluate

    def counted(trainer: PromptTrainer, *args: Any, **settings: Any) -> dict[str, float]:
        steps.append(trainer.state.global_step)
        return evaluate(trainer, *args, **settings)

    monkeypatch.setattr(PromptTrainer, "evaluate", counted)
    outcome = train(tiny_config(tmp_path, model, optimization={"max_steps": 6, "eval_steps": eval_steps}))
    assert steps == ([0, 6] if eval_steps is None else [0, 3, 6])
    assert "eval_loss" in outcome.metrics


def test_a_finished_run_is_extended(model: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "schedule": "constant", "warmup_fraction": 0.0}
    first = tiny_config(tmp_path, model, optimization=settings)
    train(first)
    more = replace(first, resume=True, optimization=replace(first.optimization, max_steps=8))
    longer = train(more)
    assert longer.metrics["steps"] == 8
    assert read_config(TrainConfig, longer.folder / "config.yaml").optimization.max_steps == 8
    assert [entry["step"] for entry in history_of(longer.folder) if "loss" in entry] == list(range(1, 9))
    # With a constant learning rate it is the run that had so many steps from the beginning.
    whole = train(replace(more, resume=False, output=str(tmp_path / "whole")))
    assert prompt_bytes(longer.folder) == prompt_bytes(whole.folder)
    stamps = {path: path.stat().st_mtime_ns for path in longer.folder.rglob("*")}
    assert train(more).metrics == longer.metrics
    assert {path: path.stat().st_mtime_ns for path in longer.folder.rglob("*")} == stamps
    with pytest.raises(errors.CheckpointError, match=r"optimization.max_steps=8; found 4"):
        train(replace(first, resume=True))


def test_an_interrupted_extension_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny_config(tmp_path, model, optimization={"max_steps": 4, "save_steps": 2})
    train(first)
    more = replace(first, resume=True, optimization=replace(first.optimization, max_steps=8))
    with monkeypatch.context() as patched:
        patched.setattr("ruprompt_fast.runs.train.figures_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(more)
    assert not (Path(first.output) / "metrics.json").exists()
    assert train(more).metrics["steps"] == 8


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["tensor", "prefix"])
def test_a_run_starts_from_a_saved_prompt(kind: str, model: Path, tmp_path: Path) -> None:
    task = replace(TASK, template="<P*3>{text}")
    first = train(tiny_config(tmp_path, model, task=task, provider=ProviderConfig(kind)))
    provider = ProviderConfig(kind, f"prompt:{first.folder}")
    more = tiny_config(tmp_path, model, task=task, provider=provider, output=str(tmp_path / "more"))
    second = train(more)
    # A validation in batches of other texts sums in another order.
    assert second.metrics["eval_loss_before"] == pytest.approx(first.metrics["eval_loss"], rel=1e-5)
    assert second.metrics["eval_loss"] < first.metrics["eval_loss"]
    assert not torch.equal(second.prompt.rows(), first.prompt.rows())
    other = "prefix" if kind == "tensor" else "tensor"
    with pytest.raises(errors.ConfigError, match="Set the kind"):
        train(replace(more, output=str(tmp_path / "other"), provider=ProviderConfig(other, provider.init)))
    with pytest.raises(errors.PromptMismatchError, match="need rows"):
        train(replace(more, output=str(tmp_path / "other"), task=replace(task, template="<P*4>{text}")))
    assert not (tmp_path / "other").exists()


def test_quantized_bases_are_not_trained(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="model.quantization=int8 cannot be trained on"):
        tiny_config(tmp_path, model=ModelConfig(quantization="int8"))


def history_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_is_resumed_with_its_own_configuration_only(
    finished: tuple[TrainConfig, TrainOutcome], tmp_path: Path
) -> None:
    config, outcome = finished
    other = replace(config, resume=True, optimization=replace(config.optimization, learning_rate=0.5))
    with pytest.raises(errors.CheckpointError, match=r"optimization.learning_rate=None; found 0.5"):
        train(other)
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    with pytest.raises(errors.CheckpointError, match="folder of a run"):
        train(replace(config, resume=True, output=str(tmp_path)))


@pytest.mark.parametrize("written", [f".{'0a' * 16}.tmp", "config.yaml"])
def test_a_run_that_was_cut_off_before_its_first_checkpoint_begins_again(
    written: str, finished: tuple[TrainConfig, TrainOutcome], tmp_path: Path
) -> None:
    config, outcome = finished
    config = replace(config, output=str(tmp_path / "run"), resume=True)
    (Path(config.output) / "checkpoints").mkdir(parents=True)
    (Path(config.output) / written).write_text(config_yaml(config), encoding="utf-8")
    assert prompt_bytes(train(config).folder) == prompt_bytes(outcome.folder)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_prompt(model: Path, tmp_path: Path) -> None:
    """The run is killed with SIGKILL at whatever it does after its second checkpoint."""
    settings = {"max_steps": 150, "save_steps": 5}
    config = tiny_config(tmp_path, model, optimization=settings)
    (tmp_path / "given.yaml").write_text(config_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "ruprompt_fast.cli", "train", str(tmp_path / "given.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    checkpoint = Path(config.output) / "checkpoints" / "checkpoint-10" / "complete.json"
    try:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.kill()
    _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr.decode()
    assert not (Path(config.output) / "prompt.json").exists()
    resumed = train(replace(config, resume=True))
    whole = train(replace(config, output=str(tmp_path / "whole")))
    assert prompt_bytes(resumed.folder) == prompt_bytes(whole.folder)
    assert resumed.metrics["train_loss"] == whole.metrics["train_loss"]
    assert resumed.metrics["eval_loss"] == whole.metrics["eval_loss"]


def test_a_row_that_is_too_long_is_named_by_its_line_or_left_out(model: Path, tmp_path: Path) -> None:
    task = replace(TASK, truncation_field=None, max_tokens=30)
    rows = [{"text": "", "answer": "да"}, *ROWS[:3], {"text": "а" * 90, "answer": "да"}]
    config = tiny_config(
        tmp_path, model, task=task, rows=rows, data={"on_bad_row": "skip"}, optimization={"max_steps": 1}
    )
    outcome = train(config)
    assert outcome.metrics["train_rows"] == outcome.metrics["validation_rows"] == 3
    assert outcome.metrics["skipped_rows"] == 4
    rows = tiny_config(tmp_path, model, task=task, rows=rows[1:], output=str(tmp_path / "other"))
    with pytest.raises(errors.ContextLengthError, match=r"rows\.jsonl:4: "):
        train(rows)
