"""Write the model card from the figures that pretraining and prompt training recorded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

CARD = """\
# ruslit-gpt2-7m

A small Russian language model for trying soft prompts without a network: GPT-2 architecture (that of ruGPT-3), 6 layers
of width 256, {parameters:,} parameters, context 512, byte-level BPE of 8,192 tokens, float16 safetensors. It writes
recognizable Russian in the manner of the nineteenth century; it knows nothing, and is not meant for use.

Licence: Apache-2.0, like the package. It was trained on texts in the public domain.

## Data

RusLit, a collection of Russian prose, verse and essays in the public domain (38 million characters: Dostoevsky,
Tolstoy, Gorky, Bryusov, Turgenev, Gogol, Chekhov, Herzen, Pushkin, Lermontov, Blok, Nekrasov). Nineteen works are held
out and were never trained on; `examples/bundled_model/corpus.py` names them. The proverbs come from the package
ru-proverbs (Apache-2.0); the model has not seen them, only the prompt `proverb` has, and every twelfth is held out.

## Pretraining

`examples/bundled_model/build_tokenizer.py`, then `pretrain.py`: {steps:,} steps, {tokens:,} tokens, {minutes:.0f}
minutes on two CPU cores that other work shared.

| held-out works | |
|---|---|
| bits per byte | {held_out_bits_per_byte} |

## Prompts

`examples/bundled_model/train_prompts.py`, then `measure_prompts.py`: {prompt_steps} steps of 16 texts for each prompt
with `PromptTrainer`; AdamW, learning rate {learning_rate}, rows initialized from sampled vocabulary; on two CPU cores
that other work shared.

| prompt | template | what it does | training, seconds |
|---|---|---|---|
{prompts}

Held-out loss in nats per token, the end of the text included; "(none)" is the model without a prompt:

| prompt | {kinds} |
|---|{rule}|
{matrix}
| own prompt's margin | {margins} |

The margin is to the best other row, with the standard error of the paired difference over texts.

`kind` tells verse from prose by the label words « стихи» and « рассказ»; line ends are replaced by spaces. On {items}
held-out pieces, half of each: accuracy **{accuracy}**, the majority class {majority}.
"""

PROMPTS = {
    "proverb": "writes proverbs",
    "verse": "writes verse",
    "gogol": "writes prose in Gogol's manner",
    "kind": "classifies verse and prose",
}


def card(folder: Path) -> str:
    """The card's text, from ``model/pretraining.json``, ``prompts/figures.json`` and the prompts' templates."""
    pretraining = json.loads((folder / "model" / "pretraining.json").read_text(encoding="utf-8"))
    training = json.loads((folder / "prompts" / "training.json").read_text(encoding="utf-8"))
    figures = json.loads((folder / "prompts" / "figures.json").read_text(encoding="utf-8"))
    matrix = figures["nats_per_token"]
    kinds = list(matrix["(none)"])
    best = {kind: min(row[kind] for row in matrix.values()) for kind in kinds}
    return CARD.format(
        **pretraining,
        **figures["kind"],
        minutes=pretraining["seconds"] / 60,
        prompt_steps=training["steps"],
        learning_rate=training["learning_rate"],
        prompts="\n".join(
            f"| `{name}` | `{template(folder, name)}` | {what} | {training['seconds'][name]} |"
            for name, what in PROMPTS.items()
        ),
        kinds=" | ".join(kinds),
        rule="|".join("---" for _ in kinds),
        margins=" | ".join(
            f"{margin['nats_per_token']} ± {margin['standard_error']}" for margin in figures["margin"].values()
        ),
        matrix="\n".join(f"| {name} | {cells(row, best)} |" for name, row in matrix.items()),
    )


def template(folder: Path, name: str) -> str:
    """A prompt's template."""
    stored = json.loads((folder / "prompts" / name / "prompt.json").read_text(encoding="utf-8"))
    return str(stored["format"]["template"])


def cells(row: dict[str, float], best: dict[str, float]) -> str:
    """A row of the matrix, the best of each column in bold."""
    return " | ".join(f"**{value}**" if value == best[kind] else str(value) for kind, value in row.items())


def main() -> None:
    """Command line: ``write_card.py FOLDER``, the folder of ``model`` and ``prompts``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    (folder / "README.md").write_text(card(folder), encoding="utf-8")


if __name__ == "__main__":
    main()
