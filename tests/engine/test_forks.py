"""A process that is forked from one with a model: named errors there, and nothing lost here."""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

import pytest
import torch
from engine.engine_cases import (
    ENDLESS,
    INPUTS,
    NAMES,
    Fault,
    assert_nothing_left,
    hooked,
    serve,
    tokens_in_child,
)
from patience import HANG_SECONDS, exit_code_of, join_all, wait_until_set
from tiny_models import tiny_tokenizer
from torch.utils.data import DataLoader, Dataset

from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import DeadlockError

pytestmark = pytest.mark.every_backend

LOOKUP = {"prompt_lookup_num_tokens": 2}


def in_fork(work: Any) -> int:
    """The exit code of a forked child that runs ``work``: 0 if it returns."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    code = exit_code_of(child)
    assert code is not None, "the child hangs"
    return code


def uses_are_refused(model: FastPromptModel) -> None:
    uses = [
        lambda: model.generate("да", "short", max_new_tokens=2),
        lambda: model.generate("да", "short", max_new_tokens=2, **LOOKUP),
        lambda: next(model.stream("да", max_new_tokens=2)),
        lambda: next(model.stream("да", max_new_tokens=2, **LOOKUP)),
        lambda: model.classify("да", labels=["да", "нет"]),
        model.warm_up,
        model.stats,
        model.check_integrity,
        model.detach,
    ]
    for use in uses:
        with pytest.raises(DeadlockError, match="spawn"):
            use()
    assert model.count_tokens("да", "short") == [5]  # what needs no model still works


@pytest.mark.parametrize("settings", [{}, LOOKUP], ids=["engine", "fallback"])
def test_a_child_forked_while_a_step_runs(settings: dict[str, int]) -> None:
    model = serve()
    count = model.count_tokens("да", "short")[0]
    assert count == 5
    expected = model.generate(INPUTS, NAMES, max_new_tokens=6, **ENDLESS)
    in_step, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        in_step.set()
        wait_until_set(go_on)

    outputs: list[object] = []
    with hooked(model, Fault(wait, (2,))):
        thread = threading.Thread(
            target=lambda: outputs.append(model.generate(INPUTS, NAMES, max_new_tokens=6, **ENDLESS, **settings))
        )
        thread.start()
        wait_until_set(in_step)
        assert in_fork(lambda: uses_are_refused(model)) == 0
        go_on.set()
        join_all([thread])
    assert outputs == [expected]
    assert_nothing_left(model)


def test_a_child_forked_between_calls() -> None:
    model = serve()
    model.generate("да", max_new_tokens=2)
    assert in_fork(lambda: uses_are_refused(model)) == 0
    assert model.generate("да", max_new_tokens=2)


class Encoded(Dataset[Any]):
    """Texts that a worker turns into ids."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self._tokenizer("да" * (1 + index % 3), add_special_tokens=False)["input_ids"][:2])


def test_workers_of_a_data_loader_go_on_beside_a_model() -> None:
    model = serve()
    stop = threading.Event()

    def serve_others() -> None:
        while not stop.is_set():
            model.generate(INPUTS, NAMES, max_new_tokens=4)

    thread = threading.Thread(target=serve_others)
    thread.start()
    try:
        loader = DataLoader(Encoded(tiny_tokenizer()), batch_size=4, num_workers=2, timeout=HANG_SECONDS)
        assert [tuple(batch.shape) for batch in loader] == [(4, 2)] * 3
    finally:
        stop.set()
        join_all([thread])
    assert_nothing_left(model)


@pytest.mark.slow
@pytest.mark.cpu_backend("the process would not know of another one")
def test_a_spawned_process_loads_its_own() -> None:
    model = serve()
    expected = model.generate("да", "short", max_new_tokens=4, **ENDLESS)[0].token_ids
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=tokens_in_child, args=(queue,))
    process.start()
    assert queue.get(timeout=HANG_SECONDS) == expected
    process.join(HANG_SECONDS)
    assert process.exitcode == 0
