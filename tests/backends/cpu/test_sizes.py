"""The sizes that steps are run in."""

from __future__ import annotations

from ruprompt_fast.backends.cpu.runner import padded_len


def test_few_sizes_none_too_large() -> None:
    sizes = {num_tokens: padded_len(num_tokens) for num_tokens in range(1, 513)}
    assert all(num_tokens <= size <= num_tokens * 9 / 8 for num_tokens, size in sizes.items())
    assert all(sizes[num_tokens] == num_tokens for num_tokens in range(1, 17))
    assert sizes[512] == 512
    assert len(set(sizes.values())) == 56


def test_a_size_stays_what_it_is() -> None:
    assert all(padded_len(padded_len(num_tokens)) == padded_len(num_tokens) for num_tokens in range(1, 5000))
