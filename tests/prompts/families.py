"""One small tokenizer of every family, trained in memory on a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ruprompt_fast.prompts import PromptFormat

CORPUS = [
    "Мороз и солнце; день чудесный! Ещё ты дремлешь, друг прелестный.",
    "question: what is the answer? the answer is <P> or <|P|> and nothing else",
    "one two three  four\n\nfive six seven, passage and context",
    "Буря мглою небо кроет, вихри снежные крутя; то, как зверь, она завоет.",
] * 2


def _train(
    tokenizer: Tokenizer, trainer: trainers.Trainer, leading: list[str], trailing: list[str], special: list[str]
) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(CORPUS, trainer)
    if leading or trailing:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*leading, "$A", *trailing],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*leading, *trailing}],
        )
    if isinstance(tokenizer.model, models.WordPiece):
        tokenizer.decoder = decoders.WordPiece(prefix="##")
    elif isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.decoder = decoders.Metaspace()
    roles = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def _bpe(
    normalizer: Normalizer | None, pre_tokenizer: PreTokenizer | None, leading: list[str], trailing: list[str]
) -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>"]
    is_byte_level = isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
    tokenizer = Tokenizer(models.BPE(unk_token=None if is_byte_level else "<unk>", fuse_unk=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if is_byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=special, initial_alphabet=alphabet, show_progress=False, limit_alphabet=1000
    )
    return _train(tokenizer, trainer, leading, trailing, special)


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's and ruGPT-3's family."""
    return _bpe(None, pre_tokenizers.ByteLevel(add_prefix_space=False), [], [])


def byte_level_nfc() -> PreTrainedTokenizerFast:
    """GPT-NeoX's and Qwen's family, with a beginning-of-text token."""
    return _bpe(normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False), ["<s>"], [])


def metaspace_first() -> PreTrainedTokenizerFast:
    """Llama's family."""
    return _bpe(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), ["<s>"], [])


def metaspace_always() -> PreTrainedTokenizerFast:
    """Words with a boundary before each piece, and special tokens on both sides."""
    return _bpe(None, pre_tokenizers.Metaspace(prepend_scheme="always"), ["<s>"], ["</s>"])


def prepending_normalizer() -> PreTrainedTokenizerFast:
    """Llama's older files: the word boundary is the normalizer's work."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _bpe(normalizer, None, ["<s>"], [])


def replacing_normalizer() -> PreTrainedTokenizerFast:
    """Gemma's family."""
    return _bpe(normalizers.Replace(" ", "▁"), None, ["<s>"], [])


def unigram() -> PreTrainedTokenizerFast:
    """T5's family: an end token only."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    return _train(tokenizer, trainer, [], ["</s>"], special)


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's family, lower case."""
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    return _train(tokenizer, trainer, ["[CLS]"], ["[SEP]"], special)


def python_bytes() -> ByT5Tokenizer:
    """A tokenizer written in Python, without a Rust backend."""
    return ByT5Tokenizer(extra_ids=3)


BUILDERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    builder.__name__: builder
    for builder in (
        byte_level,
        byte_level_nfc,
        metaspace_first,
        metaspace_always,
        prepending_normalizer,
        replacing_normalizer,
        unigram,
        wordpiece,
        python_bytes,
    )
}


def with_text_form(template: str, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """The format of a template with the tokenizer's leading tokens at the very beginning, as in the text form."""
    compiled = PromptFormat(template, tokenizer=tokenizer).compiled_template
    assert compiled is not None
    return PromptFormat(template, compiled.replace("<|leading|>", ""), tokenizer)


@cache
def shared(family: str) -> PreTrainedTokenizerBase:
    """A tokenizer that tests do not change."""
    return BUILDERS[family]()
