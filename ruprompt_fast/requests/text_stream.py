"""The text of one sequence while its tokens come in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ruprompt_fast.requests.decoding import TextDecoder
from ruprompt_fast.requests.stopping import MAX_UTF8_BYTES, StopTexts

# At most so many tokens are decoded together, if they hold enough text: a call of `decode` takes 4 microseconds, and
# half a microsecond per token.
_WINDOW = 10


class TextStream:
    """New text of one sequence, piece by piece: the pieces add up to :meth:`TextDecoder.text` of all tokens.

    A window of the last tokens is decoded, at first together with the last tokens of the input, and the text that was
    returned before is cut off. So the work per token does not grow with the sequence. Only what the next token can
    change is held back until that token or the end:

    - a final U+FFFD: the first bytes of a character, unless the model meant it;
    - a run of byte tokens (``<0xD0>``, SentencePiece's byte fallback), which decodes as a whole;
    - with a tokenizer that cleans up spaces (``clean_up_tokenization_spaces``, not for BPE), up to three characters
      after a space.

    This is exact for every decoder whose other text only ever grows at its end: byte-level BPE, also of ids that are
    no valid UTF-8, Metaspace and SentencePiece, WordPiece, and single characters.

    Stop strings are looked for in the decoded new text after every token. The first token that completes one is the
    last of the sequence, and its whole text belongs to the sequence.

    Args:
        decoder: the tokenizer's.
        input_ids: the input before the sequence; empty where a text begins.
        stop_strings: strings that end the sequence.

    Attributes:
        num_tokens: tokens taken; after a stop, the length that the sequence is cut to.
        stopped: whether the text contains a stop string. Further tokens are not taken then.
    """

    def __init__(
        self, decoder: TextDecoder, input_ids: Sequence[int] = (), stop_strings: str | Sequence[str] = ()
    ) -> None:
        self._decoder = decoder
        self._kinds = decoder.kinds
        self._stops = StopTexts(stop_strings)
        self._window = list(decoder.lead(input_ids))
        self._limit = _WINDOW
        # Characters of the window's text that were returned before, or belong to the input.
        self._given = len(decoder.decode(self._window))
        self._tail = ""  # the last characters returned, where a stop string may begin
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
        if token in self._kinds.skipped:
            return ""
        self._window.append(token)
        in_byte_run = token in self._kinds.byte_tokens
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
        """Drop the first half of the window, if the rest decodes the later text as the whole does.

        It does so after its first four characters: they have at least four bytes, so a character whose first bytes were
        dropped has ended, and so has whatever a decoder strips from the beginning of a text.
        """
        shorter = self._window[len(self._window) // 2 :]
        given = len(self._decoder.decode(shorter)) - held
        if given >= MAX_UTF8_BYTES:
            self._window, self._given, self._limit = shorter, given, _WINDOW
        else:  # tokens without text; trying again at double the length keeps the work per token constant
            self._limit = 2 * len(self._window)
