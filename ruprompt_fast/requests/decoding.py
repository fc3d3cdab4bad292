"""The text of tokens that stand behind others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from ruprompt_fast.prompts.format.continuations import ids_after_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Tokens of the input that are decoded in front of new ones, at most. One is enough for the decoders that there are.
_LEAD = 4

# `clean_up_tokenization` looks for a space and up to this many characters behind it.
_CLEANED_BEHIND_SPACE = 3

# Texts whose last token may stand for any text before others.
_PLAIN_TEXTS = (".", "a", "1", "я")

# Texts that a tokenizer reads differently if it keeps spaces.
_PROBES = ("a", " a")


class TextDecoder:
    """What tokens read behind an input, for one tokenizer.

    Semantics::

        text(input_ids, token_ids) = decode(input_ids + token_ids) without the decode(input_ids) that it begins with

    so input and text, one behind the other, read as the tokenizer decodes all of it. ``decode(token_ids)`` alone does
    not: SentencePiece's decoders take the space at the beginning of a text away, WordPiece's writes none there.

    Virtual tokens and special tokens have no text. Where they are last, the text is the one that gives these tokens
    there: some tokenizers (Llama 2's, T5's) begin a text again after every added token and write a word boundary of
    their own, which is not part of the text; so a target that was trained after virtual tokens comes out as it was
    written. Where nothing but special tokens comes before, as in a decoder of its own, the text is
    ``decode(token_ids)``.

    Inputs are whole characters: tokens that complete a character of the input's are not put together with it. Where the
    tokenizer cleans up spaces, the text is cleaned up by itself.

    Args:
        tokenizer: the tokenizer; special tokens are left out of the text.
        first_row_id: ids from here on are virtual tokens or padding; None if the input has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, first_row_id: int | None = None) -> None:
        self._tokenizer: Any = tokenizer
        self._first_row_id = first_row_id
        self._cleans = _cleans_up(tokenizer)

    @property
    def kinds(self) -> TokenKinds:
        """The tokens that are treated apart."""
        kinds = _KINDS.get(self._tokenizer)
        if kinds is None or kinds.num_tokens != len(self._tokenizer):
            kinds = _KINDS[self._tokenizer] = _token_kinds(self._tokenizer)
        return kinds

    def text(self, input_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text of ``token_ids`` behind ``input_ids``."""
        lead = self.lead(input_ids)
        return self.clean(self.decode([*lead, *token_ids])[len(self.decode(lead)) :])

    def lead(self, input_ids: Sequence[int]) -> list[int]:
        """Tokens in front of which others read as they do behind an input; none where a text begins."""
        kinds = self.kinds
        if not len(input_ids):
            return []
        last = input_ids[-1]
        if not self._is_text(last):
            is_behind = self._is_row(last) or any(map(self._is_text, input_ids))
            return kinds.any_text if is_behind and kinds.continues_behind_rows else []
        found = [token for token in input_ids[-_LEAD:] if self._is_text(token) and token not in kinds.skipped]
        # A run of bytes decodes as a whole, and new ones would join it.
        while found and found[-1] in kinds.byte_tokens:
            found.pop()
        return found or kinds.any_text

    def decode(self, token_ids: Sequence[int]) -> str:
        """The tokenizer's decoding before it is cleaned up."""
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)

    def clean(self, text: str) -> str:
        """The text as ``decode`` gives it by default; pieces cut by :meth:`settled` may be cleaned up separately."""
        return cast(str, self._tokenizer.clean_up_tokenization(text)) if self._cleans else text

    def settled(self, text: str, start: int) -> int:
        """The end of what further tokens cannot change in ``text``, where ``text[:start]`` was settled before."""
        end = len(text) - text.endswith(_REPLACEMENT)
        if self._cleans:
            # Nothing that is cleaned up spans a place with three characters other than spaces before it.
            while end > start and " " in text[max(start, end - _CLEANED_BEHIND_SPACE) : end]:
                end -= 1
        return max(start, end)

    def _is_row(self, token: int) -> bool:
        return self._first_row_id is not None and token >= self._first_row_id

    def _is_text(self, token: int) -> bool:
        return not self._is_row(token) and token not in self.kinds.control


@dataclass(frozen=True)
class TokenKinds:
    """Ids of tokens that are treated apart.

    Attributes:
        num_tokens: the tokenizer's size when they were found.
        skipped: special tokens, which have no text.
        control: those of them that stand for none, as the token of what the tokenizer does not know does.
        byte_tokens: tokens that stand for one byte each.
        any_text: a token with text, in a list; empty if none was found.
        continues_behind_rows: whether a text after virtual tokens is decoded as if it came after text; as if it began
            there otherwise.
    """

    num_tokens: int
    skipped: frozenset[int]
    control: frozenset[int]
    byte_tokens: frozenset[int]
    any_text: list[int]
    continues_behind_rows: bool


# Asking a tokenizer takes a millisecond, and every sequence has a stream of its own.
_KINDS: WeakKeyDictionary[PreTrainedTokenizerBase, TokenKinds] = WeakKeyDictionary()


def _token_kinds(tokenizer: Any) -> TokenKinds:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = added | set(tokenizer.all_special_ids)
    skipped = {index for index in special if not tokenizer.decode([index], skip_special_tokens=True)}
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    found = zip(names, tokenizer.convert_tokens_to_ids(names), strict=True)
    byte_tokens = {index for name, index in found if index is not None and _is_named(tokenizer, index, name)}
    any_text = _token_with_text(tokenizer, skipped | byte_tokens)
    return TokenKinds(
        len(tokenizer),
        frozenset(skipped),
        frozenset(skipped - {tokenizer.unk_token_id}),
        frozenset(byte_tokens),
        any_text,
        _continues_behind_rows(tokenizer, any_text),
    )


def _continues_behind_rows(tokenizer: Any, lead: list[int]) -> bool:
    """Whether texts that were tokenized behind virtual tokens are decoded right as if they stood behind text."""
    start = len(tokenizer.decode(lead))
    found = ids_after_rows(_PROBES, tokenizer)
    return all(tokenizer.decode([*lead, *ids])[start:] == text for ids, text in zip(found, _PROBES, strict=True))


def _token_with_text(tokenizer: Any, left_out: set[int]) -> list[int]:
    for text in _PLAIN_TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids and ids[-1] not in left_out and tokenizer.decode(ids[-1:], skip_special_tokens=True):
            return [int(ids[-1])]
    return []


def _is_named(tokenizer: Any, index: int, name: str) -> bool:
    """Whether the id is that token's; names that a vocabulary lacks are given the id of the unknown token."""
    return bool(tokenizer.convert_ids_to_tokens(index) == name)


def _cleans_up(tokenizer: Any) -> bool:
    """Whether ``decode`` cleans up spaces: transformers ignores the setting for BPE, unless it is forced."""
    if not tokenizer.clean_up_tokenization_spaces:
        return False
    is_bpe = tokenizer.is_fast and type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    # A transformers without this second setting cleans up what BPE gives, too.
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True)
    return not is_bpe or bool(forced)
