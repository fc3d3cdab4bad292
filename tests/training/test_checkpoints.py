"""Checkpoints: what is in them, which ones count, and whose they are."""

from __future__ import annotations

import logging
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import sharp_model
from training.trainer_cases import CLASSIFICATION, LABELLED, ROWS, TASK, logged, make_prompt, make_trainer
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from ruprompt_fast import LSTMPromptProvider, Prompt
from ruprompt_fast.errors import CheckpointError, FileWriteError, OutputExistsError
from ruprompt_fast.prompts.ensemble import PromptEnsemble
from ruprompt_fast.training import Task
from ruprompt_fast.training.manifest import COMPLETE_FILE, damage_of, is_complete, read_manifest, write_manifest

SAVING = {"save_strategy": "steps", "save_steps": 2}


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's folder, with checkpoints of steps 2, 4 and 6."""
    make_trainer(tmp_path / "run", make_prompt(), **SAVING).train()
    return tmp_path / "run"


def test_a_checkpoint_holds_the_prompt_only(tmp_path: Path) -> None:
    prompt = make_prompt(provider=LSTMPromptProvider(seed=1))
    trainer = make_trainer(tmp_path, prompt, **SAVING)
    trainer.train()
    last = tmp_path / "checkpoint-6"
    weights = load_file(last / "model.safetensors")
    expected = {name: value for name, value in trainer.network.named_parameters() if "prompt_provider" in name}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert torch.equal(Prompt.from_pretrained(last).rows(), prompt.rows())
    assert {path.name for path in last.iterdir()} == {
        "complete.json",
        "model.safetensors",
        "optimizer.pt",
        "prompt.json",
        "prompt_provider.safetensors",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    }


def test_several_prompts_have_folders(tmp_path: Path) -> None:
    prompts = {"one": make_prompt(1), "two": make_prompt(2)}
    make_trainer(tmp_path, prompts, rows=dict.fromkeys(prompts, ROWS), **SAVING).train()
    assert is_complete(tmp_path / "checkpoint-6")
    for name, prompt in prompts.items():
        assert torch.equal(Prompt.from_pretrained(tmp_path / "checkpoint-6" / name).rows(), prompt.rows())


def test_an_ensemble_resumes(tmp_path: Path) -> None:
    whole = [make_prompt(1), make_prompt(2)]
    make_trainer(tmp_path, PromptEnsemble(whole), **SAVING).train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = [make_prompt(3), make_prompt(4)]
    make_trainer(tmp_path, PromptEnsemble(again), **SAVING).train(resume_from_checkpoint=True)
    saved = PromptEnsemble.from_pretrained(tmp_path / "checkpoint-6").members
    for one, other, stored in zip(whole, again, saved, strict=True):
        assert torch.equal(one.rows(), other.rows())
        assert torch.equal(one.rows(), stored.rows())


def test_old_checkpoints_go_and_the_best_stays(tmp_path: Path) -> None:
    make_trainer(tmp_path / "some", make_prompt(), save_total_limit=2, **SAVING).train()
    assert steps_of(tmp_path / "some") == [4, 6]
    best = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss", "greater_is_better": True}
    make_trainer(tmp_path / "best", make_prompt(), eval_dataset=ROWS, save_total_limit=2, **best, **SAVING).train()
    assert steps_of(tmp_path / "best") == [2, 6]


