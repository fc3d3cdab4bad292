"""The kernels that write and copy pages compile for every supported architecture, with accesses of 128 bits."""

from __future__ import annotations

from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from ops.compiled import ARCHITECTURES, accesses, compile_for, stack_bytes  # noqa: E402

from ruprompt_fast.kernels import copy_pages, write_kv  # noqa: E402

WRITE_TYPES = {
    **dict.fromkeys(("key_ptr", "value_ptr", "key_pages_ptr", "value_pages_ptr"), "*{dtype}"),
    "slots_ptr": "*i64",
    "num_slots": "i32",
    "kv_heads": "i32",
    **dict.fromkeys(("key_token_stride", "key_head_stride", "value_token_stride", "value_head_stride"), "i32"),
}
COPY_TYPES = {"pages_ptr": "*u8", "copies_ptr": "*i64", "num_pages": "i32", "page_bytes": "i32"}
WIDE = {"ld.global.v4.b32", "st.global.v4.b32"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "dim"), [("float16", 64), ("float16", 96), ("float32", 128), ("bfloat16", 256)])
def test_write_kv(dtype: str, dim: int, arch: int, tmp_path: Path) -> None:
    constants = {"PAGE": 16, "HEAD_DIM": dim, "VALUE_DIM": dim, "HEADS": write_kv.heads_per_program(16, dim, dim)}
    constants |= dict.fromkeys(("BLOCK_D", "BLOCK_V"), triton.next_power_of_2(dim))
    aligned = [name for name in WRITE_TYPES if name.endswith("stride")]
    compiled = compile_for(write_kv.write_kv_kernel, WRITE_TYPES, constants, dtype, arch, write_kv.WARPS, aligned)
    assert accesses(compiled) == WIDE | {"ld.global.b64"}  # and the slot
    assert stack_bytes(compiled, tmp_path) == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_copy_pages(arch: int, tmp_path: Path) -> None:
    constants = {"BLOCK": copy_pages.BLOCK_BYTES}
    compiled = compile_for(
        copy_pages.copy_pages_kernel, COPY_TYPES, constants, "float16", arch, copy_pages.WARPS, ("page_bytes",)
    )
    assert accesses(compiled) == WIDE | {"ld.global.b64"}  # and the pair
    assert stack_bytes(compiled, tmp_path) == 0
