"""The text of tokens that come after others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from ruprompt_fast.prompts.format.continuations import ids_after_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# At most so many tokens of the input are decoded in front of new ones. One is enough for all known decoders.
_LEAD = 4

# `clean_up_tokenization` looks for a space and up to this many characters after it.
_CLEANED_AFTER_SPACE = 3

# Texts whose last token can represent any preceding text.
_PLAIN_TEXTS = (".", "a", "1", "я")

# Texts that a tokenizer tells apart if it keeps spaces.
_SPACED_TEXTS = ("a", " a")


class TextDecoder:
    """The text of tokens after an input, for one tokenizer.

    Semantics::

        text(input_ids, token_ids) = decode(input_ids + token_ids).removeprefix(decode(input_ids))

    so the input and the text after it read as the tokenizer decodes all of it. ``decode(token_ids)`` alone is not
    enough: SentencePiece's decoders remove the space at the beginning of a text, WordPiece's writes none there.

    Virtual tokens and special tokens have no text. Where the input ends with one, the text is the one that tokenizes to
    these tokens there. Some tokenizers (Llama 2's, T5's) begin a text again after every added token and insert a word
    boundary, which is not part of the text; so a target that was trained after virtual tokens comes out as it was
    written. Where the input has special tokens only, as in the decoder of an encoder-decoder, the text is
    ``decode(token_ids)``.

    Inputs are whole characters: a character that begins in the input is not completed by new tokens. Where the
    tokenizer cleans up spaces, the text is cleaned up without the input.

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
        """The tokens that need special treatment."""
        kinds = _KINDS.get(self._tokenizer)
        if kinds is None or kinds.num_tokens != len(self._tokenizer):
            kinds = _KINDS[self._tokenizer] = _token_kinds(self._tokenizer)
        return kinds

    def text(self, input_ids: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text of ``token_ids`` after ``input_ids``."""
        lead = self.lead(input_ids)
        return self.clean(self.decode([*lead, *token_ids])[len(self.decode(lead)) :])

    def lead(self, input_ids: Sequence[int]) -> list[int]:
        """A few tokens after which others decode as they do after the whole input; none where a text begins."""
        kinds = self.kinds
        if not len(input_ids):
            return []
        last = input_ids[-1]
        if not self._is_text(last):
            has_text_before = self._is_row(last) or any(map(self._is_text, input_ids))
            return kinds.any_text if has_text_before and kinds.continues_after_rows else []
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
        """Where the part of ``text`` ends that further tokens cannot change; ``text[:start]`` was settled before."""
        end = len(text) - text.endswith(_REPLACEMENT)
        if self._cleans:
            # Cleaning up never reaches across three characters without a space.
            while end > start and " " in text[max(start, end - _CLEANED_AFTER_SPACE) : end]:
                end -= 1
        return max(start, end)

    def _is_row(self, token: int) -> bool:
        return self._first_row_id is not None and token >= self._first_row_id

    def _is_text(self, token: int) -> bool:
        return not self._is_row(token) and token not in self.kinds.control


@dataclass(frozen=True)
class TokenKinds:
    """Ids of tokens that need special treatment.

    Attributes:
        num_tokens: the tokenizer's size when they were found.
        skipped: special tokens, which have no text.
        control: the skipped tokens except the unknown token, which replaces text.
        byte_tokens: tokens of one byte each.
        any_text: a token with text, in a list; empty if none was found.
        continues_after_rows: whether a text after virtual tokens is decoded as if it came after text; otherwise it
            is decoded as if it began there.
    """

    num_tokens: int
    skipped: frozenset[int]
    control: frozenset[int]
    byte_tokens: frozenset[int]
    any_text: list[int]
    continues_after_rows: bool


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
        _continues_after_rows(tokenizer, any_text),
    )


def _continues_after_rows(tokenizer: Any, lead: list[int]) -> bool:
    """Whether texts tokenized after virtual tokens are decoded correctly as if they came after text."""
    start = len(tokenizer.decode(lead))
    found = ids_after_rows(_SPACED_TEXTS, tokenizer)
    return all(tokenizer.decode([*lead, *ids])[start:] == text for ids, text in zip(found, _SPACED_TEXTS, strict=True))


def _token_with_text(tokenizer: Any, left_out: set[int]) -> list[int]:
    for text in _PLAIN_TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids and ids[-1] not in left_out and tokenizer.decode(ids[-1:], skip_special_tokens=True):
            return [int(ids[-1])]
    return []


def _is_named(tokenizer: Any, index: int, name: str) -> bool:
    """Whether the id is that of the token with this name; unknown names get the id of the unknown token."""
    return bool(tokenizer.convert_ids_to_tokens(index) == name)


def _cleans_up(tokenizer: Any) -> bool:
    """Whether ``decode`` cleans up spaces: transformers ignores the setting for BPE, unless it is forced."""
    if not tokenizer.clean_up_tokenization_spaces:
        return False
    is_bpe = tokenizer.is_fast and type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    # A transformers without this second setting cleans up what BPE gives, too.
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True)
    return not is_bpe or bool(forced)