@pytest.mark.parametrize("damage", ["no marker", "a file is missing", "a file is short", "the marker is broken"])
def test_incomplete_checkpoints_do_not_count(run: Path, damage: str) -> None:
    whole = Prompt.from_pretrained(run / "checkpoint-6").rows()
    last = run / "checkpoint-6"
    if damage == "no marker":
        (last / COMPLETE_FILE).unlink()
    elif damage == "a file is missing":
        (last / "optimizer.pt").unlink()
    elif damage == "a file is short":
        (last / "optimizer.pt").write_bytes((last / "optimizer.pt").read_bytes()[:-1])
    else:
        (last / COMPLETE_FILE).write_text("{")
    assert not is_complete(last)
    with pytest.raises(CheckpointError, match="complete checkpoint"):
        make_trainer(run, make_prompt(), **SAVING).train(resume_from_checkpoint=str(last))
    prompt = make_prompt(seed=2)  # what it begins with does not matter
    trainer = make_trainer(run, prompt, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert torch.equal(prompt.rows(), whole)
    assert len(logged(trainer)) == 6  # those of the checkpoint and two steps more
    assert is_complete(last)


def test_a_run_that_was_cut_off_early_begins_again(tmp_path: Path, run: Path) -> None:
    whole = Prompt.from_pretrained(run / "checkpoint-6").rows()
    for step in (2, 4, 6):
        (run / f"checkpoint-{step}" / COMPLETE_FILE).unlink()
    for folder in (run, tmp_path / "nothing yet"):
        prompt = make_prompt()
        make_trainer(folder, prompt, **SAVING).train(resume_from_checkpoint=True)
        assert torch.equal(prompt.rows(), whole)
        assert steps_of(folder) == [2, 4, 6]


@pytest.mark.parametrize("epochs", [False, True], ids=["steps", "epochs"])
def test_a_finished_run_is_not_trained_further(tmp_path: Path, epochs: bool) -> None:
    settings: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 1.5} if epochs else {"max_steps": 6}
    whole = make_prompt()
    make_trainer(tmp_path, whole, **settings, **SAVING).train()
    again = make_prompt(seed=2)
    trainer = make_trainer(tmp_path, again, **settings, **SAVING)
    output = trainer.train(resume_from_checkpoint=True)
    assert torch.equal(again.rows(), whole.rows())
    assert output.global_step == trainer.state.global_step == 6
    assert output.training_loss > 0


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "eval_dataset": ROWS,
        "max_steps": 20,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_on_start": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "greater_is_better": True,
        **SAVING,
        "save_steps": 1,
    }

    def stopping() -> list[Any]:
        return [EarlyStoppingCallback(early_stopping_patience=2)]

    whole = make_prompt()
    make_trainer(tmp_path, whole, callbacks=stopping(), **settings).train()
    assert steps_of(tmp_path) == [1, 2, 3]
    for last in (3, 2):  # cut off after the last checkpoint, and after the one before: the callback goes on counting
        again = make_prompt(seed=2)
        trainer = make_trainer(tmp_path, again, callbacks=stopping(), **settings)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 3
        assert torch.equal(again.rows(), whole.rows())
        shutil.rmtree(tmp_path / f"checkpoint-{last}")


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    settings = {"lr_scheduler_type": "constant", **SAVING}
    whole = make_prompt()
    make_trainer(tmp_path / "whole", whole, **{**settings, "max_steps": 10}).train()
    make_trainer(tmp_path / "parts", make_prompt(), **settings).train()
    prompt = make_prompt(seed=2)
    make_trainer(tmp_path / "parts", prompt, **{**settings, "max_steps": 10}).train(resume_from_checkpoint=True)
    assert torch.equal(prompt.rows(), whole.rows())


def test_a_run_goes_on_in_another_folder(tmp_path: Path, run: Path) -> None:
    whole = Prompt.from_pretrained(run / "checkpoint-6").rows()
    prompt = make_prompt(seed=2)
    there = tmp_path / "there"
    make_trainer(there, prompt, **SAVING).train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert torch.equal(prompt.rows(), whole)
    assert steps_of(there) == [6]
    with pytest.raises(CheckpointError, match="seeds"):
        make_trainer(there, make_prompt(), seed=4, **SAVING).train(resume_from_checkpoint=True)


OTHER_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 4}, "seeds"),
    "rows": ({"rows": ROWS[:-1]}, "data"),
    "one letter": ({"rows": [*ROWS[:-1], {"text": "дом у реке", "target": "икер у мод"}]}, "data"),
    "batch": ({"per_device_train_batch_size": 2}, "batches"),
    "task": ({"task": Task(TASK.template, target="{target}", max_tokens=100)}, "prompts"),
    "order": ({"train_sampling_strategy": "sequential"}, "batches"),
    "last batch": ({"dataloader_drop_last": True}, "batches"),
    "optimizer": ({"optim": "adafactor"}, "optimizer"),
    "learning rate": ({"learning_rate": 0.01}, "optimizer"),
    "precision": ({"bf16": True}, "mixed_precision"),
    "model": ({"model": sharp_model("gpt2", seed=1)}, "model"),
    "objective": ({"task": CLASSIFICATION, "rows": LABELLED}, "data"),
}


@pytest.mark.parametrize("change", OTHER_RUNS)
def test_checkpoints_of_other_runs_are_refused(run: Path, change: str) -> None:
    settings, named = OTHER_RUNS[change]
    for resume in (True, str(run / "checkpoint-4")):
        with pytest.raises(CheckpointError, match=f"another run: expected {named}"):
            make_trainer(run, make_prompt(), **{**SAVING, **settings}).train(resume_from_checkpoint=resume)
    assert steps_of(run) == [2, 4, 6]


