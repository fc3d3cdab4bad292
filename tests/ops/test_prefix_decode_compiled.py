"""Decoding after shared prefixes compiles for every architecture, as the prefill kernel does."""

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

from ruprompt_fast.kernels import prefix_decode as kernels
from ruprompt_fast.kernels.attention import block_of, tile_for
from ruprompt_fast.kernels.paged_decode import SPLIT

TYPES = {
    **dict.fromkeys(["query_ptr", "key_ptr", "value_ptr"], "*{dtype}"),
    **dict.fromkeys(["tables_ptr", "lens_ptr", "starts_ptr", "prefix_lens_ptr"], "*i32"),
    **dict.fromkeys(["out_ptr", "lse_ptr"], "*fp32"),
    **dict.fromkeys(["scaling", "softcap"], "fp32"),
    **dict.fromkeys(["window", "groups", "num_rows", "kv_heads", "group"], "i32"),
    **dict.fromkeys(["row_stride", "head_stride", "table_stride"], "i32"),
}
# Numbers of rows and pages are read one at a time, and a log-sum-exp is written for each row.
SINGLE = {"ld.global.b32", "st.global.b32"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "dim", "masked"), [("bfloat16", 256, True), ("float16", 96, False)])
def test_kernel(dtype: str, dim: int, masked: bool, arch: int, tmp_path: Path) -> None:
    tile = tile_for(dim, dim, getattr(torch, dtype), arch >= 80)
    constants = {
        "SPLIT": SPLIT,
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
        kernels.prefix_decode_kernel,
        TYPES,
        constants,
        dtype,
        arch,
        tile.warps,
        ("row_stride", "head_stride"),
        tile.stages,
    )
    assert stack_bytes(compiled, tmp_path) == 0
    assert shared_bytes(compiled) <= MOST_SHARED_BYTES
    assert uses_tensor_cores(compiled) == tile.dot == (arch >= 80 and dtype != "float32")
    assert accesses(compiled) == {"ld.global.v4.b32", "st.global.v4.b32"} | SINGLE
