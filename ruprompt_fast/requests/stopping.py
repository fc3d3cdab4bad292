"""Stop strings that look at the generated text only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.requests.decoding import TextDecoder

MAX_UTF8_BYTES = 4


def stop_ids(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Ids that end a text by default: the model's and the tokenizer's end-of-text tokens, and padding.

    Prompts are trained to end with the tokenizer's end of text, which need not be the model's; ruGPT-3's published ones
    end with ``<pad>``, id 0.
    """
    configured = config.eos_token_id
    stops = set(configured) if isinstance(configured, (list, tuple)) else {configured}
    stops |= {tokenizer.eos_token_id, tokenizer.pad_token_id}
    if tokenizer.convert_ids_to_tokens(0) == "<pad>":
        stops.add(0)
    return sorted(stop for stop in stops if stop is not None) or None


def unused_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that must never be generated: those that the tokenizer does not have, and markers."""
    from ruprompt_fast.prompts import is_marker

    vocab_size = model.config.get_text_config().vocab_size
    markers = [index for token, index in tokenizer.get_added_vocab().items() if is_marker(token)]
    unused = set(range(len(tokenizer), vocab_size)) | {index for index in markers if index < vocab_size}
    return sorted(unused)


class StopTexts:
    """Strings that end a text as soon as it contains one of them; false if there are none.

    Args:
        strings: the stop strings, or a single one; empty strings are left out.

    Attributes:
        longest: the length of the longest string, in characters.
    """

    def __init__(self, strings: str | Sequence[str]) -> None:
        given = [strings] if isinstance(strings, str) else strings
        self._strings = tuple(string for string in given if string)
        self.longest = max((len(string) for string in self._strings), default=0)

    def __bool__(self) -> bool:
        return bool(self._strings)

    def found_in(self, text: str) -> bool:
        """Whether the text contains one of the strings."""
        return any(string in text for string in self._strings)


class StopStrings(StoppingCriteria):
    """Ends a sequence as soon as its new text contains one of the strings.

    transformers' own criterion also matches across the border between input and new text, so where a request stops
    would depend on how its input ends. It also needs a tokenizer whose vocabulary can spell ``abcdef``.

    Args:
        strings: the stop strings.
        decoder: decodes the new tokens.

    Attributes:
        new_start: index of the first new token in a sequence.
        continues_input: whether the new tokens continue the input; otherwise they begin a text.
    """

    def __init__(self, strings: Sequence[str], decoder: TextDecoder) -> None:
        self._stops = StopTexts(strings)
        self._decoder = decoder
        self.new_start = 0
        self.continues_input = True
        # A byte-level token may hold a single byte, so a string spans at most this many tokens.
        self._window = 1 + self._stops.longest * MAX_UTF8_BYTES

    def __bool__(self) -> bool:
        """Whether there are strings to look for."""
        return bool(self._stops)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether each sequence [batch, length] is done, as bool [batch]."""
        start = max(self.new_start, input_ids.shape[1] - self._window)
        before = 0 if self.continues_input else self.new_start
        texts = [self._decoder.text(ids[before:start], ids[start:]) for ids in input_ids.tolist()]
        return input_ids.new_tensor([self.contained_in(text) for text in texts], dtype=torch.bool)

    def contained_in(self, text: str) -> bool:
        """Whether the text contains one of the strings."""
        return self._stops.found_in(text)
