"""The operators: the only callers of compiled code, each beside its PyTorch reference."""

from ruprompt_fast.ops._id_errors import check_errors
from ruprompt_fast.ops._memory import release_memory
from ruprompt_fast.ops.markers import resolve_markers, resolve_markers_reference
from ruprompt_fast.ops.splice import splice, splice_reference

__all__ = [
    "check_errors",
    "release_memory",
    "resolve_markers",
    "resolve_markers_reference",
    "splice",
    "splice_reference",
]
