"""The kernels of decoding compile for every supported architecture: wide loads, no spills, little shared memory."""

from __future__ import annotations

from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from ops.compiled import (  # noqa: E402
    ARCHITECTURES,
    MOST_SHARED_BYTES,
    accesses,
    compile_for,
    shared_bytes,
    stack_bytes,
    uses_tensor_cores,
)
from triton.compiler import CompiledKernel  # noqa: E402

from ruprompt_fast.kernels import merge_parts  # noqa: E402
from ruprompt_fast.kernels import paged_decode as kernels  # noqa: E402
from ruprompt_fast.kernels.attention import Tile  # noqa: E402
from ruprompt_fast.ops.cuda.cards import Card  # noqa: E402

TYPES = {
    "query_ptr": "*{dtype}",
    "key_ptr": "*{dtype}",
    "value_ptr": "*{dtype}",
    "tables_ptr": "*i32",
    "lens_ptr": "*i32",
    "first_ptr": "*i32",
    "out_ptr": "*fp32",
    "lse_ptr": "*fp32",
    "scaling": "fp32",
    "softcap": "fp32",
    "window": "i32",
    "kv_heads": "i32",
    "group": "i32",
    "row_stride": "i32",
    "head_stride": "i32",
    "table_stride": "i32",
}
MERGE_TYPES = {"partials_ptr": "*fp32", "lse_ptr": "*fp32", "out_ptr": "*{dtype}", "parts": "i32"}
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Attention on cards without bfloat16 runs in the other two.
SHAPES = [
    *[(arch, "float16", 1, dim) for arch in ARCHITECTURES for dim in (64, 96, 128, 256)],
    *[(arch, "float16", group, dim) for arch in ARCHITECTURES for group, dim in ((4, 128), (8, 128), (8, 256))],
    *[(arch, "float32", group, dim) for arch in (70, 90) for group, dim in ((1, 96), (1, 256), (8, 64))],
    *[(arch, "bfloat16", group, 96) for arch in (80, 90) for group in (1, 8)],
]


def has_fast_dot(arch: int, dtype: str) -> bool:
    return Card("", divmod(arch, 10)).has_fast_dot and dtype != "float32"


def compile_decode(arch: int, dtype: str, group: int, dim: int, **options: bool) -> tuple[CompiledKernel, Tile]:
    tile = kernels.decode_tile(group, dim, dim, has_fast_dot(arch, dtype))
    constants = {
        **dict.fromkeys(("FIRST", "WINDOW", "SOFTCAP"), False),
        **dict.fromkeys(("HEAD_DIM", "VALUE_DIM"), dim),
        **dict.fromkeys(("BLOCK_D", "BLOCK_V"), triton.next_power_of_2(dim)),
        "PARTS": True,
        "DOT": tile.dot,
        "PAGE": 16,
        "SPLIT": kernels.SPLIT,
        "HEADS": tile.rows,
        "TOKENS": tile.keys,
        **options,
    }
    types = dict(TYPES)
    if group == 1:  # as the launcher passes a one
        del types["group"]
        constants["group"] = 1
    aligned = ("row_stride", "head_stride")
    compiled = compile_for(kernels.paged_decode_kernel, types, constants, dtype, arch, tile.warps, aligned, tile.stages)
    return compiled, tile


def check(compiled: CompiledKernel, tile: Tile, arch: int, dtype: str, dim: int, folder: Path) -> None:
    assert stack_bytes(compiled, folder) == 0
    assert shared_bytes(compiled) <= MOST_SHARED_BYTES
    assert uses_tensor_cores(compiled) == tile.dot
    assert not tile.dot or arch >= 80
    # Keys and values, all of them, in pieces of 128 bits.
    wide = "cp.async.cg.shared.global" if tile.dot else "ld.global.v4.b32"
    tile_bytes = 2 * tile.keys * triton.next_power_of_2(dim) * SIZES[dtype]
    assert compiled.asm["ptx"].count(wide) >= tile_bytes // (16 * 32 * tile.warps)


@pytest.mark.parametrize(("arch", "dtype", "group", "dim"), SHAPES)
def test_decode(arch: int, dtype: str, group: int, dim: int, tmp_path: Path) -> None:
    compiled, tile = compile_decode(arch, dtype, group, dim)
    check(compiled, tile, arch, dtype, dim, tmp_path)
    if not tile.dot:
        # Within the walk no thread waits for another one's numbers.
        walk = compiled.asm["ttgir"].split("scf.for")[1].split("scf.yield")[0]
        assert "convert_layout" not in walk


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("group", [1, 8])
def test_decode_with_every_option(group: int, arch: int, tmp_path: Path) -> None:
    compiled, tile = compile_decode(arch, "float16", group, 128, FIRST=True, WINDOW=True, SOFTCAP=True, PARTS=False)
    check(compiled, tile, arch, "float16", 128, tmp_path)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_merge(arch: int, tmp_path: Path) -> None:
    constants = {"DIM": 96, "BLOCK": 128, "PARTS": merge_parts.MOST_PARTS}
    compiled = compile_for(merge_parts.merge_kernel, MERGE_TYPES, constants, "float16", arch, merge_parts.WARPS)
    assert stack_bytes(compiled, tmp_path) == 0
    assert shared_bytes(compiled) <= MOST_SHARED_BYTES
    assert "ld.global.v4.b32" in accesses(compiled)


def test_tiles() -> None:
    # A group of eight is two programs' without tensor cores: at 128 dimensions one would take all registers.
    assert kernels.decode_tile(8, 128, 128, fast_dot=False) == Tile(rows=4, keys=16, warps=8)
    assert kernels.decode_tile(8, 128, 128, fast_dot=True).dot
    assert not kernels.decode_tile(4, 128, 128, fast_dot=True).dot
    assert kernels.decode_tile(1, 96, 96, fast_dot=True) == Tile(rows=1, keys=64, warps=8)
    assert kernels.decode_tile(1, 1, 1, fast_dot=False).keys == kernels.SPLIT
    assert kernels.decode_tile(64, 1000, 8, fast_dot=True) == Tile(rows=1, keys=16, warps=8)
