"""Metrics against their definitions, written out."""

from __future__ import annotations

from collections import Counter
from functools import cache
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ruprompt_fast.errors import BatchMismatchError, EmptyInputError, TrainingDataError
from ruprompt_fast.runs.metrics import UnicodeWords, accuracy, text_metrics

TEXTS = st.text(alphabet="кот и дом. ", max_size=25)


def f_measure(common: int, found: int, wanted: int) -> float:
    return 2 * common / (found + wanted) if common else 0.0


def ngrams(words: list[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def rouge(text: str, reference: str, size: int) -> float:
    found, wanted = (ngrams(UnicodeWords().tokenize(item), size) for item in (text, reference))
    return f_measure((found & wanted).total(), found.total(), wanted.total())


@cache
def common_subsequence(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    if not left or not right:
        return 0
    if left[-1] == right[-1]:
        return common_subsequence(left[:-1], right[:-1]) + 1
    return max(common_subsequence(left[:-1], right), common_subsequence(left, right[:-1]))


def chrf(text: str, reference: str) -> float:
    """chrF2 of one segment: F2 of mean precision and recall over character 1- to 6-grams, of the orders both have."""
    precisions, recalls = [], []
    for size in range(1, 7):
        found, wanted = (ngrams(list("".join(item.split())), size) for item in (text, reference))
        if found and wanted:
            common = (found & wanted).total()
            precisions.append(common / found.total())
            recalls.append(common / wanted.total())
    if not any(precisions):
        return 0.0
    precision, recall = mean(precisions), mean(recalls)
    return 100 * 5 * precision * recall / (4 * precision + recall)


def test_russian_words_count() -> None:
    scores = text_metrics([" Кот СИДИТ на окне."], [["кот сидит на крыше"]])
    assert scores["rouge1"] == pytest.approx(3 / 4)
    assert scores["rouge2"] == pytest.approx(2 / 3)
    assert scores["rouge_l"] == pytest.approx(3 / 4)
    assert scores["exact_match"] == 0
    assert text_metrics(["мышь"], [["кот"]])["rouge1"] == 0
    assert UnicodeWords().tokenize("Ёж, 12-й\tden' — état_1") == ["ёж", "12", "й", "den", "état_1"]


@given(TEXTS, TEXTS)
@settings(max_examples=40)
def test_one_text(text: str, reference: str) -> None:
    scores = text_metrics([text], [[reference]])
    words, wanted = UnicodeWords().tokenize(text), UnicodeWords().tokenize(reference)
    longest = common_subsequence(tuple(words), tuple(wanted))
    assert scores["exact_match"] == (text.strip() == reference.strip())
    assert scores["rouge1"] == pytest.approx(rouge(text, reference, 1))
    assert scores["rouge2"] == pytest.approx(rouge(text, reference, 2))
    assert scores["rouge_l"] == pytest.approx(f_measure(longest, len(words), len(wanted)))
    assert scores["chrf"] == pytest.approx(chrf(text, reference), abs=1e-6)


def test_the_best_reference_counts() -> None:
    texts = ["кот спит", "дом стоит"]
    best = text_metrics(texts, [["кот спит"], ["дом"]])
    several = text_metrics(texts, [["мышь", "кот спит", "пёс"], ["дом"]])
    assert several == best
    assert best["exact_match"] == 0.5
    assert text_metrics(texts, [["кот спит", ""], ["мышь", "дом стоит "]])["exact_match"] == 1
    assert text_metrics(texts, [["кот спит", ""], ["мышь", "дом стоит "]])["chrf"] == 100


def test_accuracy() -> None:
    assert accuracy(["1", "0", "1", "1"], ["1", "1", "1", "0"]) == 0.5


def test_bad_input() -> None:
    with pytest.raises(BatchMismatchError, match="1 predictions for 2"):
        text_metrics(["а"], [["а"], ["б"]])
    with pytest.raises(EmptyInputError):
        text_metrics([], [])
    with pytest.raises(EmptyInputError):
        accuracy([], [])
    with pytest.raises(TrainingDataError, match="text 1"):
        text_metrics(["а", "б"], [["а"], []])
    with pytest.raises(TrainingDataError, match="text 0"):
        text_metrics(["а"], ["а"])
