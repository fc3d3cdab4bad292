"""Writing keys and values into token-major pages: the reference against the formula; checks."""

from __future__ import annotations

import pytest
import torch
from ops.decode_cases import DTYPES

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops import token_major_page_shapes, write_kv_token_major, write_kv_token_major_reference


def test_shapes_put_the_tokens_of_a_head_one_after_another() -> None:
    assert token_major_page_shapes(9, 3, 64, 80) == ((9, 3, 16, 64), (9, 3, 16, 80))


@pytest.mark.parametrize("function", [write_kv_token_major, write_kv_token_major_reference])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slots_in_any_order(dtype: torch.dtype, index: torch.dtype, function) -> None:
    key_pages, value_pages = (torch.zeros(shape, dtype=dtype) for shape in token_major_page_shapes(3, 2, 4, 6))
    key, value = torch.randn(7, 2, 4).to(dtype), torch.randn(7, 2, 6).to(dtype)
    expected_keys, expected_values = key_pages.clone(), value_pages.clone()
    slots = torch.tensor([47, -1, 0, 16, 48, 15, -(2**31)], dtype=index)
    for token, slot in enumerate(slots.tolist()):
        if 0 <= slot < 48:
            expected_keys[slot // 16, :, slot % 16] = key[token]
            expected_values[slot // 16, :, slot % 16] = value[token]
    function(key, value, key_pages, value_pages, slots)
    assert torch.equal(key_pages, expected_keys)
    assert torch.equal(value_pages, expected_values)


@pytest.mark.parametrize("function", [write_kv_token_major, write_kv_token_major_reference])
def test_arguments_that_do_not_fit(function) -> None:
    keys, values = (torch.zeros(shape) for shape in token_major_page_shapes(3, 2, 4, 6))
    key, value, slots = torch.zeros(5, 2, 4), torch.zeros(5, 2, 6), torch.arange(5)
    with pytest.raises(TensorArgumentError, match=r"\[5, 2, 4\] and \[5, 2, 6\] .* not \[5, 1, 4\]"):
        function(key[:, :1], value, keys, values, slots)
    with pytest.raises(TensorArgumentError, match="float32 as the pages, not torch.float16"):
        function(key.half(), value, keys, values, slots)
    with pytest.raises(TensorArgumentError, match="int32 or int64 and contiguous"):
        function(key, value, keys, values, slots.float())
    with pytest.raises(TensorArgumentError, match="last dimension"):
        function(key.transpose(1, 2).contiguous().transpose(1, 2), value, keys, values, slots)
    with pytest.raises(TensorArgumentError, match="on cpu as the pages, not on meta"):
        function(key.to("meta"), value, keys, values, slots)
    with pytest.raises(TensorArgumentError, match="see token_major_page_shapes"):
        function(key, value, keys.reshape(6, 2, 8, 4), values.reshape(6, 2, 8, 6), slots)
