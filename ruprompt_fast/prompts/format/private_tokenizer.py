"""Private tokenizers: copies in which virtual tokens and special tokens are tokens that no text can contain.

To tokenize a prompt exactly as the tokenizer would tokenize its text form, the tokenizer itself must see a marker where
the rows are: byte-level, Metaspace, Unigram and WordPiece tokenizers all treat the text beside an added token in
their own ways. The text form's marker ``<|P|>`` will not do, because a user may have typed it, and neither will the
text of a special token. So each tokenizer gets a copy, kept while the tokenizer lives, in which the markers of all
prompts are renamed, special tokens are text like any other, and two markers with random names are added: one for rows,
one for special tokens. The copy of a Rust tokenizer shares its vocabulary; it is made in microseconds.
"""

from __future__ import annotations

import copy
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from tokenizers import AddedToken, Tokenizer

from ruprompt_fast.errors import UnsupportedModelError
from ruprompt_fast.prompts.format.marker_tokens import MarkerFlags, draw_marker, random_name, rust_backend
from ruprompt_fast.prompts.format.spans import EncodingSpans, RetokenizedSpans, Spans
from ruprompt_fast.prompts.format.template import is_marker
from ruprompt_fast.prompts.format.vocabulary import without_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase


class TokenizedText(NamedTuple):
    """Ids of one text, and where its characters went (None where that was not asked for)."""

    ids: list[int]
    spans: Spans | None


