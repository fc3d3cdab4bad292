"""The Triton kernels compile for every supported architecture, with wide memory accesses and without spills.

No GPU is needed: Triton brings its own assembler.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, CompiledKernel  # noqa: E402

from ruprompt_fast.kernels import splice as kernels  # noqa: E402

ARCHITECTURES = [70, 75, 80, 90]
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TORCH_TO_TRITON = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

SPLICE_TYPES = {
    "ids_ptr": "*i64",
    "token_ptr": "*{dtype}",
    "prompt_ptr": "*{dtype}",
    "out_ptr": "*{dtype}",
    "error_ptr": "*i64",
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


def compile_for(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    dtype: str,
    arch: int,
    warps: int,
    aligned: bool,
) -> CompiledKernel:
    signature = {name: type_.format(dtype=TORCH_TO_TRITON[dtype]) for name, type_ in types.items()}
    signature |= dict.fromkeys(constants, "constexpr")
    divisible = [name for name, type_ in types.items() if type_.startswith("*") or (aligned and name in ALIGNED)]
    index = kernel.arg_names.index
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(index(name),): value for name, value in constants.items()},
        attrs={(index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})


def compile_splice(width: int, dtype: str, arch: int, aligned: bool = True) -> CompiledKernel:
    size = 4 if dtype == "float32" else 2
    block, warps = kernels.splice_block(width * size, size)
    return compile_for(kernels.splice_kernel, SPLICE_TYPES, {"BLOCK": block}, dtype, arch, warps, aligned)


def compile_grad(dtype: str, arch: int, aligned: bool = True) -> CompiledKernel:
    constants = {**kernels.GRAD_BLOCK, "ACCUMULATOR": triton.language.float32}
    types, warps = GRAD_TYPES, kernels.GRAD_WARPS
    return compile_for(kernels.splice_prompt_grad_kernel, types, constants, dtype, arch, warps, aligned)


def stack_bytes(compiled: CompiledKernel, folder: Path) -> int:
    """Bytes per thread of local memory, where the assembler spills to."""
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    report = subprocess.run([CUOBJDUMP, "--dump-resource-usage", path], capture_output=True, text=True, check=True)
    usage = dict(re.findall(r"(STACK|LOCAL):(\d+)", report.stdout))
    return int(usage["STACK"]) + int(usage["LOCAL"])


def row_accesses(compiled: CompiledKernel) -> set[str]:
    """The kinds of global loads and stores other than those of single 64-bit integers."""
    return set(re.findall(r"(?:ld|st)\.global\S*", compiled.asm["ptx"])) - {"ld.global.b64", "st.global.b64"}


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
def test_gradient_reads_aligned_rows_in_128_bit_pieces(dtype: str, arch: int, tmp_path: Path) -> None:
    compiled = compile_grad(dtype, arch)
    assert "ld.global.v4.b32" in row_accesses(compiled)
    assert not any(access.startswith("ld") for access in row_accesses(compiled) - {"ld.global.v4.b32"})
    assert stack_bytes(compiled, tmp_path) == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gradient_compiles_for_odd_rows(arch: int, tmp_path: Path) -> None:
    assert stack_bytes(compile_grad("float16", arch, aligned=False), tmp_path) == 0


def test_the_tool_that_counts_spills_is_there() -> None:
    assert shutil.which(CUOBJDUMP)
