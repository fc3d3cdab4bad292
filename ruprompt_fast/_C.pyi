from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import CapsuleType

INT8_PANEL_WIDTH: int

def cpu_isa() -> str: ...
def pooled_tensor(shape: Sequence[int], dtype: str) -> CapsuleType: ...
def release_pool() -> int: ...

class MemoryBlocks:
    def __init__(self, blocks: Sequence[tuple[int, int]]) -> None: ...
    def differ(self) -> bool: ...

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
def write_kv(
    key: int,
    key_token_stride: int,
    key_head_stride: int,
    head_dim: int,
    value: int,
    value_token_stride: int,
    value_head_stride: int,
    value_dim: int,
    key_pages: int,
    value_pages: int,
    num_pages: int,
    kv_heads: int,
    element_bytes: int,
    write_slots: int,
    tokens: int,
    threads: int,
) -> int: ...
def copy_pages(
    pages: int, num_pages: int, page_bytes: int, pairs: int, index_width: int, count: int, threads: int
) -> int: ...

class AttentionTables:
    def __init__(
        self,
        query_starts: NDArray[np.int32],
        context_lens: NDArray[np.int32],
        block_tables: NDArray[np.int32],
    ) -> None: ...
    @property
    def num_tokens(self) -> int: ...

def paged_attention(
    tables: AttentionTables,
    dtype: str,
    query: int,
    query_token_stride: int,
    query_head_stride: int,
    key_pages: int,
    value_pages: int,
    num_pages: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int,
    scaling: float,
    softcap: float,
    window: int,
    out: int,
    threads: int,
) -> None: ...

@final
class Plan:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_prefix_rows(self) -> int: ...
    @property
    def num_copies(self) -> int: ...
    @property
    def num_evictions(self) -> int: ...
    @property
    def num_loads(self) -> int: ...
    @property
    def num_preempted(self) -> int: ...
    @property
    def request_ids(self) -> NDArray[np.int64]: ...
    @property
    def sequence_indices(self) -> NDArray[np.int32]: ...
    @property
    def query_starts(self) -> NDArray[np.int32]: ...
    @property
    def context_lens(self) -> NDArray[np.int32]: ...
    @property
    def samples(self) -> NDArray[np.uint8]: ...
    @property
    def block_tables(self) -> NDArray[np.int32]: ...
    @property
    def write_slots(self) -> NDArray[np.int64]: ...
    @property
    def copies(self) -> NDArray[np.int32]: ...
    @property
    def evicted_ids(self) -> NDArray[np.int64]: ...
    @property
    def evicted_page_starts(self) -> NDArray[np.int32]: ...
    @property
    def evicted_pages(self) -> NDArray[np.int32]: ...
    @property
    def load_ids(self) -> NDArray[np.int64]: ...
    @property
    def preempted_ids(self) -> NDArray[np.int64]: ...

@final
class Scheduler:
    def __init__(
        self,
        num_pages: int,
        page_size: int,
        max_sequences: int,
        max_model_len: int,
        max_step_tokens: int,
        max_prefix_pages: int = -1,
    ) -> None: ...
    def add_prefix(self, prefix_id: int, length: int) -> None: ...
    def remove_prefix(self, prefix_id: int) -> None: ...
    def warm_prefix(self, prefix_id: int) -> None: ...
    def set_host_copy(self, prefix_id: int, exists: bool) -> None: ...
    def add(
        self,
        request_id: int,
        tenant: int,
        prefix_id: int,
        num_tokens: int,
        max_new_tokens: int,
        max_sequences: int,
        page_hashes: NDArray[np.uint64],
    ) -> None: ...
    def cancel(self, request_id: int) -> bool: ...
    def step(self, token_budget: int) -> Plan: ...
    def commit(self, finished_request_ids: Sequence[int], restarted_request_ids: Sequence[int] = ...) -> None: ...
    def abort(self) -> None: ...
    def fork(self, request_id: int, parents: Sequence[int]) -> None: ...
    def pages_of_prefix(self, prefix_id: int) -> NDArray[np.int32]: ...
    def pages_of(self, request_id: int, sequence_index: int) -> NDArray[np.int32]: ...
    def tenant_counter(self, tenant: int) -> int: ...
    def stats(self) -> dict[str, int]: ...
    def check(self) -> None: ...
    @property
    def in_step(self) -> bool: ...
    @property
    def num_unfinished(self) -> int: ...
    @property
    def num_warming(self) -> int: ...

def int8_linear(
    x: int,
    dtype: str,
    rows: int,
    row_stride: int,
    values: int,
    scales: int,
    in_features: int,
    out_features: int,
    bias: int,
    out: int,
    threads: int,
) -> None: ...
