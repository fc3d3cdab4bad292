"""The operators, all in one style.

- ``ops/<name>.py`` says what an operator computes: a formula, the checks of its arguments, a reference in plain PyTorch
  (``<name>_reference``), and the implementation that a device takes. What ``torch.compile`` and autograd must know of
  is registered with torch, at some microseconds a call; what every layer of a step calls is dispatched in Python.
- ``ops/cpu/<name>.py`` and ``ops/cuda/<name>.py`` hold the implementations, ``<name>_cpu`` and ``<name>_cuda``, which
  take checked arguments. Nothing else calls compiled kernels, oneDNN or Triton.
- What is prepared once for many calls is a class of the implementation, which a backend makes, uses without the
  operator, and which therefore checks for itself: ``AttentionTables`` of a step with ``paged_attention_cpu``,
  ``PackedWeight`` and ``Int8Weight`` of a frozen layer.
- A layout that only kernels read, such as that of the pages of keys and values, is the implementation's.

An implementation never imports an operator that dispatches to it: what both need is in ``_checks`` and ``_errors``.
"""

from ruprompt_fast.ops.add_norm import add_norm, add_norm_reference, norm, norm_reference
from ruprompt_fast.ops.cpu.kv_pages import kv_page_shapes
from ruprompt_fast.ops.cpu.memory import release_memory
from ruprompt_fast.ops.cuda.id_errors import check_errors
from ruprompt_fast.ops.frozen_linear import frozen_linear, frozen_linear_reference
from ruprompt_fast.ops.kv_pages import copy_pages, copy_pages_reference, write_kv, write_kv_reference
from ruprompt_fast.ops.markers import resolve_markers, resolve_markers_reference
from ruprompt_fast.ops.page_copies import copy_pages_at_once, copy_pages_at_once_reference
from ruprompt_fast.ops.paged_attention import AttentionPlan, paged_attention, paged_attention_reference
from ruprompt_fast.ops.paged_decode import paged_decode, paged_decode_reference
from ruprompt_fast.ops.paged_prefill import HostLens, paged_prefill, paged_prefill_reference
from ruprompt_fast.ops.prefix_decode import prefix_decode, prefix_decode_reference
from ruprompt_fast.ops.sample import (
    NUM_BANNED,
    SETTINGS_WORDS,
    SettingsFlag,
    SettingsWord,
    Undecided,
    sample,
    sample_reference,
)
from ruprompt_fast.ops.shared_prefix_attention import (
    NO_PREFIX,
    PackedSequences,
    shared_prefix_attention,
    shared_prefix_attention_reference,
)
from ruprompt_fast.ops.splice import splice, splice_reference
from ruprompt_fast.ops.step_ids import step_ids, step_ids_reference
from ruprompt_fast.ops.token_major_pages import (
    token_major_page_shapes,
    write_kv_token_major,
    write_kv_token_major_reference,
)

__all__ = [
    "NO_PREFIX",
    "NUM_BANNED",
    "SETTINGS_WORDS",
    "AttentionPlan",
    "HostLens",
    "PackedSequences",
    "SettingsFlag",
    "SettingsWord",
    "Undecided",
    "add_norm",
    "add_norm_reference",
    "check_errors",
    "copy_pages",
    "copy_pages_at_once",
    "copy_pages_at_once_reference",
    "copy_pages_reference",
    "frozen_linear",
    "frozen_linear_reference",
    "kv_page_shapes",
    "norm",
    "norm_reference",
    "paged_attention",
    "paged_attention_reference",
    "paged_decode",
    "paged_decode_reference",
    "paged_prefill",
    "paged_prefill_reference",
    "prefix_decode",
    "prefix_decode_reference",
    "release_memory",
    "resolve_markers",
    "resolve_markers_reference",
    "sample",
    "sample_reference",
    "shared_prefix_attention",
    "shared_prefix_attention_reference",
    "splice",
    "splice_reference",
    "step_ids",
    "step_ids_reference",
    "token_major_page_shapes",
    "write_kv",
    "write_kv_reference",
    "write_kv_token_major",
    "write_kv_token_major_reference",
]
