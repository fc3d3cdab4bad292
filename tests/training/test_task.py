"""What a task says, and what it refuses to say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ruprompt_fast.errors import FieldTypeError, LabelError, MissingFieldError, TaskError, TemplateError
from ruprompt_fast.prompts import TensorPromptProvider
from ruprompt_fast.training import Task, prompt_for

LABELS = {"v": " стихи", "p": " рассказ"}


def test_text2text() -> None:
    task = Task("<P*6>{text}<P*2>", target=" {summary}!", columns={"text": "article"})
    assert task.required_columns == ("article", "summary")
    row = {"article": "длинно", "summary": "коротко", "other": 1}
    assert task.fields_of(row) == {"text": "длинно"}
    assert task.target_of(row) == " коротко!"


def test_a_prompt_of_the_task() -> None:
    task = Task("<P*6>{text}<P*2>", target=" {summary}")
    provider = TensorPromptProvider(seed=1)
    prompt = prompt_for(task, provider)
    assert (prompt.format.template, prompt.format.fields) == (task.template, task.fields)
    assert prompt.provider is provider
    assert not prompt.is_initialized


def test_style() -> None:
    assert Task("<P*6>", "style").target_of({"text": "а"}) == "а"
    assert Task("<P*6>", "style").required_columns == ("text",)
    task = Task("<P*6>{title}", "style")
    assert (task.required_columns, task.target_of({"title": "а"})) == (("title",), "")


def test_classification() -> None:
    task = Task("<P>{text}<P>", "classification", label_field="kind", labels=LABELS, columns={"text": "body"})
    assert task.required_columns == ("body", "kind")
    assert task.label_words == [" стихи", " рассказ"]
    assert task.target_of({"body": "а", "kind": "p"}) == " рассказ"
    numbers = Task("<P>{text}", "classification", label_field="kind", labels={"0": " а", "1": " б"})
    assert numbers.class_index({"kind": 1}) == 1


def test_a_column_that_two_fields_read_is_named_once() -> None:
    assert Task("<P>{text}{text}", target="{text}").required_columns == ("text",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "rank"}, "objective must be one of"),
        ({"target": None}, "give target"),
        ({"target": "<P*3>{out}"}, "no virtual tokens"),
        ({"columns": {"txt": "a"}}, "the fields of template and target are"),
        ({"truncation_field": "out"}, "truncation_field must be one of"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"template": "<P*3>", "target": "same"}, "every row of the data would be the same"),
        ({"labels": LABELS}, "belong to a classification"),
        ({"objective": "classification", "label_field": "kind", "labels": LABELS}, "generates its label words"),
    ],
)
def test_contradictions(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Task(**{"template": "<P*3>{text}", "target": " {out}", **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"labels": LABELS},
        {"label_field": "kind"},
        {"label_field": "kind", "labels": {"v": " стихи"}},
        {"label_field": "kind", "labels": {"v": " стихи", "p": ""}},
        {"label_field": "kind", "labels": {"v": " стихи", "p": " стихи"}},
    ],
)
def test_labels_that_cannot_work(arguments: dict[str, Any]) -> None:
    with pytest.raises(LabelError):
        Task("<P>{text}", "classification", **arguments)


def test_templates_that_cannot_be_read() -> None:
    with pytest.raises(TemplateError):
        Task("<P*3>{text", target="{out}")
    with pytest.raises(TemplateError):
        Task("<P*3>{text}", target="{0}")


def test_classes_may_be_numbers() -> None:
    task = Task("<P>{text}", "classification", label_field="kind", labels={1: " стихи", 0: " проза"})  # type: ignore[dict-item]
    assert [task.class_index({"kind": kind}) for kind in (1, "1", 0)] == [0, 0, 1]


def test_rows_that_do_not_fit() -> None:
    task = Task("<P>{text}", target="{out}")
    with pytest.raises(MissingFieldError, match="'out'"):
        task.target_of({"text": "а", "out": None})
    with pytest.raises(FieldTypeError, match="'text' must hold strings; found int"):
        task.fields_of({"text": 1})
    task = Task("<P>{text}", "classification", label_field="kind", labels=LABELS)
    with pytest.raises(LabelError, match="'x'"):
        task.target_of({"text": "а", "kind": "x"})


def classes_of(*names: Any) -> Task:
    labels = {name: f" слово {index}" for index, name in enumerate(names)}
    return Task("<P>{text}", "classification", label_field="kind", labels=labels)


@pytest.mark.parametrize(
    ("classes", "found", "index"),
    [
        (("false", "true"), True, 1),
        (("false", "true"), np.bool_(False), 0),
        (("false", "true"), "True", 1),
        ((False, True), "true", 1),
        ((False, True), True, 1),
        (("0", "1"), 0.0, 0),
        (("0", "1"), np.float64(1.0), 1),
        (("0", "1"), np.int64(1), 1),
        (("0", "1"), "1.0", 1),
        ((0, 1), "1", 1),
        ((0.0, 1.0), 1, 1),
        (("0.5", "1.5"), 0.5, 0),
        (("-1", "1"), -1.0, 0),
        (("1", "1.0"), "1.0", 1),
        (("true", "True"), "True", 1),
        (("007", "8"), 7, 0),
        (("12345678901234567890", "1"), 12345678901234567890, 0),
    ],
)
def test_classes_are_found_as_tables_write_them(classes: tuple[Any, ...], found: Any, index: int) -> None:
    assert classes_of(*classes).class_index({"kind": found}) == index


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        (("0", "1"), True),
        (("false", "true"), 1),
        (("0", "1"), 0.5),
        (("0", "1"), float("nan")),
        (("a", "b"), "A"),
        (("0", "1"), "0 "),
        (("0", "1"), [0]),
        (("12345678901234567890", "1"), 12345678901234567891),
    ],
)
def test_values_that_are_no_class(classes: tuple[str, ...], found: Any) -> None:
    with pytest.raises(LabelError, match="labels has words for"):
        classes_of(*classes).class_index({"kind": found})


@pytest.mark.parametrize(("classes", "found"), [(("1", "1.0"), 1.0), (("true", "TRUE"), True), (("1.0", "01"), "1")])
def test_values_that_may_be_several_classes(classes: tuple[str, ...], found: Any) -> None:
    with pytest.raises(LabelError, match="may be any of the classes"):
        classes_of(*classes).class_index({"kind": found})


def test_a_class_may_have_several_words() -> None:
    task = Task("<P>{text}", "classification", label_field="k", labels={"v": [" да", " ага"], "p": " нет"})
    assert task.label_words == [" да", " нет"]
    assert task.verbalizers.words == (" да", " ага", " нет")
    assert task.target_of({"text": "а", "k": "v"}) == " да"
    for labels in ({"v": [" да", " да"], "p": " нет"}, {"v": [], "p": " нет"}, {"v": [" да", 1], "p": " нет"}):
        with pytest.raises(LabelError):
            Task("<P>{text}", "classification", label_field="k", labels=labels)  # type: ignore[arg-type]
