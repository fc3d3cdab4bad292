"""From fields to ids: the ids of a prompt's text form, with the id of a soft row wherever a marker stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ruprompt_fast.errors import TokenIdError, UnsupportedModelError
from ruprompt_fast.prompts.layout import Layout
from ruprompt_fast.prompts.private_tokenizer import PrivateTokenizer, TokenizedText, TokenizerState, tokenizer_state
from ruprompt_fast.prompts.spans import TokenSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_DRAWS = 4


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as a model reads it.

    Attributes:
        input_ids: token ids, with row k of the prompt as ``first_row_id + k``.
        field_ranges: for each field, the slice of ``input_ids`` with every token that holds at least one of its
            characters. A token that joins characters of two neighbours belongs to both. A field that stands twice has
            the slice of its last place.
        prefix_len: how many ids stand before the first field, up to and including the last soft row there. They are
            the same for all fields' values. 0 if no row stands before the first field.
    """

    input_ids: list[int]
    field_ranges: dict[str, slice]
    prefix_len: int


class TokenizedLayout:
    """A layout with its fields filled in, tokenized with one marker for each run of rows.

    Args:
        layout: the layout.
        tokenized: its text's ids, and spans unless the layout's fields all stand between rows.
        char_spans: the characters of each field.
        positions: where the markers stand in the ids, one for each run.
        num_leading: special tokens before the text.
        num_trailing: special tokens behind it.
    """

    def __init__(
        self,
        layout: Layout,
        tokenized: TokenizedText,
        char_spans: list[tuple[int, int]],
        positions: list[int],
        num_leading: int,
        num_trailing: int,
    ) -> None:
        self._layout = layout
        self._ids, self._spans = tokenized
        self._char_spans = char_spans
        self._positions = positions
        self._num_leading = num_leading
        self._num_trailing = num_trailing

    def expand(self, runs: Sequence[Sequence[int]]) -> list[int]:
        """The ids, with the k-th marker replaced by the ids ``runs[k]``."""
        source = self._ids
        ids: list[int] = []
        end = 0
        for position, run in zip(self._positions, runs, strict=True):
            ids += source[end:position]
            ids += run
            end = position + 1
        ids += source[end:]
        return ids

    def spans(self) -> dict[str, TokenSpan]:
        """The tokens of every field, as positions in the expanded ids."""
        if self._spans is None:
            return {name: TokenSpan(start, stop, start, stop) for name, (start, stop) in self._borders().items()}
        found = [self._spans.find(start, stop) for start, stop in self._char_spans]
        return {
            name: TokenSpan(*map(self._expanded, span))
            for (name, _, _), span in zip(self._layout.field_places, found, strict=True)
        }

    def ranges(self) -> dict[str, slice]:
        """The tokens of every field, as slices of the expanded ids."""
        if self._spans is None:
            return {name: slice(start, stop) for name, (start, stop) in self._borders().items()}
        return {name: slice(span.start, span.stop) for name, span in self.spans().items()}

    def prefix_len(self) -> int:
        """The length of the static prefix in the expanded ids."""
        num_runs = self._layout.prefix_runs
        return self._expanded(self._positions[num_runs - 1] + 1) if num_runs else 0

    def _borders(self) -> dict[str, tuple[int, int]]:
        """The tokens between the markers around each field, where there is nothing else between them."""
        borders = [self._num_leading - 1, *self._positions, len(self._ids) - self._num_trailing]
        return {
            name: (borders[num_runs] + 1 + num_rows - num_runs, borders[num_runs + 1] + num_rows - num_runs)
            for name, num_runs, num_rows in self._layout.field_places
        }

    def _expanded(self, index: int) -> int:
        """Where the token at ``index`` stands after the markers before it were expanded."""
        grown = 0
        for position, count in zip(self._positions, self._layout.runs, strict=True):
            if position >= index:
                break
            grown += count - 1
        return index + grown


