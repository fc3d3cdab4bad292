"""``model.threads`` on the command line: it sets what a run computes on, and is no part of what the run is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs.run_cases import read_jsonl, write_jsonl
from runs.tiny_run import save_model, tiny_config

from ruprompt_fast import bundled
from ruprompt_fast.errors import ConfigError
from ruprompt_fast.runs.answer_config import GenerateConfig, ServedModelConfig
from ruprompt_fast.runs.config import ModelConfig
from ruprompt_fast.runs.generate import generate
from ruprompt_fast.runs.start import load_frozen
from ruprompt_fast.runs.train import train


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_run_computes_on_so_many_threads(tmp_path: Path) -> None:
    for threads in (3, 1):
        load_frozen(ModelConfig(str(save_model(tmp_path / "model")), threads=threads))
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [0, -1, 10**6])
def test_other_numbers_are_refused(threads: int) -> None:
    with pytest.raises(ConfigError, match="threads"):
        load_frozen(ModelConfig(threads=threads))


def test_a_run_is_continued_on_another_number(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, save_model(tmp_path / "model"), optimization={"max_steps": 2})
    first = train(replace(config, model=replace(config.model, threads=1)))
    again = train(replace(config, model=replace(config.model, threads=2), resume=True))
    assert again.folder == first.folder


def test_answers_are_continued_on_another_number(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in ("Вечером", "В лесу", "Я помню")])
    config = GenerateConfig(
        str(bundled.PROMPTS["proverb"]),
        source,
        str(tmp_path / "out.jsonl"),
        model=ServedModelConfig(threads=1),
        generation={"max_new_tokens": 4},
    )
    assert generate(config).num_before == 0
    answers = read_jsonl(config.output)
    assert generate(replace(config, model=ServedModelConfig(threads=2))).num_before == 3
    assert read_jsonl(config.output) == answers
