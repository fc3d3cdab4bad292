"""What is known about a tokenizer: made once, and again when the tokenizer has changed."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from ruprompt_fast.prompts.format.marker_tokens import MarkerFlags, flags_of, marker_token, rust_backend
from ruprompt_fast.prompts.format.private_tokenizer import PrivateTokenizer, make_private
from ruprompt_fast.prompts.format.special_tokens import PlacedLayout, Reading, SpecialTokens, place
from ruprompt_fast.prompts.format.template import PROMPT_TOKEN, is_marker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

    from ruprompt_fast.prompts.format.layout import Layout

_SAMPLE = "a"


class TokenizerState:
    """What is known about a tokenizer as it is now: it changes when tokens are added.

    Attributes:
        first_free_id: the smallest id above everything that the tokenizer can give.
        markers: the prompt markers that the tokenizer has, with their ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fingerprint: tuple[Any, ...]) -> None:
        self.fingerprint = fingerprint
        self.first_free_id = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
        added = {token.content: (token_id, token) for token_id, token in tokenizer.added_tokens_decoder.items()}
        self.markers = {content: token_id for content, (token_id, _) in added.items() if is_marker(content)}
        self._flags = {marker: flags_of(added[marker][1]) for marker in self.markers}
        self._special = {content: added[content] for content in _special_contents(tokenizer, added)}
        self._special_ids = {content: token_id for content, (token_id, _) in self._special.items()}
        self._private: dict[tuple[MarkerFlags, bool], PrivateTokenizer] = {}
        self._specials: SpecialTokens | None = None
        self._placed: weakref.WeakKeyDictionary[Layout, dict[Reading, PlacedLayout]] = weakref.WeakKeyDictionary()

    def private(
        self, tokenizer: PreTrainedTokenizerBase, marker: str, reads_control_text: bool = False, renew: bool = False
    ) -> PrivateTokenizer:
        """The copy whose own marker is looked for as ``marker`` is, or a new copy with newly drawn markers.

        Args:
            tokenizer: the tokenizer.
            marker: the marker of a text form.
            reads_control_text: whether a special token's text is that token, if the tokenizer itself reads it so.
            renew: whether to make a new copy.
        """
        flags = self._flags.get(marker)
        if flags is None:
            flags = self._flags[marker] = flags_of(marker_token(tokenizer, marker))
        private = self._private.get((flags, reads_control_text))
        if private is None or renew:
            private = make_private(tokenizer, flags, {} if reads_control_text else self._special_ids)
            self._private[flags, reads_control_text] = private
        return private

    def specials(self, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        """The tokenizer's special tokens."""
        if self._specials is None:
            private = self.private(tokenizer, PROMPT_TOKEN)
            after, alone = private.tokenize([private.special_marker + _SAMPLE, _SAMPLE], with_spans=False)
            self._specials = SpecialTokens(
                self._special_ids,
                tokenizer.bos_token,
                tokenizer.eos_token,
                private.leading,
                private.trailing,
                marks_beginning=after.ids[1:] != alone.ids,
                are_read=not tokenizer.split_special_tokens,
                strip_before=frozenset(content for content, (_, token) in self._special.items() if token.lstrip),
                strip_after=frozenset(content for content, (_, token) in self._special.items() if token.rstrip),
            )
        return self._specials

    def place(self, tokenizer: PreTrainedTokenizerBase, layout: Layout, reading: Reading) -> PlacedLayout:
        """The layout as the tokenizer reads it, see :func:`~ruprompt_fast.prompts.format.special_tokens.place`."""
        known = self._placed.setdefault(layout, {})
        placed = known.get(reading)
        if placed is None:
            placed = known[reading] = place(layout, self.specials(tokenizer), reading)
        return placed


_states: weakref.WeakKeyDictionary[Any, TokenizerState] = weakref.WeakKeyDictionary()
_states_lock = threading.Lock()


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> TokenizerState:
    """The state of a tokenizer, made again after tokens or special tokens of the tokenizer have changed."""
    fingerprint = _fingerprint(tokenizer)
    state = _states.get(tokenizer)
    if state is None or state.fingerprint != fingerprint:
        with _states_lock:
            state = _states.get(tokenizer)
            if state is None or state.fingerprint != fingerprint:
                state = _states[tokenizer] = TokenizerState(tokenizer, fingerprint)
    return state


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """Changes when ids may come out differently; cheap enough for every call (a few microseconds)."""
    backend = rust_backend(tokenizer)
    processor = backend.post_processor if backend is not None else None
    return (
        backend,
        len(tokenizer),
        processor.__getstate__() if processor is not None else None,
        tokenizer.split_special_tokens,
        tuple(tokenizer.all_special_tokens),
        tuple(tokenizer.special_tokens_map.items()),  # one token may have several roles
    )


def _special_contents(tokenizer: PreTrainedTokenizerBase, added: Mapping[str, tuple[int, AddedToken]]) -> list[str]:
    """The texts of the added tokens that are special, by their kind or by the tokenizer's use of them."""
    named = set(tokenizer.all_special_tokens)
    return [
        content
        for content, (_, token) in added.items()
        if (token.special or content in named) and not is_marker(content)
    ]
