"""One tokenizer of every kind: byte-level BPE, SentencePiece in its conversions, Unigram, WordPiece, characters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prompts import families
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]
LETTERS = sorted(set("one two three question: what is the answer день чудесный! зверь. five six".replace(" ", "")))


def _sentencepiece(
    *, prepends: bool, decoder: decoders.Decoder, pre_tokenizer: pre_tokenizers.PreTokenizer | None = None
) -> PreTrainedTokenizerFast:
    """Letters, bytes and a few words, as SentencePiece's BPE models are converted."""
    words = ["▁", "▁one", "▁two", "▁▁", "two"]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *words]
    merges = [("▁", "▁"), ("t", "w"), ("tw", "o"), ("▁", "two"), ("o", "n"), ("on", "e"), ("▁", "one")]
    tokens += [left + right for left, right in merges if left + right not in tokens]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    if pre_tokenizer is None:
        replace = normalizers.Replace(" ", "▁")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepends else replace
    else:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def _pieces(*last: decoders.Decoder) -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])


def llama2() -> PreTrainedTokenizerFast:
    return _sentencepiece(prepends=True, decoder=_pieces(decoders.Strip(" ", 1, 0)))


def mistral() -> PreTrainedTokenizerFast:
    """Newer conversions: a boundary at the very beginning only."""
    first = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _sentencepiece(prepends=False, decoder=_pieces(decoders.Strip(" ", 1, 0)), pre_tokenizer=first)


def gemma() -> PreTrainedTokenizerFast:
    return _sentencepiece(prepends=False, decoder=_pieces())


def metaspace_never() -> PreTrainedTokenizerFast:
    never = {"prepend_scheme": "never", "split": False}
    return _sentencepiece(
        prepends=False, decoder=decoders.Metaspace(**never), pre_tokenizer=pre_tokenizers.Metaspace(**never)
    )


def word_ends() -> PreTrainedTokenizerFast:
    """XLM's family: the end of a word is marked, not its beginning."""
    tokens = [*SPECIAL, *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


MAKERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    **families.BUILDERS,
    **{make.__name__: make for make in (llama2, mistral, gemma, metaspace_never, word_ends)},
}
TOKENIZERS = {name: make() for name, make in MAKERS.items()}
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
