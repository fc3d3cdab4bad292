"""Attention of one step over the pages on the device."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ruprompt_fast.backends.cuda.kv_pool import DevicePages
from ruprompt_fast.backends.cuda.staging import StepInputs
from ruprompt_fast.integration import AttentionCall, refuse_position_bias
from ruprompt_fast.ops import paged_decode, paged_prefill, prefix_decode, write_kv_token_major
from ruprompt_fast.ops.paged_prefill import HostLens


class Decoding:
    """One new token of every sequence; see :class:`~ruprompt_fast.integration.Attending`. May be captured.

    Args:
        pages: the KV cache.
        inputs: the step's.
        shares_prefixes: whether sequences that begin with the same pages read these together.
    """

    def __init__(self, pages: DevicePages, inputs: StepInputs, shares_prefixes: bool) -> None:
        self._pages = pages
        self._inputs = inputs
        self._shares_prefixes = shares_prefixes

    def attend(self, call: AttentionCall) -> Tensor:
        """Write the layer's keys and values, and attend."""
        refuse_position_bias(call)
        inputs, keys, values = self._inputs, self._pages.keys[call.layer], self._pages.values[call.layer]
        write_kv_token_major(call.key, call.value, keys, values, inputs.write_slots)
        tensors = call.query, keys, values, inputs.block_tables, inputs.context_lens
        scores: dict[str, Any] = {
            "scaling": call.scaling,
            "sliding_window": call.sliding_window,
            "softcap": call.softcap,
        }
        if self._shares_prefixes:
            return prefix_decode(*tensors, inputs.group_starts, inputs.prefix_lens, **scores)
        return paged_decode(*tensors, **scores)


class Prefilling:
    """Any number of tokens of every sequence; see :class:`~ruprompt_fast.integration.Attending`.

    Args:
        pages: the KV cache.
        inputs: the step's.
        host_lens: what the host knows of them.
    """

    def __init__(self, pages: DevicePages, inputs: StepInputs, host_lens: HostLens) -> None:
        self._pages = pages
        self._inputs = inputs
        self._host_lens = host_lens

    def attend(self, call: AttentionCall) -> Tensor:
        """Write the layer's keys and values, and attend."""
        refuse_position_bias(call)
        keys, values = self._pages.keys[call.layer], self._pages.values[call.layer]
        write_kv_token_major(call.key, call.value, keys, values, self._inputs.write_slots)
        return paged_prefill(
            call.query,
            keys,
            values,
            self._inputs.query_starts,
            self._inputs.context_lens,
            self._inputs.block_tables,
            scaling=call.scaling,
            sliding_window=call.sliding_window,
            softcap=call.softcap,
            host_lens=self._host_lens,
        )
