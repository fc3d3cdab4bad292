"""What ids a text has where something stands before it.

``tokenizer(text)`` gives the ids of a text that stands alone. SentencePiece's tokenizers begin it with a word boundary
(``▁``), which the same text does not have behind other text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ruprompt_fast.prompts.template import PROMPT_TOKEN
from ruprompt_fast.prompts.tokenizer_state import tokenizer_state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def ids_behind_rows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of each text directly behind soft rows."""
    private = tokenizer_state(tokenizer).private(tokenizer, PROMPT_TOKEN)
    found = private.tokenize([private.marker + text for text in texts], with_spans=False)
    return [ids[ids.index(private.marker_id) + 1 :] for ids, _ in found]
