from collections.abc import Sequence

from typing_extensions import CapsuleType

def cpu_isa() -> str: ...
def pooled_tensor(shape: Sequence[int], dtype: str) -> CapsuleType: ...
def release_pool() -> int: ...
def splice(
    ids: int,
    id_width: int,
    count: int,
    tokens: int,
    token_rows: int,
    token_stride: int,
    prompts: int,
    prompt_rows: int,
    prompt_stride: int,
    first_prompt_id: int,
    row_bytes: int,
    out: int,
    threads: int,
) -> int: ...
def splice_prompt_grad(
    ids: int,
    id_width: int,
    count: int,
    grad: int,
    grad_stride: int,
    dtype: str,
    width: int,
    first_prompt_id: int,
    rows: int,
    out: int,
    threads: int,
) -> None: ...
def resolve_markers(
    ids: int,
    id_width: int,
    sequences: int,
    length: int,
    marker_ids: Sequence[int],
    starts: Sequence[int],
    rows: Sequence[int],
    out: int,
    out_width: int,
) -> tuple[int, int, int, int]: ...
