from __future__ import annotations

import pytest
import torch
from ops.compiled import ARCHITECTURES, compile_for, stack_bytes

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops import step_ids


def test_negative_ids_name_rows_of_the_step_before() -> None:
    ids, positions, carried = (
        torch.tensor(part, dtype=torch.int32) for part in ([7, -1, 0, -3], [3, 4, 0, 9], [50, 51, 52])
    )
    found_ids, found_positions = step_ids(ids, positions, carried)
    assert found_ids.tolist() == [7, 50, 0, 52]
    assert found_positions.tolist() == [3, 4, 0, 9]
    assert found_ids.dtype is found_positions.dtype is torch.int64


def test_wrong_arguments_are_refused() -> None:
    ids = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(TensorArgumentError, match="must be int32"):
        step_ids(ids.long(), ids, ids)
    with pytest.raises(TensorArgumentError, match="found 2 for 3"):
        step_ids(ids, ids[:2], ids)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiled(arch: int, tmp_path) -> None:
    pytest.importorskip("triton")
    from ruprompt_fast.kernels import step_ids as kernels

    types = {
        "ids_ptr": "*i32",
        "positions_ptr": "*i32",
        "carried_ptr": "*i32",
        "out_ids_ptr": "*i64",
        "out_positions_ptr": "*i64",
        "count": "i32",
    }
    compiled = compile_for(kernels.step_ids_kernel, types, {"BLOCK": kernels.BLOCK}, "float32", arch, 4)
    assert stack_bytes(compiled, tmp_path) == 0
