"""The same training of one prompt by our trainer, by ruPrompts' way and by PEFT, each in a process of its own.

A process trains for as long as it is told to: after every step it reports and waits for the word. So the steps of
several candidates can be timed in turns, and the memory of each is its own. On a GPU the device is done with a step
before its report.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import random_gpt2, random_prompt, word_tokenizer
from peak_memory import PeakMemory
from peers import missing
from prompt_peers import MarkerEmbedding
from torch import nn
from training_data import BATCH_SIZE, END, samples, words
from transformers import (
    DataCollatorForSeq2Seq,
    GPT2LMHeadModel,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ruprompt_fast.training import PromptTrainer, Task

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# All candidates hold the frozen weights in it; in half precision they train under autocast, with a scaled loss in
# float16, and rows in float32: what a card without bfloat16 trains with.
DTYPE = torch.float16 if DEVICE == "cuda" else torch.float32
IGNORED_LABEL = -100


@dataclass(frozen=True)
class Setting:
    """What all candidates train.

    Attributes:
        folder: the model's; None for random weights, which every process makes on the device, the same in each.
        num_rows: of the prompt; all of them lead, which is the only place where PEFT can have them.
        num_steps: how many batches there are.
        dtype: of the frozen weights.
    """

    folder: Path | None
    num_rows: int
    num_steps: int
    dtype: torch.dtype = DTYPE

    @property
    def template(self) -> str:
        """The prompt's template."""
        return f"<P*{self.num_rows}>{{text}}"

    def arguments(self) -> TrainingArguments:
        """Of every trainer; the batches come in the order of the data."""
        return TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            max_steps=self.num_steps,
            per_device_train_batch_size=BATCH_SIZE,
            train_sampling_strategy="sequential",
            optim="adamw_torch",
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            dataloader_pin_memory=DEVICE != "cpu",
            disable_tqdm=True,
            use_cpu=DEVICE == "cpu",
            fp16=self.dtype is torch.float16,
            bf16=self.dtype is torch.bfloat16,
        )

    def model(self) -> GPT2LMHeadModel:
        """The frozen model, without dropout, which would make the losses differ."""
        if self.folder is not None:
            model = GPT2LMHeadModel.from_pretrained(self.folder, dtype=self.dtype)
        else:
            torch.set_default_dtype(self.dtype)
            with torch.device(DEVICE):
                model = random_gpt2()
            torch.set_default_dtype(torch.float32)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model.to(DEVICE)


@dataclass(frozen=True)
class Step:
    """What a process reports of a step: the mean loss over the label tokens, and bytes over the model's own so far."""

    loss: float
    peak_bytes: int


class TrainingProcess:
    """A candidate in its process, with the model loaded.

    Args:
        name: one of :data:`TRAINERS`.
        setting: what it trains.
    """

    def __init__(self, name: str, setting: Setting) -> None:
        if name == "PEFT":
            pytest.importorskip("peft", reason=missing("peft"))
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_train, args=(name, setting, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.steps: list[Step] = []

    def step(self) -> Step:
        """Train one step, from fetching the batch to the optimizer's update."""
        self._connection.send("step")
        self.steps.append(self._connection.recv())
        return self.steps[-1]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


class _OnRequest(TrainerCallback):  # type: ignore[misc]
    """Trains one step for every message, and answers it with a :class:`Step`."""

    def __init__(self, connection: Connection, memory: PeakMemory) -> None:
        self._connection = connection
        self._memory = memory

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._connection.recv()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = kwargs["logs"].get("loss")
        if loss is not None:  # the log of the training's end has none
            self._connection.send(Step(loss, self._memory.peak_bytes()))
            self._connection.recv()


def _train(name: str, setting: Setting, connection: Connection) -> None:
    """The process: loads the model, then makes the trainer, whose memory counts."""
    model = setting.model()
    memory = PeakMemory(DEVICE, [*model.parameters()])
    trainer = TRAINERS[name](model, setting)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_OnRequest(connection, memory))
    trainer.train()


def _ours(model: PreTrainedModel, setting: Setting) -> Trainer:
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"eos_token": words([END])})
    return PromptTrainer(
        model,
        setting.arguments(),
        prompt=random_prompt(setting.template, setting.num_rows, seed=0),
        task=Task(setting.template, target=" {target}"),
        tokenizer=tokenizer,
        train_dataset=[
            # The end of the text is the trainer's to append.
            {"text": words(sample.source), "target": words(sample.target[:-1])}
            for sample in samples(setting.num_steps)
        ],
    )


def _ruprompts(model: PreTrainedModel, setting: Setting) -> Trainer:
    """The embedding layer of ruPrompts; its marker is in every sample once for each row."""
    embedding = MarkerEmbedding(model.get_input_embeddings())
    model.requires_grad_(False).set_input_embeddings(embedding)
    embedding.rows = nn.Parameter(_rows(setting))
    return _padding_trainer(model, setting, [embedding.marker] * setting.num_rows)


def _peft(model: PreTrainedModel, setting: Setting) -> Trainer:
    import peft

    # Its warning is about evaluation.
    warnings.filterwarnings("ignore", message="Position ids are not supported")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=setting.num_rows)
    model = peft.get_peft_model(model, config)
    model.prompt_encoder.float()  # a scaler refuses gradients in half precision
    model.prompt_encoder["default"].embedding.weight.data.copy_(_rows(setting))
    return _padding_trainer(model, setting, [])


TRAINERS: dict[str, Callable[[PreTrainedModel, Setting], Trainer]] = {
    "ours": _ours,
    "ruPrompts": _ruprompts,
    "PEFT": _peft,
}


def _rows(setting: Setting) -> torch.Tensor:
    """The prompt's first values, [rows, width]."""
    return random_prompt(setting.template, setting.num_rows, seed=0).rows().detach().to(DEVICE)


def _padding_trainer(model: nn.Module, setting: Setting, prefix: list[int]) -> Trainer:
    """The Trainer of transformers on batches that are padded right, with the model's own loss."""
    tokenizer = word_tokenizer()
    tokenizer.pad_token = words([END])
    data = [
        {
            "input_ids": [*prefix, *sample.source, *sample.target],
            "attention_mask": [1] * (len(prefix) + len(sample.source) + len(sample.target)),
            "labels": [IGNORED_LABEL] * (len(prefix) + len(sample.source)) + sample.target,
        }
        for sample in samples(setting.num_steps)
    ]
    return Trainer(model, setting.arguments(), DataCollatorForSeq2Seq(tokenizer), data)
