"""The text of one sequence while its tokens come in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from ruprompt_fast.engine.stopping import MAX_UTF8_BYTES, StopTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Tokens that are decoded together at most, as long as they hold enough text: a call of `decode` costs 4 microseconds
# and half a microsecond per token.
_WINDOW = 10

# `clean_up_tokenization` looks for a space and up to this many characters behind it.
_CLEANED_BEHIND_SPACE = 3


class TextStream:
    """New text of one sequence, piece by piece: the pieces add up to the tokenizer's decoding of all tokens.

    A window of the last tokens is decoded, and what its beginning gave is cut off; the work per token does not grow
    with the sequence. Held back until the next token, or the end, is only what the next token can change:

    - a final U+FFFD: the first bytes of a character, unless the model meant it;
    - a run of byte tokens (``<0xD0>``, SentencePiece's byte fallback), which decodes as a whole;
    - with a tokenizer that cleans up spaces (``clean_up_tokenization_spaces``, not for BPE), up to three characters
      behind a space.

    This is exact for every decoder whose other text only ever grows at its end: byte-level BPE, also of ids that are
    no valid UTF-8, Metaspace and SentencePiece, WordPiece, and single characters.

    Stop strings are looked for in the decoded new text after every token. The first token that completes one is the
    last of the sequence, and its whole text belongs to the sequence.

    Args:
        tokenizer: the model's tokenizer; special tokens are left out of the text.
        stop_strings: strings that end the sequence.

    Attributes:
        num_tokens: tokens taken; after a stop, the length that the sequence is cut to.
        stopped: whether the text contains a stop string. Further tokens are not taken then.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: str | Sequence[str] = ()) -> None:
        self._decoder = _Decoder(tokenizer)
        self._stops = StopTexts(stop_strings)
        self._window: list[int] = []
        self._limit = _WINDOW
        self._given = 0  # characters of the window's text that were given out, or stand before the window's tokens
        self._tail = ""  # the last characters given out, where a stop string may begin
        self.num_tokens = 0
        self.stopped = False

    def push(self, token_ids: Iterable[int]) -> str:
        """Take the next tokens of the sequence, up to the one that completes a stop string.

        Returns:
            The new text that is certain, or nothing yet.
        """
        return "".join(self._take(token) for token in token_ids if not self.stopped)

    def flush(self) -> str:
        """The text held back; the sequence ends here."""
        text = self._decoder.decode(self._window)
        rest, self._given = text[self._given :], len(text)
        return self._decoder.clean(rest)

    def _take(self, token: int) -> str:
        self.num_tokens += 1
        if token in self._decoder.kinds.skipped:
            return ""
        self._window.append(token)
        in_byte_run = token in self._decoder.kinds.byte_tokens
        if in_byte_run and not self._stops:
            return ""
        text = self._decoder.decode(self._window)
        if self._stops.found_in(self._tail + self._decoder.clean(text[self._given :])):
            self.stopped = True
            return self.flush()
        if in_byte_run:
            return ""
        end = self._decoder.settled(text, self._given)
        piece = self._decoder.clean(text[self._given : end])
        self._given = end
        if self._stops:
            self._tail = (self._tail + piece)[-self._stops.longest :]
        if len(self._window) >= self._limit:
            self._shorten(len(text) - end)
        return piece

    def _shorten(self, held: int) -> None:
        """Drop the first half of the window, if the rest decodes the text behind it as the whole does.

        It does so behind the first four characters: they take at least as many bytes, so that a character whose first
        bytes were dropped has ended, and a decoder that strips the beginning of a text has found one.
        """
        shorter = self._window[len(self._window) // 2 :]
        given = len(self._decoder.decode(shorter)) - held
        if given >= MAX_UTF8_BYTES:
            self._window, self._given, self._limit = shorter, given, _WINDOW
        else:  # tokens without text; tried again at double the length, which keeps the work per token constant
            self._limit = 2 * len(self._window)


@dataclass(frozen=True)
class _TokenKinds:
    """Ids of tokens that the window treats apart.

    Attributes:
        skipped: special tokens, which have no text.
        byte_tokens: tokens that stand for one byte each.
    """

    skipped: frozenset[int]
    byte_tokens: frozenset[int]


class _Decoder:
    """What one tokenizer's ``decode`` does, with the clean-up of spaces apart."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._cleans = _cleans_up(tokenizer)
        self.kinds = _KINDS.get(tokenizer) or _KINDS.setdefault(tokenizer, _token_kinds(tokenizer))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text before it is cleaned up."""
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


# Asking a tokenizer takes a millisecond, and every sequence has a stream of its own.
_KINDS: WeakKeyDictionary[PreTrainedTokenizerBase, _TokenKinds] = WeakKeyDictionary()


def _token_kinds(tokenizer: Any) -> _TokenKinds:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = added | set(tokenizer.all_special_ids)
    skipped = {index for index in special if not tokenizer.decode([index], skip_special_tokens=True)}
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    found = zip(names, tokenizer.convert_tokens_to_ids(names), strict=True)
    byte_tokens = {index for name, index in found if index is not None and _is_named(tokenizer, index, name)}
    return _TokenKinds(frozenset(skipped), frozenset(byte_tokens))


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
