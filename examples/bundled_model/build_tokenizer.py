"""Train the bundled model's tokenizer: byte-level BPE, 8,192 tokens, on the training works of the corpus."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from corpus import pieces, read_works
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 8192
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>"]
CONTEXT = 512


def build(archive: Path) -> PreTrainedTokenizerFast:
    """Train on every work that is not held out; verse and prose as they are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    works = [work for work in read_works(archive) if not work.held_out]
    texts = pieces(works, random.Random(0), min_chars=200, max_chars=2000)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    """Command line: ``build_tokenizer.py --literature ruslit.tar.xz --output FOLDER``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--literature", type=Path, required=True, help="the archive of Russian literature")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    arguments = parser.parse_args()
    build(arguments.literature).save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
