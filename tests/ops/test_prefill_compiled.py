"""The prefill kernels compile for every architecture: no spills, wide loads, tensor cores where they are fast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from ops.compiled import (
    ARCHITECTURES,
    MOST_SHARED_BYTES,
    accesses,
    compile_for,
    shared_bytes,
    stack_bytes,
    uses_tensor_cores,
)

from ruprompt_fast.kernels import paged_prefill as kernels
from ruprompt_fast.kernels.attention import block_of, tile_for

TABLES = {"starts_ptr": "*i32", "lens_ptr": "*i32", "tables_ptr": "*i32"}
TYPES = {
    "query_ptr": "*{dtype}",
    "key_ptr": "*{dtype}",
    "value_ptr": "*{dtype}",
    **TABLES,
    "out_ptr": "*{dtype}",
    "scaling": "fp32",
    "softcap": "fp32",
    **dict.fromkeys(["window", "sequences", "num_tokens", "kv_heads", "group"], "i32"),
    **dict.fromkeys(["token_stride", "head_stride", "table_stride"], "i32"),
}
GATHER_TYPES = {
    "pages_ptr": "*{dtype}",
    "tables_ptr": "*i32",
    "starts_ptr": "*i32",
    "out_ptr": "*{dtype}",
    **dict.fromkeys(["kv_heads", "group", "table_stride"], "i32"),
}
WIDE = {"ld.global.v4.b32", "st.global.v4.b32"}
# Starts, lengths and the pages' numbers are read one at a time.
INDICES = {"ld.global.b32"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    ("dtype", "dim", "masked"),
    [
        ("float16", 32, True),
        ("float16", 64, True),
        ("float16", 96, True),
        ("float16", 256, True),
        ("float32", 64, True),
    ],
)
def test_kernel(dtype: str, dim: int, masked: bool, arch: int, tmp_path: Path) -> None:
    tile = tile_for(dim, dim, getattr(torch, dtype), arch >= 80)
    constants = {
        "HEADS": 3 if masked else 1,
        "WINDOW": masked,
        "SOFTCAP": masked,
        "DOT": tile.dot,
        "PAGE": 16,
        "HEAD_DIM": dim,
        "VALUE_DIM": dim,
        "BLOCK_D": block_of(dim),
        "BLOCK_V": block_of(dim),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
    }
    compiled = compile_for(
        kernels.paged_prefill_kernel,
        TYPES,
        constants,
        dtype,
        arch,
        tile.warps,
        ("token_stride", "head_stride"),
        tile.stages,
    )
    assert stack_bytes(compiled, tmp_path) == 0
    assert shared_bytes(compiled) <= MOST_SHARED_BYTES
    assert uses_tensor_cores(compiled) == tile.dot == (arch >= 80 and dtype != "float32")
    assert accesses(compiled) == WIDE | INDICES


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gathering(arch: int, tmp_path: Path) -> None:
    compiled = compile_for(
        kernels.gather_pages_kernel, GATHER_TYPES, {"PAGE": 16, "DIM": 96, "BLOCK": 128}, "float16", arch, 4
    )
    assert stack_bytes(compiled, tmp_path) == 0
    assert accesses(compiled) == WIDE | INDICES
