"""From fields to ids: tokenized texts, with the ids of virtual tokens and special tokens where markers are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ruprompt_fast.errors import TokenIdError, UnsupportedModelError
from ruprompt_fast.prompts.format.layout import Layout, Rows, Slot, Tokens
from ruprompt_fast.prompts.format.private_tokenizer import PrivateTokenizer, TokenizedText
from ruprompt_fast.prompts.format.spans import TokenSpan
from ruprompt_fast.prompts.format.special_tokens import WHOLE_TEXT, PlacedLayout, Reading
from ruprompt_fast.prompts.format.tokenizer_state import TokenizerState, tokenizer_state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_DRAWS = 4


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as a model reads it.

    Attributes:
        input_ids: token ids, with row k of the prompt as ``first_row_id + k``.
        field_ranges: for each field, the slice of ``input_ids`` with every token that holds at least one of its
            characters. A token that joins characters of two neighbours belongs to both. A field that appears twice has
            the slice of its last place.
        prefix_len: how many ids come before the first field, up to and including the last virtual token there and the
            special tokens directly after it. They are the same for all fields' values. 0 if no row comes before the
            first field.
    """

    input_ids: list[int]
    field_ranges: dict[str, slice]
    prefix_len: int


class TokenizedLayout:
    """A layout with its fields filled in, tokenized with one marker for each run of rows and each special token.

    Args:
        placed: the layout.
        tokenized: its text's ids, and spans unless the text's fields are all between markers.
        char_spans: the characters of each field.
        positions: where the markers are in the text's ids, one for each slot of the text.
    """

    def __init__(
        self,
        placed: PlacedLayout,
        tokenized: TokenizedText,
        char_spans: list[tuple[int, int]],
        positions: list[int],
    ) -> None:
        self._placed = placed
        self._ids, self._spans = tokenized
        self._char_spans = char_spans
        self._positions = positions
        self._sizes = [_size(slot) for slot in placed.text.slots]
        self._head_size = sum(map(_size, placed.head))

    def expand(self, runs: Sequence[Sequence[int]]) -> list[int]:
        """All ids, with the ids ``runs[k]`` for the k-th run of rows."""
        rows = iter(runs)
        ids = [token for slot in self._placed.head for token in _slot_ids(slot, rows)]
        end = 0
        for position, slot in zip(self._positions, self._placed.text.slots, strict=True):
            ids += self._ids[end:position]
            ids += _slot_ids(slot, rows)
            end = position + 1
        ids += self._ids[end:]
        for slot in self._placed.foot:
            ids += _slot_ids(slot, rows)
        return ids

    def spans(self) -> dict[str, TokenSpan]:
        """The tokens of every field, as positions in the expanded ids."""
        if self._spans is None:
            return {name: TokenSpan(start, stop, start, stop) for name, (start, stop) in self._borders().items()}
        found = [self._spans.find(start, stop) for start, stop in self._char_spans]
        return {
            name: TokenSpan(*map(self._expanded, span))
            for (name, _), span in zip(self._placed.text.field_places, found, strict=True)
        }

    def ranges(self) -> dict[str, slice]:
        """The tokens of every field, as slices of the expanded ids."""
        if self._spans is None:
            return {name: slice(start, stop) for name, (start, stop) in self._borders().items()}
        return {name: slice(span.start, span.stop) for name, span in self.spans().items()}

    def text_len(self) -> int:
        """How many of the expanded ids come before the foot."""
        return self._expanded(len(self._ids))

    def prefix_len(self) -> int:
        """The length of the static prefix in the expanded ids."""
        slots = self._placed.prefix_slots
        if slots:
            return self._expanded(self._positions[slots - 1]) + self._sizes[slots - 1]
        return self._head_size if any(isinstance(slot, Rows) for slot in self._placed.head) else 0

    def _borders(self) -> dict[str, tuple[int, int]]:
        """The tokens between the markers around each field, where there is nothing else between them."""
        starts = [*map(self._expanded, self._positions), self.text_len()]
        stops = [self._head_size, *(start + size for start, size in zip(starts, self._sizes, strict=False))]
        return {name: (stops[num_slots], starts[num_slots]) for name, num_slots in self._placed.text.field_places}

    def _expanded(self, index: int) -> int:
        """Where the text's token at ``index`` is after the markers before it were expanded."""
        grown = self._head_size
        for position, size in zip(self._positions, self._sizes, strict=True):
            if position >= index:
                break
            grown += size - 1
        return index + grown


