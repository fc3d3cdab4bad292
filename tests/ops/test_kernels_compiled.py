"""The Triton kernels compile for every supported architecture, with wide memory accesses and without spills."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from ops.compiled import ARCHITECTURES, CUOBJDUMP, TORCH_TO_TRITON, accesses, compile_for, stack_bytes  # noqa: E402
from triton.compiler import CompiledKernel  # noqa: E402

from ruprompt_fast.kernels import splice as kernels  # noqa: E402

SPLICE_TYPES = {
    "ids_ptr": "*i64",
    "token_ptr": "*{dtype}",
    "prompt_ptr": "*{dtype}",
    "out_ptr": "*{dtype}",
    "error_ptr": "*i64",
    "num_ids": "i32",
    "width": "i32",
    "token_stride": "i32",
    "prompt_stride": "i32",
    "token_limit": "i32",
    "prompt_rows": "i32",
    "first_prompt_id": "i32",
}
GRAD_TYPES = {
    "order_ptr": "*i64",
    "starts_ptr": "*i64",
    "grad_ptr": "*{dtype}",
    "out_ptr": "*{dtype}",
    "width": "i32",
    "grad_stride": "i32",
}
# What the launcher finds divisible by 16 when tables are allocated by torch and the width is.
ALIGNED = {"width", "token_stride", "prompt_stride", "grad_stride"}


def compile_splice(width: int, dtype: str, arch: int, aligned: bool = True) -> CompiledKernel:
    size = 4 if dtype == "float32" else 2
    constants = {"ALIGNMENT": 16 if aligned else size, **kernels.splice_tile(width, size)}
    warps = kernels.TILE_WARPS
    return compile_for(kernels.splice_kernel, SPLICE_TYPES, constants, dtype, arch, warps, ALIGNED if aligned else ())


def compile_grad(tile: dict[str, int], dtype: str, arch: int, aligned: bool = True) -> CompiledKernel:
    constants = {**tile, "ACCUMULATOR": triton.language.float32}
    types, warps = GRAD_TYPES, kernels.GRAD_WARPS
    return compile_for(
        kernels.splice_prompt_grad_kernel, types, constants, dtype, arch, warps, ALIGNED if aligned else ()
    )


def row_accesses(compiled: CompiledKernel) -> set[str]:
    """The kinds of global loads and stores other than those of single 64-bit integers."""
    return accesses(compiled) - {"ld.global.b64", "st.global.b64"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("width", [768, 1536, 4096, 8192])
def test_splice_moves_aligned_half_rows_in_128_bit_pieces(width: int, arch: int, tmp_path: Path) -> None:
    compiled = compile_splice(width, "float16", arch)
    assert row_accesses(compiled) == {"ld.global.v4.b32", "st.global.v4.b32"}
    assert stack_bytes(compiled, tmp_path) == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TORCH_TO_TRITON)
@pytest.mark.parametrize("width", [1, 96, 1537])
def test_splice_compiles_for_odd_rows(width: int, dtype: str, arch: int, tmp_path: Path) -> None:
    assert stack_bytes(compile_splice(width, dtype, arch, aligned=False), tmp_path) == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TORCH_TO_TRITON)
@pytest.mark.parametrize("tile", [kernels.GRAD_LONG, kernels.GRAD_SHORT], ids=["long", "short"])
def test_gradient_reads_aligned_rows_in_128_bit_pieces(
    tile: dict[str, int], dtype: str, arch: int, tmp_path: Path
) -> None:
    compiled = compile_grad(tile, dtype, arch)
    assert "ld.global.v4.b32" in row_accesses(compiled)
    assert not any(access.startswith("ld") for access in row_accesses(compiled) - {"ld.global.v4.b32"})
    assert stack_bytes(compiled, tmp_path) == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tile", [kernels.GRAD_LONG, kernels.GRAD_SHORT], ids=["long", "short"])
def test_gradient_compiles_for_odd_rows(tile: dict[str, int], arch: int, tmp_path: Path) -> None:
    assert stack_bytes(compile_grad(tile, "float16", arch, aligned=False), tmp_path) == 0


def test_the_tool_that_counts_spills_is_there() -> None:
    assert shutil.which(CUOBJDUMP)