def test_a_checkpoint_is_not_resumed_into_the_folder_of_another_run(tmp_path: Path, run: Path) -> None:
    other = tmp_path / "other"
    make_trainer(other, make_prompt(), rows=ROWS[:5], **SAVING).train()
    trainer = make_trainer(other, make_prompt(), save_total_limit=1, **SAVING)
    with pytest.raises(OutputExistsError, match="checkpoint-6"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert steps_of(other) == [2, 4, 6]
    prompt, new = make_prompt(), tmp_path / "new"
    make_trainer(new, prompt, **SAVING).train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert steps_of(new) == [6]
    assert torch.equal(prompt.rows(), Prompt.from_pretrained(run / "checkpoint-6").rows())


def test_a_checkpoint_of_another_prompt_is_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match="LSTMPromptProvider.*TensorPromptProvider"):
        make_trainer(run, make_prompt(provider=LSTMPromptProvider(seed=1)), **SAVING).train(resume_from_checkpoint=True)
    trainer = make_trainer(run, make_prompt(), **SAVING)
    weights = run / "checkpoint-6" / "model.safetensors"
    save_file({name: value[:2].clone() for name, value in load_file(weights).items()}, weights)
    write_manifest(run / "checkpoint-6", read_manifest(run / "checkpoint-6").run, 6)
    with pytest.raises(CheckpointError, match=r"\[6, 32\].*\[2, 32\]"):
        trainer.train(resume_from_checkpoint=True)


def test_a_checkpoint_without_the_optimizer_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, make_prompt(), save_only_model=True, **SAVING).train()
    with pytest.raises(CheckpointError, match="save_only_model"):
        make_trainer(tmp_path, make_prompt(), **SAVING).train(resume_from_checkpoint=True)


def test_a_new_run_does_not_mix_with_an_old_one(run: Path) -> None:
    trainer = make_trainer(run, make_prompt(), **SAVING)
    with pytest.raises(OutputExistsError, match="checkpoint-6.*resume_from_checkpoint"):
        trainer.train()
    (run / "training_run.json").unlink()
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "checkpoint-4")
    (run / "checkpoint-6" / COMPLETE_FILE).unlink()  # a plain Trainer's checkpoint has none
    with pytest.raises(OutputExistsError):
        trainer.train()
    assert steps_of(run) == [6]


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x20
    path.write_bytes(content)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGED = ("optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", "model.safetensors", COMPLETE_FILE)


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("damage", ["flipped", "zeroed", "swapped"])
def test_damage_of_equal_size_is_named_and_passed_over(
    run: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Prompt.from_pretrained(run / "checkpoint-6").rows()
    last = run / "checkpoint-6"
    if damage == "flipped":
        flip(last / name, 0.7)
    elif damage == "zeroed":
        zero(last / name)
    elif (run / "checkpoint-2" / name).read_bytes() == (last / name).read_bytes():
        return  # the generators' state, where nothing draws: there is nothing to swap
    else:
        shutil.copy(run / "checkpoint-2" / name, last / name)
    with pytest.raises(CheckpointError, match=name):
        make_trainer(run, make_prompt(), **SAVING).train(resume_from_checkpoint=str(last))
    prompt = make_prompt(seed=2)
    trainer = make_trainer(run, prompt, **SAVING)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert f"{last} is damaged and passed over" in caplog.text
    assert str(last / name) in caplog.text
    assert torch.equal(prompt.rows(), whole)
    assert damage_of(last) is None  # written again


def test_a_checkpoint_under_the_name_of_another_is_passed_over(run: Path) -> None:
    whole = Prompt.from_pretrained(run / "checkpoint-6").rows()
    shutil.rmtree(run / "checkpoint-6")
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-6")
    prompt = make_prompt(seed=2)
    make_trainer(run, prompt, **SAVING).train(resume_from_checkpoint=True)
    assert torch.equal(prompt.rows(), whole)


def test_without_a_whole_checkpoint_the_run_does_not_begin_again_unasked(run: Path) -> None:
    for step in (2, 4, 6):
        flip(run / f"checkpoint-{step}" / "optimizer.pt", 0.5)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="found 3, all damaged.*optimizer.pt"):
        make_trainer(run, make_prompt(), **SAVING).train(resume_from_checkpoint=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_damaged_best_checkpoint_is_found_before_training(tmp_path: Path) -> None:
    best: dict[str, Any] = {
        "eval_dataset": ROWS,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "loss",
        "greater_is_better": True,  # the first is the best
        "load_best_model_at_end": True,
        **SAVING,
    }
    whole = make_prompt()
    make_trainer(tmp_path, whole, **best).train()
    flip(tmp_path / "checkpoint-2" / "model.safetensors", 0.9)
    shutil.rmtree(tmp_path / "checkpoint-6")
    with pytest.raises(CheckpointError, match="all damaged.*checkpoint-2"):
        make_trainer(tmp_path, make_prompt(), **best).train(resume_from_checkpoint=True)


def test_a_run_goes_on_from_an_older_checkpoint_without_losing_it(run: Path) -> None:
    """The damaged later ones neither count as kept nor push out what the run writes now."""
    whole = Prompt.from_pretrained(run / "checkpoint-6").rows()
    for step in (4, 6):
        flip(run / f"checkpoint-{step}" / "optimizer.pt", 0.5)
    prompt = make_prompt(seed=2)
    seen: list[list[int]] = []

    class Watch(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append([step for step in steps_of(run) if damage_of(run / f"checkpoint-{step}") is None])

    make_trainer(run, prompt, save_total_limit=1, callbacks=[Watch()], **SAVING).train(resume_from_checkpoint=True)
    assert seen == [[4], [6]]
    assert torch.equal(prompt.rows(), whole)


def test_only_what_the_run_wrote_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tmp_path, make_prompt(), max_steps=2, **SAVING).train()
    (tmp_path / "checkpoint-2" / "notes.txt").write_text("important")
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "thesis.txt").write_text("important too")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "checkpoint-2", elsewhere)
    (tmp_path / "checkpoint-1").symlink_to(elsewhere, target_is_directory=True)
    settings = {"max_steps": 8, "lr_scheduler_type": "constant", "save_total_limit": 1, **SAVING}
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path, make_prompt(), **settings).train(resume_from_checkpoint=True)
    assert (tmp_path / "checkpoint-2" / "notes.txt").read_text() == "important"
    assert "checkpoint-2 stays: it holds files that this run did not write, ['notes.txt']" in caplog.text
    assert (tmp_path / "checkpoint-3" / "thesis.txt").read_text() == "important too"
    assert (elsewhere / "optimizer.pt").is_file()
    assert steps_of(tmp_path) == [1, 2, 3, 8]


