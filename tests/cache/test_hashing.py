"""Content keys: equal for equal content, different for everything that changes keys and values."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model, tiny_tokenizer

from ruprompt_fast import Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.cache import hashing, model_identity, page_hashes, prefix_key

IDENTITY = b"model"
ROWS = torch.arange(12, dtype=torch.float32).view(3, 4)


def key(
    identity: bytes = IDENTITY,
    dtype: torch.dtype = torch.float32,
    rows: torch.Tensor | None = ROWS,
    ids: Sequence[int] = (5, 100, 101, 102),
    first_row_id: int = 100,
    is_deep: bool = False,
) -> bytes:
    return prefix_key(identity, dtype, rows, ids, first_row_id, is_deep=is_deep)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 32, 33])
def test_one_hash_for_every_full_page(length: int) -> None:
    hashes = page_hashes(b"seed", list(range(length)), 16)
    assert hashes.dtype == np.uint64
    assert hashes.shape == (length // 16,)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"ab"]), st.lists(st.integers(0, 1), max_size=9)), max_size=30))
def test_page_hashes_are_equal_exactly_for_equal_beginnings(sequences: list[tuple[bytes, list[int]]]) -> None:
    hash_of: dict[tuple[bytes, tuple[int, ...]], int] = {}
    for seed, ids in sequences:
        for page, page_hash in enumerate(page_hashes(seed, ids, 2).tolist(), 1):
            assert hash_of.setdefault((seed, tuple(ids[: 2 * page])), page_hash) == page_hash
    assert len(set(hash_of.values())) == len(hash_of)


def test_page_hashes_cannot_be_known_outside_the_process() -> None:
    spec = importlib.util.spec_from_file_location("hashing_again", hashing.__file__)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert (again.page_hashes(b"", range(32), 16) != page_hashes(b"", range(32), 16)).all()


def test_the_same_content_has_one_key() -> None:
    transposed = ROWS.t().contiguous().t()
    assert not transposed.is_contiguous()
    assert key() == key(rows=transposed) == key(ids=np.array([5, 100, 101, 102]))
    assert key() == key(ids=[5, 7000, 7001, 7002], first_row_id=7000)


def test_everything_that_changes_keys_and_values_changes_the_key() -> None:
    changed = ROWS.clone()
    changed[2, 3] += 1e-6
    keys = [
        key(),
        key(identity=b"other"),
        key(dtype=torch.bfloat16),
        key(rows=None),
        key(is_deep=True),
        key(rows=changed),
        key(rows=ROWS.to(torch.bfloat16)),
        key(rows=ROWS.to(torch.float16)),
        key(rows=ROWS[:2]),
        key(rows=ROWS.view(4, 3)),
        key(ids=[5, 100, 101]),
        key(ids=[5, 100, 102, 101]),
        key(ids=[5, 5, 100, 101, 102]),
        key(ids=[6, 100, 101, 102]),
        key(ids=[5, 99, 101, 102]),
        key(ids=[]),
    ]
    assert all(len(value) == 32 for value in keys)
    assert len(set(keys)) == len(keys)


def test_a_prompt_with_nothing_before_its_field_still_has_a_seed_of_its_own() -> None:
    seeds = [key(ids=()), key(ids=(), rows=ROWS + 1), IDENTITY]
    pages = {page_hashes(seed, list(range(16)), 16).item() for seed in seeds}
    assert len(pages) == len(seeds)


@pytest.mark.parametrize("family", ["gpt2", "llama_tied", "gemma3", "t5"])
def test_models_are_told_apart_by_weights_and_dtype(family: str) -> None:
    identity = model_identity(tiny_model(family))
    assert identity == model_identity(tiny_model(family))
    assert len(identity) == 32
    others = {model_identity(tiny_model(family, seed=1)), model_identity(tiny_model(family).to(torch.bfloat16))}
    assert len({identity, *others}) == 3


def test_every_weight_and_the_configuration_count() -> None:
    model = tiny_model("gpt2")
    identities = {model_identity(model)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[-1] += 1
            identities.add(model_identity(model))
    model.config.layer_norm_epsilon = 1e-3
    identities.add(model_identity(model))
    assert len(identities) == len(list(model.parameters())) + 2


def test_where_a_model_lies_and_what_is_attached_to_it_do_not_count() -> None:
    model = tiny_model("gpt2")
    identity = model_identity(model)
    model.config._name_or_path = "elsewhere"
    assert model_identity(model) == identity
    prompt = Prompt(PromptFormat("<P*3>{text}"), TensorPromptProvider())
    prompt.patch(model, tiny_tokenizer())
    assert model_identity(model) == identity