def tokenize_layout(
    placed: PlacedLayout,
    items: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    marker: str,
    state: TokenizerState,
    reads_control_text: bool = False,
) -> list[TokenizedLayout]:
    """Fill in the fields and tokenize; whatever the fields contain is plain text.

    Args:
        placed: the layout.
        items: the fields of each text.
        tokenizer: the tokenizer; it is not changed.
        marker: the marker of the text form, whose flags the private marker takes if the tokenizer has it.
        state: the tokenizer's state.
        reads_control_text: whether a special token's text in a field is that token nevertheless.

    Raises:
        MissingFieldError, FieldTypeError: see :meth:`Layout.render`.
        UnsupportedModelError: the tokenizer does not keep added tokens in one piece, or special tokens apart from text.
    """
    private = state.private(tokenizer, marker, reads_control_text)
    results = _tokenize_with(private, placed, items)
    for index, result in enumerate(results):
        draws = 0
        while result is None:
            # The markers' names are 64 random bits; only a text made from an earlier answer can contain one.
            if draws == _MAX_DRAWS:
                raise UnsupportedModelError(
                    f"{type(tokenizer).__name__} does not keep the markers of this prompt apart from its text. "
                    "Use a tokenizer that supports add_tokens()."
                )
            draws += 1
            private = state.private(tokenizer, marker, reads_control_text, renew=True)
            [result] = _tokenize_with(private, placed, [items[index]])
        results[index] = result
    return [result for result in results if result is not None]


def encode_layout(
    layout: Layout,
    items: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    marker: str,
    reading: Reading = WHOLE_TEXT,
    first_row_id: int | None = None,
) -> list[EncodedPrompt]:
    """Fill in the fields and tokenize, with ``first_row_id + k`` for row k; see :func:`tokenize_layout`.

    Raises:
        TokenIdError: ``first_row_id`` is an id that the tokenizer can give.
        TemplateError: the tokenizer lacks a special token that the layout names.
    """
    state = tokenizer_state(tokenizer)
    first_free_id = state.first_free_id
    if first_row_id is None:
        first_row_id = first_free_id
    elif first_row_id < first_free_id:
        raise TokenIdError(
            f"first_row_id must lie above all ids of the tokenizer, {first_free_id} at least; found {first_row_id}."
        )
    runs = row_ids(layout, first_row_id)
    placed = state.place(tokenizer, layout, reading)
    tokenized = tokenize_layout(placed, items, tokenizer, marker, state, reading.reads_control_text)
    return [EncodedPrompt(result.expand(runs), result.ranges(), result.prefix_len()) for result in tokenized]


def row_ids(layout: Layout, first_row_id: int) -> list[range]:
    """The ids of each run of rows, where row k of the prompt has the id ``first_row_id + k``."""
    runs = []
    for count in layout.runs:
        runs.append(range(first_row_id, first_row_id + count))
        first_row_id += count
    return runs


def _tokenize_with(
    private: PrivateTokenizer, placed: PlacedLayout, items: Sequence[Mapping[str, Any]]
) -> list[TokenizedLayout | None]:
    """Tokenize with the markers of ``private``; None for a text in which they do not come out once for each slot."""
    layout = placed.text
    slot_texts = [private.marker if isinstance(slot, Rows) else private.special_marker for slot in layout.slots]
    rendered = [layout.render(item, slot_texts) for item in items]
    texts = [text for text, _ in rendered]
    results: list[TokenizedLayout | None] = []
    tokenized = private.tokenize(texts, with_spans=not layout.is_bounded)
    for result, (_, char_spans) in zip(tokenized, rendered, strict=True):
        positions = _positions(result.ids, private.marker_id)
        if any(isinstance(slot, Tokens) for slot in layout.slots):
            positions = sorted([*positions, *_positions(result.ids, private.special_marker_id)])
        is_complete = len(positions) == len(layout.slots)
        results.append(TokenizedLayout(placed, result, char_spans, positions) if is_complete else None)
    return results


def _size(slot: Slot) -> int:
    return slot.count if isinstance(slot, Rows) else len(_tokens(slot).ids)


def _slot_ids(slot: Slot, runs: Iterator[Sequence[int]]) -> Sequence[int]:
    return next(runs) if isinstance(slot, Rows) else _tokens(slot).ids


def _tokens(slot: Slot) -> Tokens:
    """The ids of special tokens, which a placed layout has for all of them."""
    return cast(Tokens, slot)


def _positions(ids: list[int], wanted: int) -> list[int]:
    positions: list[int] = []
    position = -1
    try:
        while True:
            position = ids.index(wanted, position + 1)
            positions.append(position)
    except ValueError:  # list.index has no other way to say that there are no more
        return positions
