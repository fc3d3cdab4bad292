"""Measure the bundled prompts on held-out texts: every style prompt on every style, and the classifier.

Writes ``figures.json`` beside the prompts; ``write_card.py`` turns it into the model card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from train_prompts import Texts, labelled, styles
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ruprompt_fast import FastPromptModel, Prompt
from ruprompt_fast.bundled import LABELS

MAX_TEXTS = 300
NO_PROMPT = "(none)"


@torch.no_grad()
def losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Tensor | None, texts: list[str]
) -> tuple[Tensor, Tensor]:
    """Summed cross entropy in nats and number of tokens of each text, after ``<s>`` and the rows of a prompt.

    The end of the text is one of its tokens.
    """
    table = model.get_input_embeddings()
    nats, counts = [], []
    for text in texts:
        ids = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        before = table(torch.tensor([tokenizer.bos_token_id]))
        if rows is not None:
            before = torch.cat([before, rows])
        embeds = torch.cat([before, table(ids[:-1])])[None]
        logits = model(inputs_embeds=embeds, use_cache=False).logits[0, len(before) - 1 :]
        nats.append(F.cross_entropy(logits, ids, reduction="sum").item())
        counts.append(len(ids))
    return torch.tensor(nats), torch.tensor(counts)


def measure_styles(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, Prompt], data: dict[str, Texts]
) -> dict[str, dict[str, dict[str, float]]]:
    """``nats_per_token`` of every style prompt, and of none, on every style; and each prompt's ``margin`` on its own.

    The margin is the loss per token of the best other row less its own; its standard error is that of the mean over
    texts of the paired differences.
    """
    rows = {NO_PROMPT: None, **{name: prompts[name].rows() for name in data}}
    matrix: dict[str, dict[str, float]] = {name: {} for name in rows}
    margins = {}
    for kind, texts in data.items():
        found = {name: losses(model, tokenizer, row, texts.held_out[:MAX_TEXTS]) for name, row in rows.items()}
        means = {name: (nats.sum() / counts.sum()).item() for name, (nats, counts) in found.items()}
        for name, mean in means.items():
            matrix[name][kind] = round(mean, 3)
        best_other = min((name for name in means if name != kind), key=means.__getitem__)
        (theirs, counts), (ours, _) = found[best_other], found[kind]
        difference = theirs - ours
        error = difference.std() * len(counts) ** 0.5 / counts.sum()
        margins[kind] = {
            "nats_per_token": round((difference.sum() / counts.sum()).item(), 3),
            "standard_error": round(error.item(), 4),
        }
    return {"nats_per_token": matrix, "margin": margins}


def measure_classifier(served: FastPromptModel, items: list[dict[str, str]]) -> dict[str, float]:
    """Held-out accuracy beside that of the more frequent label."""
    verdicts = served.classify([item["text"] for item in items], prompt="kind", labels=LABELS)
    right = sum(verdict.label == item["target"] for verdict, item in zip(verdicts, items, strict=True))
    majority = max(sum(item["target"] == label for item in items) for label in LABELS)
    return {"accuracy": round(right / len(items), 3), "majority": round(majority / len(items), 3), "items": len(items)}


def main() -> None:
    """Command line: ``measure_prompts.py --literature ruslit.tar.xz --proverbs proverbs.txt --model F --prompts F``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--literature", type=Path, required=True, help="the archive of Russian literature")
    parser.add_argument("--proverbs", type=Path, required=True, help="proverbs, one per line")
    parser.add_argument("--model", type=Path, required=True, help="folder of the pretrained model")
    parser.add_argument("--prompts", type=Path, required=True, help="folder with one folder per prompt")
    arguments = parser.parse_args()
    folders = {file.parent.name: file.parent for file in arguments.prompts.glob("*/prompt.json")}
    served = FastPromptModel.from_pretrained(arguments.model, prompts=folders, dtype="float32")
    figures = {"kind": measure_classifier(served, labelled(arguments.literature, held_out=True, size=600))}
    prompts = dict(served.prompts)
    data = styles(arguments.literature, arguments.proverbs)
    figures |= measure_styles(served.detach(), served.tokenizer, prompts, data)
    (arguments.prompts / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