def tokenize_layout(
    layout: Layout,
    items: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    marker: str,
    add_special_tokens: bool = True,
    state: TokenizerState | None = None,
) -> list[TokenizedLayout]:
    """Fill in the fields and tokenize; whatever the fields contain is plain text.

    Args:
        layout: the layout.
        items: the fields of each text.
        tokenizer: the tokenizer; it is not changed.
        marker: the marker of the text form, whose flags the private marker takes if the tokenizer has it.
        add_special_tokens: whether to add the tokenizer's special tokens around each text.
        state: the tokenizer's state, if the caller has it.

    Raises:
        MissingFieldError, FieldTypeError: see :meth:`Layout.render`.
        UnsupportedModelError: the tokenizer does not keep added tokens in one piece.
    """
    state = state or tokenizer_state(tokenizer)
    private = state.private(tokenizer, marker)
    results = _tokenize_with(private, layout, items, add_special_tokens)
    for index, result in enumerate(results):
        draws = 0
        while result is None:
            # The marker's name is 64 random bits; only a text made from an earlier answer can contain it.
            if draws == _MAX_DRAWS:
                raise UnsupportedModelError(
                    f"{type(tokenizer).__name__} does not keep the markers of this prompt apart from its text. "
                    "Use a tokenizer that supports add_tokens()."
                )
            draws += 1
            private = state.private(tokenizer, marker, renew=True)
            [result] = _tokenize_with(private, layout, [items[index]], add_special_tokens)
        results[index] = result
    return [result for result in results if result is not None]


def encode_layout(
    layout: Layout,
    items: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    marker: str,
    first_row_id: int | None = None,
    add_special_tokens: bool = True,
) -> list[EncodedPrompt]:
    """Fill in the fields and tokenize, with ``first_row_id + k`` for row k; see :func:`tokenize_layout`.

    Raises:
        TokenIdError: ``first_row_id`` is an id that the tokenizer can give.
    """
    state = tokenizer_state(tokenizer)
    first_free_id = state.first_free_id
    if first_row_id is None:
        first_row_id = first_free_id
    elif first_row_id < first_free_id:
        raise TokenIdError(
            f"first_row_id must lie above all ids of the tokenizer, {first_free_id} at least; found {first_row_id}."
        )
    runs = []
    for count in layout.runs:
        runs.append(range(first_row_id, first_row_id + count))
        first_row_id += count
    return [
        EncodedPrompt(result.expand(runs), result.ranges(), result.prefix_len())
        for result in tokenize_layout(layout, items, tokenizer, marker, add_special_tokens, state)
    ]


def _tokenize_with(
    private: PrivateTokenizer, layout: Layout, items: Sequence[Mapping[str, Any]], add_special_tokens: bool
) -> list[TokenizedLayout | None]:
    """Tokenize with the marker of ``private``; None for a text in which it does not come out once for each run."""
    run_texts = (private.marker,) * len(layout.runs)
    rendered = [layout.render(item, run_texts) for item in items]
    texts = [text for text, _ in rendered]
    num_leading, num_trailing = (private.num_leading, private.num_trailing) if add_special_tokens else (0, 0)
    results: list[TokenizedLayout | None] = []
    tokenized = private.tokenize(texts, add_special_tokens, with_spans=not layout.is_bounded)
    for result, (_, char_spans) in zip(tokenized, rendered, strict=True):
        positions = _positions(result.ids, private.marker_id)
        if len(positions) == len(run_texts):
            results.append(TokenizedLayout(layout, result, char_spans, positions, num_leading, num_trailing))
        else:
            results.append(None)
    return results


def _positions(ids: list[int], wanted: int) -> list[int]:
    positions: list[int] = []
    position = -1
    try:
        while True:
            position = ids.index(wanted, position + 1)
            positions.append(position)
    except ValueError:  # list.index has no other way to say that there are no more
        return positions