def test_a_removal_that_was_cut_off_at_its_first_file_is_made_up_for(tmp_path: Path) -> None:
    """The checkpoint still counts; what was to say that it does not any more never got its name."""
    make_trainer(tmp_path, make_prompt(), max_steps=2, **SAVING).train()
    (tmp_path / "checkpoint-2" / f".{'0' * 32}.tmp").write_text("{")
    settings = {"max_steps": 8, "lr_scheduler_type": "constant", "save_total_limit": 2, **SAVING}
    make_trainer(tmp_path, make_prompt(), **settings).train(resume_from_checkpoint=True)
    assert steps_of(tmp_path) == [6, 8]


def test_a_damaged_run_file_removes_nothing(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = Prompt.from_pretrained(run / "checkpoint-6").rows()
    zero(run / "training_run.json")
    prompt = make_prompt(seed=2)
    with caplog.at_level(logging.WARNING):
        make_trainer(run, prompt, **SAVING).train(resume_from_checkpoint=True)
    assert "training_run.json is damaged" in caplog.text
    assert torch.equal(prompt.rows(), whole)
    with pytest.raises(OutputExistsError):
        make_trainer(run, make_prompt(), **SAVING).train()


def test_a_checkpoint_runs_no_code(run: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    for name in ("optimizer.pt", "rng_state.pth"):
        torch.save({"state": Evil()}, run / "checkpoint-6" / name)
        write_manifest(run / "checkpoint-6", read_manifest(run / "checkpoint-6").run, 6)
        with pytest.raises(CheckpointError, match="cannot be restored"):
            make_trainer(run, make_prompt(), max_steps=8, lr_scheduler_type="constant", **SAVING).train(
                resume_from_checkpoint=True
            )
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    whole = make_prompt()
    make_trainer(tmp_path / "whole", whole, **SAVING).train()

    class Fill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = tmp_path / "run"
    trainer = make_trainer(run, make_prompt(), callbacks=[Fill()], save_total_limit=1, **SAVING)
    trainer.remove_callback(PrinterCallback)  # what it prints goes to a file here
    try:
        with pytest.raises(FileWriteError, match="checkpoint-4"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert damage_of(run / "checkpoint-2") is None
    prompt = make_prompt(seed=2)
    make_trainer(run, prompt, save_total_limit=1, **SAVING).train(resume_from_checkpoint=True)
    assert torch.equal(prompt.rows(), whole.rows())
