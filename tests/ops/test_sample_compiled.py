"""The sampling kernel compiles for every supported architecture, reads wide, divides exactly, and does not spill."""

from __future__ import annotations

import re
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

from ruprompt_fast.kernels import sample as kernels  # noqa: E402
from ruprompt_fast.ops.sample import DEPTH_BAND, LOGPROB_BAND, RACE_BAND, mass_band  # noqa: E402

TYPES = {
    "logits_ptr": "*{dtype}",
    "settings_ptr": "*i32",
    "seen_ptr": "*i32",
    "last_ids_ptr": "*i32",
    "banned_ptr": "*u8",
    "scores_ptr": "*fp32",
    "ids_ptr": "*i32",
    "out_ptr": "*i32",
    "vocab_size": "i32",
    "readable": "i32",
    "logits_stride": "i32",
    "settings_stride": "i32",
    "seen_stride": "i32",
    "scores_stride": "i32",
}
BANDS = {"MASS_BAND": mass_band(50257), "RACE_BAND": RACE_BAND, "DEPTH_BAND": DEPTH_BAND, "LOGPROB_BAND": LOGPROB_BAND}
# The columns of the scores are whole blocks; a vocabulary of 50257 has logits with a stride of 50264.
ALIGNED = {"settings_stride", "scores_stride"}


def compile_sample(dtype: str, arch: int, multiple: int = 8, has_banned: bool = True) -> CompiledKernel:
    constants = {"HAS_BANNED": has_banned, "MULTIPLE": multiple, "BLOCK": kernels.BLOCK, **BANDS}
    return compile_for(kernels.sample_kernel, TYPES, constants, dtype, arch, kernels.WARPS, ALIGNED)


@pytest.mark.parametrize(
    ("dtype", "arch"), [("float16", arch) for arch in ARCHITECTURES] + [("float32", 75), ("bfloat16", 80)]
)
def test_rows_are_read_in_128_bit_pieces(dtype: str, arch: int, tmp_path: Path) -> None:
    compiled = compile_sample(dtype, arch)
    assert {"ld.global.v4.b32", "st.global.v4.b32"} <= accesses(compiled)
    assert not accesses(compiled) & {"ld.global.b16", "ld.global.b8", "st.global.b16"}
    assert stack_bytes(compiled, tmp_path) == 0
    assert shared_bytes(compiled) <= MOST_SHARED_BYTES
    assert not uses_tensor_cores(compiled)


@pytest.mark.parametrize("arch", [70, 90])
def test_rows_at_any_stride_compile(arch: int, tmp_path: Path) -> None:
    compiled = compile_sample("float16", arch, multiple=1, has_banned=False)
    assert stack_bytes(compiled, tmp_path) == 0
    assert "ld.global.b16" in accesses(compiled)


def test_temperature_and_penalty_divide_exactly() -> None:
    """For every score of a thread's eight one division each; what else divides is a rank."""
    ptx = compile_sample("float16", 70).asm["ptx"]
    assert len(re.findall(r"\bdiv\.rn\.f32", ptx)) == 16
    assert "div.approx" not in ptx
