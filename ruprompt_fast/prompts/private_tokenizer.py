"""Private tokenizers: copies in which a run of soft rows is one token that no text can contain.

To tokenize a prompt exactly as the tokenizer would tokenize its text form, the tokenizer itself must see a marker where
the rows stand: byte-level, Metaspace, Unigram and WordPiece tokenizers all treat the text beside an added token in
their own ways. The text form's marker ``<|P|>`` will not do, because a user may have typed it. So each tokenizer gets a
copy, kept while the tokenizer lives, in which the markers of all prompts are renamed and one marker with a random name
is added. The copy of a Rust tokenizer shares its vocabulary; it is made in microseconds.
"""

from __future__ import annotations

import copy
import threading
import weakref
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from tokenizers import AddedToken, Tokenizer

from ruprompt_fast.errors import UnsupportedModelError
from ruprompt_fast.prompts.marker_tokens import (
    MarkerFlags,
    draw_marker,
    flags_of,
    marker_token,
    random_name,
    rust_backend,
)
from ruprompt_fast.prompts.spans import EncodingSpans, RetokenizedSpans, Spans
from ruprompt_fast.prompts.template import is_marker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


_NO_TOKEN = -1


class TokenizedText(NamedTuple):
    """Ids of one text, and where its characters went (None where that was not asked for)."""

    ids: list[int]
    spans: Spans | None


class PrivateTokenizer(Protocol):
    """A copy of a tokenizer with a marker of its own.

    Attributes:
        marker: the text to write for a run of rows.
        marker_id: the id that it gives.
        num_leading: how many special tokens stand before every text.
        num_trailing: how many stand behind it.
    """

    marker: str
    marker_id: int
    num_leading: int
    num_trailing: int

    def tokenize(self, texts: Sequence[str], add_special_tokens: bool, with_spans: bool) -> list[TokenizedText]:
        """Tokenize several texts."""


class TokenizerState:
    """What is known about a tokenizer as it is now: it changes when tokens are added.

    Attributes:
        first_free_id: the smallest id above everything that the tokenizer can give.
        markers: the prompt markers that the tokenizer has, with their ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fingerprint: tuple[Any, ...]) -> None:
        self.fingerprint = fingerprint
        self.first_free_id = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
        added = tokenizer.added_tokens_decoder.items()
        own = {token.content: (token_id, flags_of(token)) for token_id, token in added if is_marker(token.content)}
        self.markers = {marker: token_id for marker, (token_id, _) in own.items()}
        self._flags = {marker: flags for marker, (_, flags) in own.items()}
        self._private: dict[MarkerFlags, PrivateTokenizer] = {}

    def private(self, tokenizer: PreTrainedTokenizerBase, marker: str, renew: bool = False) -> PrivateTokenizer:
        """The copy whose own marker is looked for as ``marker`` is, or a new copy with a newly drawn marker."""
        flags = self._flags.get(marker)
        if flags is None:
            flags = self._flags[marker] = flags_of(marker_token(tokenizer, marker))
        private = self._private.get(flags)
        if private is None or renew:
            private = _make_private(tokenizer, flags)
            self._private[flags] = private
        return private


_states: weakref.WeakKeyDictionary[Any, TokenizerState] = weakref.WeakKeyDictionary()
_states_lock = threading.Lock()


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> TokenizerState:
    """The state of a tokenizer, made anew after tokens or special tokens of the tokenizer have changed."""
    fingerprint = _fingerprint(tokenizer)
    state = _states.get(tokenizer)
    if state is None or state.fingerprint != fingerprint:
        with _states_lock:
            state = _states.get(tokenizer)
            if state is None or state.fingerprint != fingerprint:
                state = _states[tokenizer] = TokenizerState(tokenizer, fingerprint)
    return state


class _RustTokenizer:
    """The Rust backend alone: transformers adds nothing to its ids."""

    def __init__(self, backend: Tokenizer, flags: MarkerFlags, split_special_tokens: bool) -> None:
        self._tokenizer = Tokenizer(backend.model)
        for component in ("normalizer", "pre_tokenizer", "post_processor"):
            if getattr(backend, component) is not None:
                setattr(self._tokenizer, component, getattr(backend, component))
        self._tokenizer.encode_special_tokens = split_special_tokens
        self.marker, flags = draw_marker(backend, flags)
        self._renumbered = self._add_tokens(backend.get_added_tokens_decoder(), flags)
        marker_id = cast(int, self._tokenizer.token_to_id(self.marker))
        self.marker_id = self._renumbered.get(marker_id, marker_id)
        self.num_leading, self.num_trailing = _count_special_tokens(self)

    def _add_tokens(self, added: dict[int, AddedToken], flags: MarkerFlags) -> dict[int, int]:
        """Add the original's tokens, the markers among them renamed, and the marker; returns ids to replace.

        A renamed token that was a word of the vocabulary takes a new id, and those behind it move. They get their old
        ids back, and the private marker one that no token has.
        """
        expected = {self.marker: _NO_TOKEN}
        tokens = []
        for token_id, token in sorted(added.items()):
            if is_marker(token.content):
                token = AddedToken(random_name(), normalized=False)
            expected[token.content] = token_id
            tokens.append(token)
        # One call for each stretch of equal kind: every call rebuilds the whole table of added tokens.
        for is_special, group in groupby(tokens, key=lambda token: token.special):
            add = self._tokenizer.add_special_tokens if is_special else self._tokenizer.add_tokens
            add(list(group))
        self._tokenizer.add_tokens([AddedToken(self.marker, **flags._asdict())])
        actual = {token.content: token_id for token_id, token in self._tokenizer.get_added_tokens_decoder().items()}
        if all(actual[content] == token_id for content, token_id in expected.items() if content != self.marker):
            return {}
        return {token_id: expected[content] for content, token_id in actual.items()}

    def tokenize(self, texts: Sequence[str], add_special_tokens: bool, with_spans: bool) -> list[TokenizedText]:
        tokenize = self._tokenizer.encode_batch if with_spans else self._tokenizer.encode_batch_fast
        result = []
        for encoding, text in zip(tokenize(texts, add_special_tokens=add_special_tokens), texts, strict=True):
            ids = encoding.ids
            if self._renumbered:
                ids = [self._renumbered.get(token_id, token_id) for token_id in ids]
            spans = None
            if with_spans:
                num_trailing = self.num_trailing if add_special_tokens else 0
                spans = EncodingSpans(encoding, len(text), len(ids) - num_trailing)
            result.append(TokenizedText(ids, spans))
        return result


class _WrappedTokenizer:
    """A deep copy of the whole tokenizer, for those that are written in Python or add to what the backend gives."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, flags: MarkerFlags) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._renumbered: dict[int, int] = {}
        backend = rust_backend(tokenizer)
        if backend is not None:
            inner = _RustTokenizer(backend, flags, tokenizer.split_special_tokens)
            cast(Any, self._tokenizer)._tokenizer = inner._tokenizer
            self.marker, self.marker_id, self._renumbered = inner.marker, inner.marker_id, inner._renumbered
        else:
            self.marker = random_name()
            _rename_python_markers(self._tokenizer)
            _add_python_token(self._tokenizer, AddedToken(self.marker, **flags._asdict()))
            self.marker_id = cast(int, self._tokenizer.convert_tokens_to_ids(self.marker))
        self.num_leading, self.num_trailing = _count_special_tokens(self)

    def tokenize(self, texts: Sequence[str], add_special_tokens: bool, with_spans: bool) -> list[TokenizedText]:
        result = []
        for text in texts:
            ids = self._ids(text, add_special_tokens)
            spans = None
            if with_spans:
                num_leading = self.num_leading if add_special_tokens else 0
                spans = RetokenizedSpans(text, num_leading, lambda piece: self._ids(piece, False))
            result.append(TokenizedText(ids, spans))
        return result

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return [self._renumbered.get(token_id, token_id) for token_id in cast("list[int]", ids)]


