"""PromptTrainer: the losses of plain training, one prompt, several, and ensembles."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import sharp_model, tiny_model, tiny_tokenizer
from tolerances import relative_error
from torch import nn
from training.trainer_cases import (
    CLASSIFICATION,
    LABELLED,
    ROWS,
    TASK,
    arguments,
    logged,
    make_prompt,
    make_trainer,
)
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from ruprompt_fast import (
    FastPromptModel,
    FreezeTransformerUnfreezePrompt,
    LSTMPromptProvider,
    MLPPromptProvider,
    Prompt,
    TensorPromptProvider,
    Text2TextPreprocessor,
)
from ruprompt_fast.embedding import PromptSlot, SplicedEmbedding, attach_prompts, detach_prompts
from ruprompt_fast.errors import AlreadyAttachedError
from ruprompt_fast.prompts import PrefixTuningProvider
from ruprompt_fast.prompts.ensemble import PromptEnsemble
from ruprompt_fast.training import PromptTrainer, Task, prompt_for
from ruprompt_fast.training.arguments import CHECKPOINTING

# Losses and rows after several steps of the same mathematics in another order.
STEPS_ERROR = 1e-5


def plain_run(folder: Path, provider: Any, **settings: Any) -> tuple[list[float], list[float], torch.Tensor]:
    """ruPrompts' way: transformers' Trainer, padded batches, a patched model without dropout."""
    model, tokenizer = sharp_model("gpt2"), tiny_tokenizer()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    prompt = make_prompt(provider=provider)
    prompt.patch(model, tokenizer)
    preprocess = Text2TextPreprocessor(prompt.format, tokenizer, target_field="target")
    trainer = Trainer(
        model,
        arguments(folder, **settings),
        train_dataset=[preprocess(row) for row in ROWS],
        data_collator=preprocess.collate_fn(),
        callbacks=[FreezeTransformerUnfreezePrompt()],
    )
    trainer.train()
    return logged(trainer), logged(trainer, "grad_norm"), prompt.rows()


@pytest.mark.parametrize(
    "make_provider",
    [
        lambda: TensorPromptProvider(seed=1),
        lambda: LSTMPromptProvider(seed=1),
        lambda: MLPPromptProvider(residual=True, seed=1),
    ],
    ids=["tensor", "lstm", "mlp"],
)
def test_losses_are_those_of_plain_training(tmp_path: Path, make_provider: Any) -> None:
    settings = {"gradient_accumulation_steps": 2, "max_steps": 8}
    losses, norms, rows = plain_run(tmp_path / "plain", make_provider(), **settings)
    prompt = make_prompt(provider=make_provider())
    trainer = make_trainer(tmp_path / "ours", prompt, **settings)
    assert trainer.runner.name == "packed"
    trainer.train()
    assert logged(trainer) == pytest.approx(losses, rel=STEPS_ERROR)
    assert logged(trainer, "grad_norm") == pytest.approx(norms, rel=STEPS_ERROR * 10)
    assert relative_error(prompt.rows(), rows) < STEPS_ERROR


def test_only_the_prompt_changes_and_is_saved(tmp_path: Path) -> None:
    model = sharp_model("gpt2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_cache = model.config.use_cache
    prompt = make_prompt()
    args = arguments(tmp_path, max_steps=20)
    trainer = PromptTrainer(model, args, prompt=prompt, task=TASK, tokenizer=tiny_tokenizer(), train_dataset=ROWS)
    start = prompt.rows()
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert logged(trainer)[-1] < logged(trainer)[0]
    assert not torch.equal(prompt.rows(), start)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(module.training for module in model.modules())
    assert model.config.use_cache == use_cache
    assert args.remove_unused_columns  # the caller's arguments stay as they were
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "prompt.json",
        "prompt_provider.safetensors",
    ]
    assert torch.equal(Prompt.from_pretrained(tmp_path / "saved").rows(), prompt.rows())
    detach_prompts(model)
    assert not isinstance(model.get_input_embeddings(), SplicedEmbedding)


def test_a_patched_model_keeps_its_slot(tmp_path: Path) -> None:
    model, tokenizer, prompt = sharp_model("gpt2"), tiny_tokenizer(), make_prompt()
    prompt.patch(model, tokenizer)
    embedding = model.get_input_embeddings()
    trainer = PromptTrainer(
        model, arguments(tmp_path), prompt=prompt, task=TASK, tokenizer=tokenizer, train_dataset=ROWS
    )
    trainer.train()
    assert model.get_input_embeddings() is embedding
    assert prompt.is_attached
    fresh = make_prompt()
    make_trainer(tmp_path, fresh).train()
    assert torch.equal(prompt.rows(), fresh.rows())


def test_other_prompts_of_the_model_stay(tmp_path: Path) -> None:
    model, tokenizer = sharp_model("gpt2"), tiny_tokenizer()
    prompts = [make_prompt(1), make_prompt(2)]
    for prompt in prompts:
        prompt.initialize(model, tokenizer)
    attach_prompts(model, [PromptSlot(prompt.provider, 6) for prompt in prompts], len(tokenizer))
    before = [prompt.rows() for prompt in prompts]
    make_trainer(tmp_path, prompts[0], model, weight_decay=0.1).train()
    assert not torch.equal(prompts[0].rows(), before[0])
    assert torch.equal(prompts[1].rows(), before[1])


def test_half_precision_models_train_float32_rows(tmp_path: Path) -> None:
    model, prompt = sharp_model("llama").to(torch.bfloat16), make_prompt()
    trainer = make_trainer(tmp_path, prompt, model, max_steps=20)
    trainer.train()
    assert prompt.rows().dtype == torch.float32
    assert logged(trainer)[-1] < logged(trainer)[0]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])  # rotary positions are in float32 under autocast
def test_bf16_autocast_stays_close(tmp_path: Path, family: str) -> None:
    exact = make_trainer(tmp_path / "exact", make_prompt(), sharp_model(family))
    exact.train()
    mixed = make_trainer(tmp_path / "mixed", make_prompt(), sharp_model(family), bf16=True, eval_dataset=ROWS)
    mixed.train()
    assert mixed.runner.name == "packed"
    assert logged(mixed) == pytest.approx(logged(exact), rel=0.02)
    assert logged(mixed) != logged(exact)
    assert all(value.dtype == torch.float32 for value in mixed.trained.values())
    assert mixed.evaluate()["eval_loss"] == pytest.approx(logged(mixed)[-1], rel=0.5)


def test_mixed_precision_over_a_half_precision_model(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_prompt(), sharp_model("llama").to(torch.bfloat16), max_steps=20, bf16=True)
    trainer.train()
    assert logged(trainer)[-1] < logged(trainer)[0]


def test_every_run_has_its_own_precision(tmp_path: Path) -> None:
    model, found = sharp_model("gpt2"), []
    model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda module, inputs, output: found.append(output.dtype))
    for bf16 in (False, True, False):
        trainer = make_trainer(tmp_path, make_prompt(), model, max_steps=1, bf16=bf16)
        found.clear()
        trainer.train()
        trainer.train()
        assert found == [torch.bfloat16 if bf16 else torch.float32] * 2


def test_nothing_of_a_run_stays_at_the_model(tmp_path: Path) -> None:
    model = sharp_model("llama")
    before, state = set(vars(model)), model.state_dict().keys()
    trainer = make_trainer(tmp_path, make_prompt(), model, max_steps=2, bf16=True, **{CHECKPOINTING: True})
    assert model.config.use_cache
    for _ in range(2):
        trainer.train()
        assert not model.is_gradient_checkpointing
        assert not any(module.training for module in model.modules())
        of_attachment = {"resize_token_embeddings"}  # which is refused while prompts are attached
        assert set(vars(model)) - before <= {"_require_grads_hook", "_require_grads_hooks"} | of_attachment
    detach_prompts(model)
    assert not of_attachment & set(vars(model))
    assert model.state_dict().keys() == state
    ids = torch.arange(4, 13)[None]
    assert torch.equal(model(ids).logits, sharp_model("llama")(ids).logits)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gptj"])
def test_checkpointed_layers_give_the_same(tmp_path: Path, family: str) -> None:
    runs = {}
    for name, settings in {"kept": {}, "checkpointed": {CHECKPOINTING: True}}.items():
        trainer = make_trainer(tmp_path / name, make_prompt(), sharp_model(family), max_steps=3, **settings)
        counter = CallCounter()
        counter.watch(trainer.network)
        trainer.train()
        runs[name] = (logged(trainer), logged(trainer, "grad_norm"))
        assert counter.calls == counter.layers * 3 * (2 if settings else 1)
    assert runs["checkpointed"][0] == pytest.approx(runs["kept"][0], rel=STEPS_ERROR)
    assert runs["checkpointed"][1] == pytest.approx(runs["kept"][1], rel=STEPS_ERROR * 10)


class CallCounter:
    """Counts how often the layers' first normalization runs: once more where a layer runs again in the backward."""

    def __init__(self) -> None:
        self.calls = self.layers = 0

    def watch(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            if name.endswith((".ln_1", ".input_layernorm", ".self_attn_layer_norm")):
                self.layers += 1
                module.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1


def test_nobody_asks_a_packed_batch_for_padding(tmp_path: Path) -> None:
    """On a GPU the question would wait for the device."""
    model = sharp_model("gpt2")
    model.config.pad_token_id = 0  # the id that fills a batch up
    asked: list[Any] = []
    model.transformer.register_forward_pre_hook(lambda module, args: asked.append(module.config.pad_token_id))
    trainer = make_trainer(tmp_path, make_prompt(), model, max_steps=2)
    asked.clear()
    trainer.train()
    assert asked == [None, None]
    assert model.config.pad_token_id == 0


def test_batches_that_a_worker_packs_are_the_same(tmp_path: Path) -> None:
    prompts = [make_prompt(), make_prompt()]
    for num_workers, prompt in enumerate(prompts):
        make_trainer(tmp_path, prompt, max_steps=3, dataloader_num_workers=num_workers).train()
    assert torch.equal(prompts[0].rows(), prompts[1].rows())


def test_a_padded_model_trains(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_prompt(), sharp_model("gptj"), max_steps=20, eval_dataset=ROWS)
    assert trainer.runner.name == "padded"
    trainer.train()
    assert logged(trainer)[-1] < logged(trainer)[0]
    assert trainer.evaluate()["eval_loss"] > 0


def test_an_encoder_decoder_trains(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_prompt(), tiny_model("t5"), max_steps=20, learning_rate=0.3)
    trainer.train()
    assert logged(trainer)[-1] < logged(trainer)[0]


def exact_eval_loss(trainer: PromptTrainer, prompt: int | None = None) -> float:
    """The mean over single examples."""
    total = items = 0.0
    with torch.no_grad(), trainer.runner.routing():
        for item in trainer.eval_dataset.items:
            for example in item:
                if prompt in (None, example["prompt"]):
                    result = trainer.runner.loss(trainer.model, trainer.runner.collate([example]))
                    total, items = total + float(result.total), items + result.num_items
    return total / items


def test_evaluation_is_a_mean_over_all_tokens(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_prompt(), eval_dataset=ROWS, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(exact_eval_loss(trainer), rel=STEPS_ERROR)
    assert "eval_accuracy" not in metrics
    assert trainer.evaluate(ROWS[:3], metric_key_prefix="test")["test_loss"] != metrics["eval_loss"]


def test_classification_learns_its_labels(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, make_prompt(), task=CLASSIFICATION, rows=LABELLED, eval_dataset=LABELLED, max_steps=60
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_accuracy"] > before["eval_accuracy"]
    assert after["eval_accuracy"] >= 0.9
    assert after["eval_loss"] == pytest.approx(exact_eval_loss(trainer), rel=STEPS_ERROR)


def test_the_best_prompt_comes_back(tmp_path: Path) -> None:
    prompt = make_prompt()
    trainer = make_trainer(
        tmp_path,
        prompt,
        eval_dataset=ROWS,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first evaluation is the best, as the loss falls
        save_total_limit=1,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-2"
    assert torch.equal(Prompt.from_pretrained(best).rows(), prompt.rows())


def test_early_stopping_stops(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        make_prompt(),
        eval_dataset=ROWS,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        max_steps=20,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    trainer.train()
    assert trainer.state.global_step == 3


def test_several_prompts_train_in_one_run(tmp_path: Path) -> None:
    prompts = {"back": make_prompt(1), "copy": make_prompt(2, "<P*3>{text}<P>")}
    tasks = {"back": TASK, "copy": Task("<P*3>{text}<P>", target="{text}")}
    rows = {"back": ROWS, "copy": ROWS[:7]}
    trainer = make_trainer(tmp_path, prompts, task=tasks, rows=rows, eval_dataset=rows, max_steps=30)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for index, name in enumerate(prompts):
        assert after[f"eval_{name}_loss"] < before[f"eval_{name}_loss"]
        assert after[f"eval_{name}_loss"] == pytest.approx(exact_eval_loss(trainer, index), rel=STEPS_ERROR)
    assert after["eval_loss"] == pytest.approx(exact_eval_loss(trainer), rel=STEPS_ERROR)
    trainer.save_model(str(tmp_path / "saved"))
    for name, prompt in prompts.items():
        assert torch.equal(Prompt.from_pretrained(tmp_path / "saved" / name).rows(), prompt.rows())


@pytest.mark.parametrize("hidden_dim", [None, 8], ids=["direct", "network"])
def test_deep_prompts_train_beside_others(tmp_path: Path, hidden_dim: int | None) -> None:
    prompts = {
        "deep": make_prompt(template="<P*4>{text}", provider=PrefixTuningProvider(hidden_dim=hidden_dim, seed=1)),
        "rows": make_prompt(1),
    }
    tasks = {"deep": Task("<P*4>{text}", target="{target}"), "rows": TASK}
    rows = dict.fromkeys(prompts, ROWS)
    trainer = make_trainer(
        tmp_path, prompts, task=tasks, rows=rows, eval_dataset=rows, max_steps=30, save_strategy="steps", save_steps=15
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name, prompt in prompts.items():
        assert after[f"eval_{name}_loss"] < before[f"eval_{name}_loss"]
        assert torch.equal(Prompt.from_pretrained(tmp_path / "checkpoint-30" / name).rows(), prompt.rows())
    whole = [prompt.rows() for prompt in prompts.values()]
    shutil.rmtree(tmp_path / "checkpoint-30")
    again = {
        "deep": make_prompt(template="<P*4>{text}", provider=PrefixTuningProvider(hidden_dim=hidden_dim)),
        "rows": make_prompt(2),
    }
    make_trainer(
        tmp_path, again, task=tasks, rows=rows, eval_dataset=rows, max_steps=30, save_strategy="steps", save_steps=15
    ).train(resume_from_checkpoint=True)
    assert all(torch.equal(prompt.rows(), rows) for prompt, rows in zip(again.values(), whole, strict=True))


@pytest.mark.parametrize("task", [TASK, CLASSIFICATION], ids=["text", "classes"])
def test_a_member_trains_as_if_alone(tmp_path: Path, task: Task) -> None:
    rows = ROWS if task is TASK else LABELLED
    settings = {"task": task, "rows": rows, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "max_steps": 5}
    members = [make_prompt(seed) for seed in (1, 2, 3)]
    together = make_trainer(tmp_path / "all", PromptEnsemble(members), **settings)
    together.train()
    losses = []
    for seed, member in enumerate(members, start=1):
        alone = make_prompt(seed)
        trainer = make_trainer(tmp_path / str(seed), alone, **settings)
        trainer.train()
        losses.append(logged(trainer))
        assert relative_error(member.rows(), alone.rows()) < STEPS_ERROR
    mean = [sum(step) / len(step) for step in zip(*losses, strict=True)]
    assert logged(together) == pytest.approx(mean, rel=STEPS_ERROR)
    together.save_model(str(tmp_path / "saved"))
    for saved, member in zip(PromptEnsemble.from_pretrained(tmp_path / "saved").members, members, strict=True):
        assert torch.equal(saved.rows(), member.rows())


def test_lengths_can_be_grouped(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(list(kwargs["train_dataloader"].batch_sampler.sampler))

    make_trainer(tmp_path, make_prompt(), train_sampling_strategy="group_by_length", callbacks=[Watch()]).train()
    lengths = [len(row["text"]) for row in ROWS]
    assert len({tuple(order) for order in seen}) > 1  # by epoch
    for order in seen:
        assert sorted(order) == list(range(len(ROWS)))
        assert max(order[:3], key=lambda index: lengths[index]) == lengths.index(max(lengths))


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "adafactor"])
def test_evaluation_sees_every_update(tmp_path: Path, optim: str) -> None:
    prompt = make_prompt(provider=LSTMPromptProvider(seed=1))  # its rows are computed, and kept between calls
    settings = {"eval_strategy": "steps", "eval_steps": 1, "optim": optim, "max_steps": 3}
    trainer = make_trainer(tmp_path, prompt, eval_dataset=ROWS, **settings)
    trainer.train()
    assert len(set(logged(trainer, "eval_loss"))) == 3
    assert logged(trainer, "eval_loss")[-1] == pytest.approx(exact_eval_loss(trainer), rel=STEPS_ERROR)


def test_a_model_that_is_served_is_refused(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    served = FastPromptModel.from_pretrained(model, tokenizer=tokenizer)
    task = Task("<P*3>{text}", target="{out}")
    prompt = prompt_for(task, TensorPromptProvider())
    rows = [{"text": "а", "out": "б"}]

    def trainer() -> PromptTrainer:
        args = TrainingArguments(str(tmp_path), max_steps=1, report_to=[])
        return PromptTrainer(model, args, prompt=prompt, task=task, tokenizer=tokenizer, train_dataset=rows)

    with pytest.raises(AlreadyAttachedError, match=r"call its detach\(\)"):
        trainer()
    assert served.generate("а", max_new_tokens=2)
    served.detach()
    trainer().train()
