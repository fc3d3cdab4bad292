"""The ids of a text that comes after something.

``tokenizer(text)`` gives the ids of a text on its own. SentencePiece's tokenizers begin it with a word boundary
(``▁``), which the same text does not have after other text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from ruprompt_fast.prompts.format.layout import Field, Layout, Rows, Slot
from ruprompt_fast.prompts.format.private_tokenizer import PrivateTokenizer
from ruprompt_fast.prompts.format.special_tokens import Reading, place
from ruprompt_fast.prompts.format.targets import tokenize_decoder_targets
from ruprompt_fast.prompts.format.template import PROMPT_TOKEN
from ruprompt_fast.prompts.format.tokenizer_state import tokenizer_state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters of a text that are tokenized with a word; tokens are shorter, and most tokenizers read words apart.
_TAIL = 64
_SPACE = re.compile(r"\s")

# Ends of texts that are remembered.
_MOST_KNOWN = 4096

# A name that no template's field can have.
_WORD = "{word}"


@dataclass(frozen=True)
class WordsAfter:
    """Words as they come after a text.

    Attributes:
        ids: the ids of every word.
        num_joined: how many of the text's last tokens change where one of the words follows, because a token joins
            characters of both. The ids of all words replace these tokens.
    """

    ids: tuple[tuple[int, ...], ...]
    num_joined: int = 0


class Continuations:
    """The ids that words have after the texts of one layout, in a decoder: those of targets that are trained there.

    A word is tokenized together with the end of its text, back to a whitespace or to 64 characters. After virtual
    tokens and special tokens it does not depend on the text.

    Args:
        layout: the layout.
        words: the words.
        tokenizer: the tokenizer; it is not changed.
        marker: the marker of the layout's text form.
        reads_control_text: whether a special token's text is that token, in texts and words; else it is plain text.
    """

    def __init__(
        self,
        layout: Layout,
        words: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        marker: str = PROMPT_TOKEN,
        reads_control_text: bool = False,
    ) -> None:
        state = tokenizer_state(tokenizer)
        reading = Reading(is_continued=True, reads_control_text=reads_control_text)
        before = place(layout, state.specials(tokenizer), reading, [Field(_WORD)]).text.parts[:-1]
        start = max((index + 1 for index, part in enumerate(before) if isinstance(part, Slot)), default=0)
        self._private = state.private(tokenizer, marker, reads_control_text)
        self._slot = _marker_of(before[start - 1], self._private) if start else ""
        self._last_texts = Layout(before[start:])
        self._tokenizer = tokenizer
        self._words = list(words)
        self._known: dict[str, tuple[WordsAfter, list[int]]] = {}
        self._alike: dict[WordsAfter, WordsAfter] = {}

    def after(self, fields: Mapping[str, str], text_ids: Sequence[int]) -> WordsAfter:
        """The words after one text; equal words after other texts are the same object.

        Args:
            fields: the text's fields.
            text_ids: the text's ids. A word that would join the first of them is kept apart.

        Raises:
            MissingFieldError, FieldTypeError: see :meth:`Layout.render`.
        """
        end = self._end_of(fields)
        if end not in self._known:
            if len(self._known) == _MOST_KNOWN:
                self._known.clear()
            self._known[end] = self._join(end)
        words, replaced = self._known[end]
        if replaced and (len(text_ids) <= len(replaced) or list(text_ids[-len(replaced) :]) != replaced):
            words = WordsAfter(tuple(map(tuple, ids_after_rows(self._words, self._tokenizer))))
        return self._alike.setdefault(words, words)

    def _end_of(self, fields: Mapping[str, str]) -> str:
        """The end of a text, and the marker of what comes before it if that is the whole of it."""
        text, _ = self._last_texts.render(fields, ())
        if len(text) <= _TAIL:
            return self._slot + text
        space = _SPACE.search(text, len(text) - _TAIL, len(text) - _TAIL // 2)
        return text[space.start() if space else len(text) - _TAIL :]

    def _join(self, end: str) -> tuple[WordsAfter, list[int]]:
        """The words after the end of a text, and the ids of the tokens that are joined."""
        alone, *joined = self._tokenize([end, *(end + word for word in self._words)])
        columns = zip(alone, *joined, strict=False)
        common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        words = WordsAfter(tuple(ids[common:] for ids in joined), len(alone) - common)
        return words, list(alone[common:])

    def _tokenize(self, texts: list[str]) -> list[tuple[int, ...]]:
        return [tuple(ids) for ids, _ in self._private.tokenize(texts, with_spans=False)]


def decoder_words(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> WordsAfter:
    """The ids of words that an encoder-decoder generates: those of targets, without the end.

    Raises:
        UnsupportedModelError: see :func:`tokenize_decoder_targets`.
    """
    found = tokenizer_state(tokenizer).private(tokenizer, PROMPT_TOKEN).tokenize_targets(words)
    targets = tokenize_decoder_targets(words, tokenizer)
    return WordsAfter(tuple(_up_to(target, ids) for target, ids in zip(targets, found, strict=True)))


def ids_after_rows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of each text directly after virtual tokens."""
    private = tokenizer_state(tokenizer).private(tokenizer, PROMPT_TOKEN)
    found = private.tokenize([private.marker + text for text in texts], with_spans=False)
    return [ids[ids.index(private.marker_id) + 1 :] for ids, _ in found]


def _marker_of(slot: object, private: PrivateTokenizer) -> str:
    return private.marker if isinstance(slot, Rows) else private.special_marker


def _up_to(target: list[int], ids: list[int]) -> tuple[int, ...]:
    """A target's ids up to the end of its text's."""
    starts = range(len(target) - len(ids) + 1)
    start = next(start for start in starts if target[start : start + len(ids)] == ids)
    return tuple(target[: start + len(ids)]) if ids else ()