def _make_private(tokenizer: PreTrainedTokenizerBase, flags: MarkerFlags) -> PrivateTokenizer:
    backend = rust_backend(tokenizer)
    if backend is not None and _adds_nothing_to_backend(tokenizer):
        return _RustTokenizer(backend, flags, tokenizer.split_special_tokens)
    return _WrappedTokenizer(tokenizer, flags)


def _adds_nothing_to_backend(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a call of the tokenizer runs transformers' common code: a model's own class may do more."""
    return all(
        getattr(type(tokenizer), name).__module__.startswith("transformers.tokenization_")
        for name in ("__call__", "_encode_plus")
    )


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """Changes when ids may come out differently; cheap enough for every call (about a microsecond)."""
    backend = rust_backend(tokenizer)
    processor = backend.post_processor if backend is not None else None
    return (
        backend,
        len(tokenizer),
        processor.__getstate__() if processor is not None else None,
        tokenizer.split_special_tokens,
    )


def _count_special_tokens(private: PrivateTokenizer) -> tuple[int, int]:
    ids = private.tokenize([private.marker], add_special_tokens=True, with_spans=False)[0].ids
    if ids.count(private.marker_id) != 1:
        raise UnsupportedModelError(
            "this tokenizer does not keep an added token in one piece, so soft rows cannot be placed in its text. "
            "Use a tokenizer that supports add_tokens()."
        )
    leading = ids.index(private.marker_id)
    return leading, len(ids) - leading - 1


def _rename_python_markers(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer written in Python forget the prompt markers, and nothing else."""
    inside = cast(Any, tokenizer)
    markers = [content for content in tokenizer.get_added_vocab() if is_marker(content)]
    for marker in markers:
        token_id = inside._added_tokens_encoder.pop(marker)
        # The id stays taken, or the private marker would get it and later tokens would move.
        name = random_name()
        inside._added_tokens_encoder[name] = token_id
        inside._added_tokens_decoder[token_id] = AddedToken(name, normalized=False)
    if markers:
        inside.tokens_trie = type(inside.tokens_trie)()
        inside._update_trie()


def _add_python_token(tokenizer: PreTrainedTokenizerBase, token: AddedToken) -> None:
    try:
        tokenizer.add_tokens([token])
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} cannot take new tokens, so soft rows cannot be placed in its text. "
            "Load the model's tokenizer through transformers' AutoTokenizer with its tokenizer.json."
        ) from error
