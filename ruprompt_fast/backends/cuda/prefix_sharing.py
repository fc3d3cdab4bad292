"""Which rows of a decode step read the pages that they share together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ruprompt_fast.ops.cuda.cards import Card
from ruprompt_fast.ops.cuda.prefix_rule import prefix_decode_pays
from ruprompt_fast.ops.prefix_decode import SharedPrefixes, shared_prefix_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.backends.base import StepBatch
    from ruprompt_fast.backends.cuda.kv_pool import DevicePages


class PrefixSharing:
    """Decides for each step.

    Args:
        model: its largest layer counts.
        pages: the KV cache.
        card: that decodes.
        always: the answer wherever rows share anything; None asks the card's rule.
    """

    def __init__(self, model: PreTrainedModel, pages: DevicePages, card: Card, always: bool | None) -> None:
        self._card = card
        self._always = always
        self._page_size = pages.page_size
        pairs = [
            (keys.shape, values.shape, keys.element_size())
            for keys, values in zip(pages.keys, pages.values, strict=True)
        ]
        self._token_bytes = max(key[1] * (key[3] + value[3]) * size for key, value, size in pairs)
        heads = model.config.get_text_config().num_attention_heads
        self._row_bytes = 4 * heads * max(value[3] for _, value, _ in pairs)

    def of(self, batch: StepBatch) -> SharedPrefixes | None:
        """The groups of a step that decodes; None where every row had better read all of its pages by itself."""
        if self._always is False or len(batch.context_lens) < 2:
            return None
        shared = shared_prefix_groups(batch.block_tables, batch.context_lens, self._page_size)
        if self._always:
            return shared if shared.saved_tokens else None
        pays = prefix_decode_pays(shared, self._token_bytes, self._row_bytes, self._card)
        return shared if pays else None
