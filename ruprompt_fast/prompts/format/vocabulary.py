"""Vocabularies of Rust tokenizers without some of their words."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, cast

from tokenizers import Tokenizer

from ruprompt_fast.prompts.format.marker_tokens import random_name

_EMPTY: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
}


def without_words(backend: Tokenizer, ids: Collection[int]) -> Any:
    """A copy of a tokenizer's model in which no text gives these ids; all others stay what they are.

    Some vocabularies hold special tokens as words like any other: a Unigram model finds ``</s>`` in a text by itself.

    Args:
        backend: the tokenizer, which is not changed.
        ids: ids of its model's words. The word for unknown text stays.
    """
    model = json.loads(cast(Any, backend.model).__getstate__())
    if isinstance(model["vocab"], dict):
        words = {word for word, word_id in model["vocab"].items() if word_id in ids and word != model["unk_token"]}
        model["vocab"] = {random_name() if word in words else word: word_id for word, word_id in model["vocab"].items()}
        if "merges" in model:
            model["merges"] = [merge for merge in model["merges"] if not words & _made_by(merge)]
    else:
        names = {word_id: random_name() for word_id in ids if word_id != model["unk_id"]}
        model["vocab"] = [[names.get(index, word), score] for index, (word, score) in enumerate(model["vocab"])]
    return Tokenizer.from_str(json.dumps({**_EMPTY, "model": model})).model


def _made_by(merge: str | list[str]) -> set[str]:
    """The words that a merge reads, and the one that it makes."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return {left, right, left + right}
