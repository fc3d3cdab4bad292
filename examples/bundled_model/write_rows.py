"""Write the rows of the bundled prompts' tasks as JSONL, for ``ruprompt-fast train`` and ``ruprompt-fast sweep``.

``proverb.train.jsonl`` and ``proverb.held_out.jsonl`` have the column ``text``; ``kind.train.jsonl`` and
``kind.held_out.jsonl`` have ``text`` and ``kind``, which is ``verse`` or ``prose``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from corpus import read_proverbs
from train_prompts import labelled

from ruprompt_fast.bundled import LABELS

KINDS = dict(zip(LABELS, ("verse", "prose"), strict=True))
TRAIN_SIZE = 6000
HELD_OUT_SIZE = 600


def kinds(literature: Path, held_out: bool, size: int) -> list[dict[str, str]]:
    """Pieces of verse and prose with their class."""
    return [{"text": item["text"], "kind": KINDS[item["target"]]} for item in labelled(literature, held_out, size)]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write one row per line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Command line: ``write_rows.py --literature ruslit.tar.xz --proverbs proverbs.txt --output FOLDER``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--literature", type=Path, required=True, help="the archive of Russian literature")
    parser.add_argument("--proverbs", type=Path, required=True, help="proverbs, one per line")
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    arguments = parser.parse_args()
    train, held_out = read_proverbs(arguments.proverbs)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, texts in (("train", train), ("held_out", held_out)):
        write(arguments.output / f"proverb.{name}.jsonl", [{"text": text} for text in texts])
    write(arguments.output / "kind.train.jsonl", kinds(arguments.literature, held_out=False, size=TRAIN_SIZE))
    write(arguments.output / "kind.held_out.jsonl", kinds(arguments.literature, held_out=True, size=HELD_OUT_SIZE))


if __name__ == "__main__":
    main()