class PrivateTokenizer(Protocol):
    """A copy of a tokenizer with markers of its own.

    Attributes:
        marker: the text to write for a run of rows.
        marker_id: the id that it gives.
        special_marker: the text to write for special tokens.
        special_marker_id: the id that it gives.
        leading: the special tokens that the tokenizer puts in front of every text.
        trailing: those that it puts after it.
    """

    marker: str
    marker_id: int
    special_marker: str
    special_marker_id: int
    leading: tuple[int, ...]
    trailing: tuple[int, ...]

    def tokenize(self, texts: Sequence[str], with_spans: bool) -> list[TokenizedText]:
        """Tokenize several texts, without the special tokens around them."""

    def tokenize_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts that an encoder-decoder generates, likewise."""


class _RustTokenizer:
    """The Rust backend alone: transformers adds nothing to its ids.

    Args:
        backend: the tokenizer.
        flags: how it looks for a marker.
        as_text: ids of the special tokens whose texts are text like any other; empty to read them as the tokens.
        unknown: the id of what the tokenizer does not know, which texts may give.
        split_special_tokens: whether the tokenizer itself reads special tokens as text.
    """

    def __init__(
        self,
        backend: Tokenizer,
        flags: MarkerFlags,
        as_text: Mapping[str, int],
        unknown: int | None = None,
        split_special_tokens: bool = False,
    ) -> None:
        self._tokenizer = Tokenizer(backend.model)
        for component in ("normalizer", "pre_tokenizer", "post_processor"):
            if getattr(backend, component) is not None:
                setattr(self._tokenizer, component, getattr(backend, component))
        self.marker, flags = draw_marker(backend, flags)
        self.special_marker = random_name()
        self._renumbered = self._add_tokens(backend.get_added_tokens_decoder(), flags, as_text)
        self.marker_id, self.special_marker_id = map(self._id_of, (self.marker, self.special_marker))
        around = self._renumber(self._tokenizer.encode(self.marker, add_special_tokens=True).ids)
        self.leading, self.trailing = _split_at(around, self.marker_id)
        self._tokenizer.encode_special_tokens = split_special_tokens or bool(as_text)
        self._forbidden = frozenset(as_text.values()) - {unknown}

    def tokenize(self, texts: Sequence[str], with_spans: bool) -> list[TokenizedText]:
        tokenize = self._tokenizer.encode_batch if with_spans else self._tokenizer.encode_batch_fast
        encodings = tokenize(texts, add_special_tokens=False)
        found = [self._renumber(encoding.ids) for encoding in encodings]
        if not all(map(self._forbidden.isdisjoint, found)):
            self._forget_forbidden_words()
            return self.tokenize(texts, with_spans)
        return [
            TokenizedText(ids, EncodingSpans(encoding, len(text), len(ids)) if with_spans else None)
            for ids, encoding, text in zip(found, encodings, texts, strict=True)
        ]

    def tokenize_targets(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids for ids, _ in self.tokenize(texts, with_spans=False)]

    def _add_tokens(
        self, added: dict[int, AddedToken], flags: MarkerFlags, as_text: Mapping[str, int]
    ) -> dict[int, int]:
        """Add the original's tokens, the markers among them renamed, and the private ones; returns ids to replace.

        A renamed token that was a word of the vocabulary takes a new id, and those after it move. They get their old
        ids back, and the private markers ones that no token has.
        """
        expected = {self.marker: -1, self.special_marker: -2}
        tokens = []
        for token_id, token in sorted(added.items()):
            if is_marker(token.content):
                token = AddedToken(random_name(), normalized=False)
            expected[token.content] = token_id
            token.special = token.special or token.content in as_text
            tokens.append(token)
        # One call for each stretch of equal kind: every call rebuilds the whole table of added tokens.
        for is_special, group in groupby(tokens, key=lambda token: token.special):
            add = self._tokenizer.add_special_tokens if is_special else self._tokenizer.add_tokens
            add(list(group))
        private = [
            AddedToken(self.marker, **flags._asdict()),
            AddedToken(self.special_marker, normalized=False),
        ]
        self._tokenizer.add_tokens(private)
        actual = {token.content: token_id for token_id, token in self._tokenizer.get_added_tokens_decoder().items()}
        if all(actual[content] == token_id for content, token_id in expected.items() if token_id >= 0):
            return {}
        return {token_id: expected[content] for content, token_id in actual.items()}

    def _forget_forbidden_words(self) -> None:
        """Take the special tokens out of the vocabulary, where texts find them as words."""
        self._tokenizer.model = without_words(self._tokenizer, self._forbidden)
        self._forbidden = frozenset()  # what gives such an id now is unknown text

    def _id_of(self, marker: str) -> int:
        marker_id = cast(int, self._tokenizer.token_to_id(marker))
        return self._renumbered.get(marker_id, marker_id)

    def _renumber(self, ids: list[int]) -> list[int]:
        return [self._renumbered.get(token_id, token_id) for token_id in ids] if self._renumbered else ids


class _WrappedTokenizer:
    """A deep copy of the whole tokenizer, for those that are written in Python or add to what the backend gives."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, flags: MarkerFlags, as_text: Mapping[str, int]) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._inner: _RustTokenizer | None = None
        backend = rust_backend(tokenizer)
        if backend is not None:
            self._inner = inner = _RustTokenizer(
                backend, flags, as_text, tokenizer.unk_token_id, tokenizer.split_special_tokens
            )
            cast(Any, self._tokenizer)._tokenizer = inner._tokenizer
            self._tokenizer.split_special_tokens = inner._tokenizer.encode_special_tokens
            self.marker, self.special_marker = inner.marker, inner.special_marker
            self.marker_id, self.special_marker_id = inner.marker_id, inner.special_marker_id
        else:
            self.marker, self.special_marker = random_name(), random_name()
            _rename_python_tokens(self._tokenizer, is_marker)
            _add_python_token(self._tokenizer, AddedToken(self.marker, **flags._asdict()))
            _add_python_token(self._tokenizer, AddedToken(self.special_marker, normalized=flags.normalized))
            self.marker_id, self.special_marker_id = (
                cast(int, self._tokenizer.convert_tokens_to_ids(marker))
                for marker in (self.marker, self.special_marker)
            )
        around = self._ids([self.marker], add_special_tokens=True)[0]
        self.leading, self.trailing = _split_at(around, self.marker_id)
        if backend is None and as_text:
            _rename_python_tokens(self._tokenizer, as_text.__contains__)
            _forget_roles(self._tokenizer)
        self._forbidden = frozenset(as_text.values()) - {tokenizer.unk_token_id}

    def tokenize(self, texts: Sequence[str], with_spans: bool) -> list[TokenizedText]:
        return [
            TokenizedText(ids, RetokenizedSpans(text, lambda piece: self._text_ids([piece])[0]) if with_spans else None)
            for ids, text in zip(self._text_ids(texts), texts, strict=True)
        ]

    def tokenize_targets(self, texts: Sequence[str]) -> list[list[int]]:
        return self._text_ids(texts, argument="text_target")

    def _text_ids(self, texts: Sequence[str], argument: str = "text") -> list[list[int]]:
        found = self._ids(texts, add_special_tokens=False, argument=argument)
        if all(map(self._forbidden.isdisjoint, found)):
            return found
        if self._inner is None:
            raise UnsupportedModelError(
                f"{type(self._tokenizer).__name__} makes a special token of text, and fields are data. Load the "
                "model's tokenizer through transformers' AutoTokenizer with its tokenizer.json."
            )
        self._inner._forget_forbidden_words()
        self._forbidden = frozenset()
        return self._text_ids(texts, argument)

    def _ids(self, texts: Sequence[str], add_special_tokens: bool, argument: str = "text") -> list[list[int]]:
        # One by one: a model's own class may know single texts only.
        found = [
            self._tokenizer(**{argument: text}, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
            for text in texts
        ]
        return [ids if self._inner is None else self._inner._renumber(ids) for ids in cast("list[list[int]]", found)]


def make_private(
    tokenizer: PreTrainedTokenizerBase, flags: MarkerFlags, as_text: Mapping[str, int]
) -> PrivateTokenizer:
    """A copy of a tokenizer that looks for rows' markers with these flags, and reads the tokens ``as_text`` as text."""
    backend = rust_backend(tokenizer)
    if backend is not None and _adds_nothing_to_backend(tokenizer):
        return _RustTokenizer(backend, flags, as_text, tokenizer.unk_token_id, tokenizer.split_special_tokens)
    return _WrappedTokenizer(tokenizer, flags, as_text)


def _adds_nothing_to_backend(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a call of the tokenizer runs transformers' common code: a model's own class may do more."""
    return all(
        getattr(type(tokenizer), name).__module__.startswith("transformers.tokenization_")
        for name in ("__call__", "_encode_plus")
    )


def _split_at(ids: list[int], marker_id: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What comes before the marker's id and after it."""
    if ids.count(marker_id) != 1:
        raise UnsupportedModelError(
            "this tokenizer does not keep an added token in one piece, so virtual tokens cannot be placed in its text. "
            "Use a tokenizer that supports add_tokens()."
        )
    place = ids.index(marker_id)
    return tuple(ids[:place]), tuple(ids[place + 1 :])


def _rename_python_tokens(tokenizer: PreTrainedTokenizerBase, is_renamed: Callable[[str], bool]) -> None:
    """Make a tokenizer written in Python forget the texts of some added tokens, and nothing else."""
    inside = cast(Any, tokenizer)
    renamed = [content for content in tokenizer.get_added_vocab() if is_renamed(content)]
    for content in renamed:
        token_id = inside._added_tokens_encoder.pop(content)
        # The id stays taken, or the private marker would get it and later tokens would move.
        name = random_name()
        inside._added_tokens_encoder[name] = token_id
        inside._added_tokens_decoder[token_id] = AddedToken(name, normalized=False)
    if renamed:
        inside.tokens_trie = type(inside.tokens_trie)()
        inside._update_trie()


def _forget_roles(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer written in Python know no special tokens but the one for unknown text."""
    inside = cast(Any, tokenizer)
    for role in inside._special_tokens_map:
        if role != "unk_token":
            inside._special_tokens_map[role] = None
    inside._extra_special_tokens = []


def _add_python_token(tokenizer: PreTrainedTokenizerBase, token: AddedToken) -> None:
    try:
        tokenizer.add_tokens([token])
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} cannot take new tokens, so virtual tokens cannot be placed in its text. "
            "Load the model's tokenizer through transformers' AutoTokenizer with its tokenizer.json."
        ) from error
