"""The added tokens that mark virtual tokens: the markers of the text form, and private ones."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

from tokenizers import AddedToken, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MarkerFlags(NamedTuple):
    """How a tokenizer looks for an added token, see ``tokenizers.AddedToken``."""

    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


def marker_token(tokenizer: PreTrainedTokenizerBase, marker: str) -> AddedToken:
    """The token to add for a marker.

    It has the flags of ``tokenizer.add_tokens([marker])``, with one exception: a tokenizer that normalizes ``<|P|>`` to
    something else (to lower case, or with a word boundary in front) looks for it in the text as it was written. With
    the usual flags it would miss all markers but the first, or take ``<|p|>`` for one.
    """
    backend = rust_backend(tokenizer)
    if backend is None:
        return AddedToken(marker, normalized=not getattr(tokenizer, "do_lower_case", False))
    return AddedToken(marker, normalized=_is_stable(backend, marker))


def rust_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """The Rust tokenizer inside, if there is one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend if isinstance(backend, Tokenizer) else None


def flags_of(token: AddedToken) -> MarkerFlags:
    """The flags of an added token."""
    return MarkerFlags(token.single_word, token.lstrip, token.rstrip, token.normalized)


def _is_stable(backend: Tokenizer, text: str) -> bool:
    return backend.normalizer is None or bool(backend.normalizer.normalize_str(text) == text)


def random_name() -> str:
    """A name that no text contains by accident, and that no added token overlaps."""
    return f"\ue000{secrets.token_hex(8)}\ue001"


def draw_marker(backend: Tokenizer, flags: MarkerFlags) -> tuple[str, MarkerFlags]:
    """A marker that the normalizer leaves alone, if it is looked for after the normalizer."""
    name = random_name()
    if not flags.normalized or _is_stable(backend, name):
        return name, flags
    plain = f"<|{secrets.token_hex(8)}|>"  # BERT's normalizer drops characters of the private use area
    if _is_stable(backend, plain):
        return plain, flags
    return name, flags._replace(normalized=False)
