"""Which tokens a stretch of characters became."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from tokenizers import Encoding


class TokenSpan(NamedTuple):
    """The tokens of a stretch of characters.

    Tokens start..stop hold at least one of its characters; tokens inner_start..inner_stop hold no others. They differ
    where a token joins characters from both sides of a border.
    """

    start: int
    stop: int
    inner_start: int
    inner_stop: int


class Spans(Protocol):
    """Finds the tokens of stretches of one text."""

    def find(self, start: int, stop: int) -> TokenSpan:
        """The tokens of the characters start..stop; an empty span where there are none."""


class EncodingSpans:
    """Looks characters up in the offsets that a Rust tokenizer keeps.

    Args:
        encoding: the tokenized text.
        num_chars: the text's length.
        num_tokens: the number of its tokens.
    """

    def __init__(self, encoding: Encoding, num_chars: int, num_tokens: int) -> None:
        self._encoding = encoding
        self._num_chars = num_chars
        self._num_tokens = num_tokens

    def find(self, start: int, stop: int) -> TokenSpan:
        """See :meth:`Spans.find`."""
        first, first_char = self._token_at_or_after(start)
        after, after_char = self._token_at_or_after(stop)
        if start == stop or first_char >= stop:
            # Nothing was written, or nothing that the tokenizer kept (spaces, control characters).
            return TokenSpan(first, first, first, first)
        inner_start = first + (first_char < start)
        is_shared = after_char < stop
        return TokenSpan(first, after + is_shared, min(inner_start, after), after)

    def _token_at_or_after(self, char: int) -> tuple[int, int]:
        """The first token that holds this character or a later one, and the token's first character."""
        for position in range(char, self._num_chars):
            token = self._encoding.char_to_token(position)
            if token is not None:
                chars = self._encoding.token_to_chars(token)
                return token, position if chars is None else chars[0]
        return self._num_tokens, self._num_chars


class RetokenizedSpans:
    """Compares the text's ids with those of its two parts on each side of a border.

    Tokenizers written in Python keep no offsets. The tokens that a text shares with its first n characters alone hold
    none of the later ones, so equal beginnings and endings bound every span from both sides.

    Args:
        text: the tokenized text.
        tokenize: gives the ids of a text, without special tokens.
    """

    def __init__(self, text: str, tokenize: Callable[[str], list[int]]) -> None:
        self._text = text
        self._tokenize = tokenize
        self._ids = tokenize(text)

    def find(self, start: int, stop: int) -> TokenSpan:
        """See :meth:`Spans.find`."""
        before_start, from_start = self._around(start)
        before_stop, from_stop = self._around(stop)
        if start == stop:
            return TokenSpan(before_start, before_start, before_start, before_start)
        return TokenSpan(before_start, max(from_stop, before_start), min(from_start, before_stop), before_stop)

    def _around(self, char: int) -> tuple[int, int]:
        """The number of tokens that hold characters before a border only, and the first that holds none of them."""
        before = _common_prefix(self._tokenize(self._text[:char]), self._ids)
        after = _common_prefix(self._tokenize(self._text[char:])[::-1], self._ids[::-1])
        return before, max(len(self._ids) - after, before)


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
