"""The kernels of frozen layers compile for every supported architecture, with wide loads and without spills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
from triton.compiler import CompiledKernel

from ruprompt_fast.kernels import add_norm, int8_linear

LINEAR_TYPES = {
    "x_ptr": "*{dtype}",
    "values_ptr": "*i8",
    "scales_ptr": "*fp32",
    "bias_ptr": "*{dtype}",
    "out_ptr": "*{dtype}",
    "num_rows": "i32",
    "in_features": "i32",
    "out_features": "i32",
    "x_stride": "i32",
    "values_stride": "i32",
}
NORM_TYPES = {
    "x_ptr": "*{dtype}",
    "residual_ptr": "*{dtype}",
    "weight_ptr": "*{dtype}",
    "bias_ptr": "*{dtype}",
    "sum_ptr": "*{dtype}",
    "out_ptr": "*{dtype}",
    "width": "i32",
    "x_stride": "i32",
    "residual_stride": "i32",
    "eps": "fp32",
}
WIDE = "ld.global.v4.b32"


def check(compiled: CompiledKernel, folder: Path) -> None:
    assert stack_bytes(compiled, folder) == 0
    assert shared_bytes(compiled) <= MOST_SHARED_BYTES


def compile_linear(
    kernel: Any, dtype: str, arch: int, warps: int, stages: int | None = None, **shape: int
) -> CompiledKernel:
    constants = {"HAS_BIAS": True, "ACTIVATION": "gelu_tanh", **shape}
    aligned = LINEAR_TYPES.keys() - {"num_rows"}
    return compile_for(kernel, LINEAR_TYPES, constants, dtype, arch, warps, aligned, stages)


@pytest.mark.parametrize(
    ("rows", "dtype", "arch"),
    [
        *[(4, "float16", arch) for arch in ARCHITECTURES],
        (1, "float16", 70),
        (2, "float16", 70),
        (4, "float32", 70),
        (1, "float16", 90),
        (2, "bfloat16", 90),
    ],
)
def test_few_rows(rows: int, dtype: str, arch: int, tmp_path: Path) -> None:
    shape = {"ROWS": rows, "CHANNELS": int8_linear.ROWS_CHANNELS, "BLOCK": int8_linear.ROWS_BLOCKS[rows]}
    compiled = compile_linear(int8_linear.int8_rows_kernel, dtype, arch, int8_linear.ROWS_WARPS, **shape)
    check(compiled, tmp_path)
    assert WIDE in accesses(compiled)
    assert not uses_tensor_cores(compiled)
    # What is exchanged between threads are the sums at the end: the loop has no barrier.
    loop = compiled.asm["ptx"].partition("bar.sync")[0]
    assert loop.count(WIDE) >= 1 + rows


@pytest.mark.parametrize(
    ("rows", "out_features", "dtype", "arch"),
    [
        (16, 1536, "float16", 80),
        (16, 6144, "float16", 90),
        (32, 1536, "bfloat16", 90),
        (64, 6144, "float16", 80),
        (64, 6144, "bfloat16", 90),
    ],
)
def test_a_tile_on_tensor_cores(rows: int, out_features: int, dtype: str, arch: int, tmp_path: Path) -> None:
    block, stages = int8_linear.TILE_STEPS[rows]
    shape = {"ROWS": rows, "CHANNELS": int8_linear.tile_channels(out_features), "BLOCK": block}
    kernel, warps = int8_linear.int8_tile_kernel, int8_linear.TILE_WARPS
    compiled = compile_linear(kernel, dtype, arch, warps, stages=stages, **shape)
    check(compiled, tmp_path)
    assert uses_tensor_cores(compiled)
    # Copies of 16 bytes each, straight to shared memory.
    assert "cp.async.cg.shared.global" in compiled.asm["ptx"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_plain_weight(arch: int, tmp_path: Path) -> None:
    types = {
        name: LINEAR_TYPES[name] for name in ("values_ptr", "scales_ptr", "out_ptr", "in_features", "values_stride")
    }
    constants, warps = {"BLOCK": int8_linear.PLAIN_BLOCK}, int8_linear.PLAIN_WARPS
    aligned = {"in_features", "values_stride"}
    compiled = compile_for(int8_linear.int8_plain_kernel, types, constants, "float16", arch, warps, aligned)
    check(compiled, tmp_path)
    assert {WIDE, "st.global.v4.b32"} <= accesses(compiled)


def compile_norm(width: int, dtype: str, arch: int, aligned: bool = True, **constants: Any) -> CompiledKernel:
    block, warps = add_norm.block_and_warps(width, 4 if dtype == "float32" else 2)
    constants = {"HAS_RESIDUAL": True, "HAS_BIAS": False, "BLOCK": block, **constants}
    names = {"width", "x_stride", "residual_stride"} if aligned else ()
    return compile_for(add_norm.add_norm_kernel, NORM_TYPES, constants, dtype, arch, warps, names)


@pytest.mark.parametrize(
    ("kind", "width", "dtype", "arch"),
    [
        *[("layer_norm", 1536, "float16", arch) for arch in ARCHITECTURES],
        ("rms_norm", 4096, "bfloat16", 90),
        ("rms_norm_plus_one", 2048, "float32", 70),
        ("rms_norm_plus_one", add_norm.MOST_COLUMNS, "float16", 70),
        ("layer_norm", add_norm.MOST_COLUMNS, "float32", 70),
    ],
)
def test_norms(kind: str, width: int, dtype: str, arch: int, tmp_path: Path) -> None:
    compiled = compile_norm(width, dtype, arch, KIND=kind, HAS_BIAS=kind == "layer_norm")
    check(compiled, tmp_path)
    assert accesses(compiled) == {WIDE, "st.global.v4.b32"}


@pytest.mark.parametrize("arch", [70, 90])
def test_norms_of_odd_rows(arch: int, tmp_path: Path) -> None:
    check(compile_norm(1537, "float16", arch, aligned=False, KIND="rms_norm", HAS_RESIDUAL=False), tmp_path)
