"""Compiles Triton kernels for cards that are not there, and reads what became of them.

No GPU is needed: Triton brings its own assembler.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

ARCHITECTURES = [int(arch) for arch in os.environ.get("COMPILE_FOR", "70 75 80 90").split()]
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TORCH_TO_TRITON = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
MOST_SHARED_BYTES = 48 << 10


def compile_for(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    dtype: str,
    arch: int,
    warps: int,
    aligned: Collection[str] = (),
    stages: int | None = None,
) -> CompiledKernel:
    """A kernel for an architecture.

    Args:
        kernel: the kernel.
        types: Triton's types of its arguments; ``{dtype}`` is replaced.
        constants: the values of its other arguments.
        dtype: torch's name of the dtype.
        arch: 70 for sm_70.
        warps: how many.
        aligned: integers that are divisible by 16, as the launcher finds them; so are the pointers that it looks at.
        stages: of the software pipeline, where the launcher says so.
    """
    signature = {name: type_.format(dtype=TORCH_TO_TRITON[dtype]) for name, type_ in types.items()}
    signature |= dict.fromkeys(constants, "constexpr")
    looked_at = [
        name for name, type_ in types.items() if type_.startswith("*") and name not in kernel.do_not_specialize
    ]
    divisible = [*looked_at, *(name for name in types if name in aligned)]
    index = kernel.arg_names.index
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(index(name),): value for name, value in constants.items()},
        attrs={(index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    options = {"num_warps": warps} if stages is None else {"num_warps": warps, "num_stages": stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def stack_bytes(compiled: CompiledKernel, folder: Path) -> int:
    """Bytes per thread of local memory, where the assembler spills to."""
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    report = subprocess.run([CUOBJDUMP, "--dump-resource-usage", path], capture_output=True, text=True, check=True)
    usage = dict(re.findall(r"(STACK|LOCAL):(\d+)", report.stdout))
    return int(usage["STACK"]) + int(usage["LOCAL"])


def accesses(compiled: CompiledKernel) -> set[str]:
    """The kinds of loads from and stores to global memory."""
    return set(re.findall(r"(?:ld|st)\.global\S*", compiled.asm["ptx"]))


def shared_bytes(compiled: CompiledKernel) -> int:
    """Bytes of shared memory of a program."""
    return int(compiled.metadata.shared)


def uses_tensor_cores(compiled: CompiledKernel) -> bool:
    """Whether there is a matrix instruction in it."""
    return "mma" in compiled.asm["ptx"]
