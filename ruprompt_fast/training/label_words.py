"""The label words of a task as they come after its texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from ruprompt_fast.errors import LabelError
from ruprompt_fast.prompts.format.continuations import Continuations, WordsAfter, decoder_words
from ruprompt_fast.prompts.format.layout import Layout
from ruprompt_fast.prompts.format.verbalizers import Verbalizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LabelWords:
    """The ids of label words, as for targets that are trained in their place.

    Args:
        verbalizers: the classes and words.
        layout: the layout of the texts.
        tokenizer: the model's; it is not changed.
        marker: the marker of the layout's text form.
        is_encoder_decoder: whether the words are in a decoder of their own.

    Raises:
        LabelError: see :meth:`after`; for texts whose fields are empty.
    """

    def __init__(
        self,
        verbalizers: Verbalizers,
        layout: Layout,
        tokenizer: PreTrainedTokenizerBase,
        marker: str,
        is_encoder_decoder: bool,
    ) -> None:
        self.class_of = list(verbalizers.class_of)
        self._verbalizers = verbalizers
        self._tokenizer = tokenizer
        self._in_decoder = decoder_words(verbalizers.words, tokenizer) if is_encoder_decoder else None
        self._continuations = Continuations(layout, verbalizers.words, tokenizer, marker)
        self._checked: dict[WordsAfter, list[list[int]]] = {}
        self.after(dict.fromkeys(layout.fields, ""), [])

    def after(self, fields: Mapping[str, str], text_ids: Sequence[int]) -> tuple[list[list[int]], int]:
        """The ids of every word after a text, and how many of the text's last ids they replace.

        Args:
            fields: the text's fields.
            text_ids: its ids.

        Raises:
            LabelError: a word without tokens, or words of two classes that begin with the same token.
        """
        words = self._in_decoder or self._continuations.after(fields, text_ids)
        if words not in self._checked:
            self._check(words)
            self._checked[words] = [list(ids) for ids in words.ids]
        return self._checked[words], words.num_joined

    def _check(self, words: WordsAfter) -> None:
        names = self._verbalizers.words
        if not all(words.ids):
            raise LabelError(f"every label word must have at least one token; found {list(names)}.")
        # A word boundary or a line end in front of all of them does not make words alike.
        columns = zip(*(ids[:-1] for ids in words.ids), strict=False)
        start = sum(1 for _ in takewhile(self._is_blank, columns))
        first: dict[int, int] = {}
        for word, ids in enumerate(words.ids):
            other = first.setdefault(ids[start], word)
            if self.class_of[other] != self.class_of[word]:
                raise LabelError(
                    f"the label words {names[other]!r} and {names[word]!r} begin with the same token, "
                    f"{self._tokenizer.decode([ids[start]])!r}; choose words that differ from the start."
                )

    def _is_blank(self, column: tuple[int, ...]) -> bool:
        """Whether one token, which has no visible text, is in this place of all words."""
        text = str(self._tokenizer.decode(list(column[:1]), skip_special_tokens=True))
        return len(set(column)) == 1 and not text.strip()
