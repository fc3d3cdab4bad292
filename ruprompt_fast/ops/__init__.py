"""The operators: the only callers of compiled code, each beside its PyTorch reference."""

from ruprompt_fast.ops.cpu.memory import release_memory
from ruprompt_fast.ops.cuda.id_errors import check_errors
from ruprompt_fast.ops.frozen_linear import frozen_linear, frozen_linear_reference
from ruprompt_fast.ops.kv_pages import (
    PAGE_SIZE,
    copy_pages,
    copy_pages_reference,
    kv_page_shapes,
    write_kv,
    write_kv_reference,
)
from ruprompt_fast.ops.markers import resolve_markers, resolve_markers_reference
from ruprompt_fast.ops.paged_attention import AttentionPlan, paged_attention, paged_attention_reference
from ruprompt_fast.ops.shared_prefix_attention import (
    NO_PREFIX,
    PackedSequences,
    shared_prefix_attention,
    shared_prefix_attention_reference,
)
from ruprompt_fast.ops.splice import splice, splice_reference

__all__ = [
    "NO_PREFIX",
    "PAGE_SIZE",
    "AttentionPlan",
    "PackedSequences",
    "check_errors",
    "copy_pages",
    "copy_pages_reference",
    "frozen_linear",
    "frozen_linear_reference",
    "kv_page_shapes",
    "paged_attention",
    "paged_attention_reference",
    "release_memory",
    "resolve_markers",
    "resolve_markers_reference",
    "shared_prefix_attention",
    "shared_prefix_attention_reference",
    "splice",
    "splice_reference",
    "write_kv",
    "write_kv_reference",
]
