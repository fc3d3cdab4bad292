"""One process of a data-parallel training run; torchrun starts it.

distributed_run.py FOLDER BATCH_SIZE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tiny_models import sharp_model, tiny_tokenizer
from training.trainer_cases import ROWS, TASK, arguments

from ruprompt_fast import LSTMPromptProvider, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.training import PromptTrainer


def main() -> None:
    folder, batch_size = Path(sys.argv[1]), int(sys.argv[2])
    prompts = {
        "tensor": Prompt(PromptFormat(TASK.template), TensorPromptProvider(seed=1)),
        "lstm": Prompt(PromptFormat(TASK.template), LSTMPromptProvider(hidden_dim=8, seed=1)),
    }
    args = arguments(
        folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        max_steps=7,
        save_strategy="steps",
        save_steps=3,
        max_grad_norm=0.5,
    )
    # One row of the second prompt: most batches have none of it.
    rows: dict[str, Any] = {"tensor": ROWS[:7], "lstm": ROWS[7:8]}
    trainer = PromptTrainer(
        sharp_model("gpt2"),
        args,
        prompt=prompts,
        task=TASK,
        tokenizer=tiny_tokenizer(),
        train_dataset=rows,
        eval_dataset={"tensor": ROWS, "lstm": ROWS[:3]},
    )
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model(str(folder / "final"))
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        (folder / "metrics.json").write_text(json.dumps({"losses": losses, **metrics}))


if __name__ == "__main__":
    main()
