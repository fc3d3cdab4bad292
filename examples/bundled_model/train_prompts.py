"""Train the bundled prompts on the frozen bundled model; ``measure_prompts.py`` says how good they are.

Three prompts set a style (the text itself is the target): ``proverb``, ``verse`` and ``gogol``. One classifies verse
and prose by the softmax over two label words; line ends are replaced by spaces so that they do not give it away.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from corpus import Work, pieces, read_proverbs, read_works
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase, TrainingArguments

from ruprompt_fast import Prompt, TensorPromptProvider
from ruprompt_fast.bundled import LABELS
from ruprompt_fast.embedding import detach_prompts
from ruprompt_fast.training import PromptTrainer, Task, prompt_for, recipe_for

MODEL_NAME = "ruprompt-fast/ruslit-gpt2-7m"
AUTHOR = "Gogol"
STYLE_TEMPLATE = "<s><P*20>"
KIND_TEMPLATE = "<s><P*10>{text}<P*10>"
BATCH_SIZE = 16
PIECE_CHARS = (120, 320)


@dataclass(frozen=True)
class Texts:
    """Training and held-out texts of one kind."""

    train: list[str]
    held_out: list[str]


def cut(works: list[Work], held_out: bool) -> list[str]:
    """Pieces of the works that are held out, or of those that are not."""
    chosen = [work for work in works if work.held_out == held_out]
    low, high = PIECE_CHARS
    return [trim(text, high) for text in pieces(chosen, random.Random(0), min_chars=low, max_chars=high)]


def trim(text: str, max_chars: int) -> str:
    """The sentences (or lines of verse) that fit: a prose paragraph is often longer than a piece should be."""
    if len(text) <= max_chars:
        return text
    start = text[:max_chars]
    end = max(start.rfind(mark) for mark in ".!?…\n")
    return start[: end + 1].rstrip() if end > 0 else start


def styles(literature: Path, proverbs: Path) -> dict[str, Texts]:
    """The texts of every style."""
    works = read_works(literature)
    verse = [work for work in works if work.kind == "poems"]
    author = [work for work in works if work.author == AUTHOR and work.kind == "prose"]
    return {
        "proverb": Texts(*read_proverbs(proverbs)),
        "verse": Texts(cut(verse, held_out=False), cut(verse, held_out=True)),
        AUTHOR.lower(): Texts(cut(author, held_out=False), cut(author, held_out=True)),
    }


def labelled(literature: Path, held_out: bool, size: int) -> list[dict[str, str]]:
    """Equally many pieces of verse and prose on one line each, with their label word; shuffled."""
    works = [work for work in read_works(literature) if work.kind != "publicism"]
    rng = random.Random(1)
    items = []
    for label, verse in zip(LABELS, (True, False), strict=True):
        texts = cut([work for work in works if (work.kind == "poems") == verse], held_out)
        rng.shuffle(texts)
        items += [{"text": " ".join(text.split()), "target": label} for text in texts[: size // 2]]
    rng.shuffle(items)
    return items


def tasks(literature: Path, proverbs: Path) -> dict[str, tuple[Task, list[dict[str, str]]]]:
    """The task of every prompt and the rows that it is trained on."""
    kind = Task(KIND_TEMPLATE, "classification", label_field="target", labels={label: label for label in LABELS})
    found = {
        name: (Task(STYLE_TEMPLATE, "style"), [{"text": text} for text in texts.train])
        for name, texts in styles(literature, proverbs).items()
    }
    return found | {"kind": (kind, labelled(literature, held_out=False, size=6000))}


def train(
    task: Task,
    rows: list[dict[str, str]],
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    seed: int = 0,
) -> Prompt:
    """Train a prompt on a task."""
    prompt = prompt_for(task, TensorPromptProvider(seed=seed))
    recipe = recipe_for(prompt.provider)
    with tempfile.TemporaryDirectory() as folder:
        arguments = recipe.arguments(
            steps, per_device_train_batch_size=BATCH_SIZE, logging_steps=50, save_strategy="no", disable_tqdm=True
        )
        PromptTrainer(
            model,
            TrainingArguments(folder, seed=seed, **arguments),
            prompt=prompt,
            task=task,
            tokenizer=tokenizer,
            train_dataset=rows,
        ).train()
    detach_prompts(model)
    return prompt


def main() -> None:
    """Command line: ``train_prompts.py --literature ruslit.tar.xz --proverbs proverbs.txt --model F --output F``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--literature", type=Path, required=True, help="the archive of Russian literature")
    parser.add_argument("--proverbs", type=Path, required=True, help="proverbs, one per line")
    parser.add_argument("--model", type=Path, required=True, help="folder of the pretrained model")
    parser.add_argument("--output", type=Path, required=True, help="folder that gets one folder per prompt")
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = GPT2LMHeadModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    model.config.name_or_path = model.name_or_path = MODEL_NAME
    seconds = {}
    for name, (task, rows) in tasks(arguments.literature, arguments.proverbs).items():
        started = time.monotonic()
        prompt = train(task, rows, model, tokenizer, arguments.steps)
        seconds[name] = round(time.monotonic() - started)
        prompt.save_pretrained(arguments.output / name)
        print(name, seconds[name], "seconds", flush=True)

    rate = recipe_for(TensorPromptProvider()).learning_rate
    figures = {"steps": arguments.steps, "learning_rate": rate, "seconds": seconds}
    (arguments.output / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
