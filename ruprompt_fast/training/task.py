"""What a prompt is trained to do: one description for training, evaluation and the columns of the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ruprompt_fast.errors import FieldTypeError, LabelError, MissingFieldError, TaskError, shown
from ruprompt_fast.prompts.format.layout import Field, Layout, Text, field_names
from ruprompt_fast.prompts.format.template import parse_template
from ruprompt_fast.prompts.format.texts import is_text
from ruprompt_fast.prompts.format.verbalizers import Verbalizers, read_labels
from ruprompt_fast.training.classes import find_class

Objective = Literal["text2text", "style", "classification"]

_STYLE_TARGET = "{text}"


@dataclass(frozen=True)
class Task:
    """One task: the prompt's template, what is to come out, and the columns that hold it.

    The template is said here and nowhere else: :func:`~ruprompt_fast.training.prompt_for` makes the prompt that is
    trained for the task, and the task of a saved prompt is made with ``prompt.format.template``.

        >>> Task("<P*60>{text}<P*20>", target=" {summary}", columns={"text": "article"})
        >>> Task("<P*20>", "style")
        >>> Task("<P*10>{text}<P*10>", "classification", label_field="kind", labels={"v": " verse", "p": " prose"})

    Args:
        template: the prompt's template; its fields are columns of the data.
        objective: ``text2text`` trains the target's tokens and the end of the text; ``style`` every token from
            the first field on (Lester et al. 2021 call it language modelling); ``classification`` the choice between
            label words by the softmax of their log-probabilities.
        target: the template of the text to generate, whose fields are columns too. ``style`` may leave it out: a
            template without fields then has the target ``{text}``, one with fields has its fields alone.
        label_field: the column of the class.
        labels: the label word of every class, as it is to be generated, with the space before it; or several words,
            whose probabilities add up to the class's. The first of them is the class's answer.
        columns: columns of the data by field, for fields that are named differently there.
        max_tokens: tokens of an example at most, rows included; None for the model's context.
        truncation_field: the field of the template whose end is cut off where an example is longer.

    Raises:
        TaskError: the arguments contradict each other.
        TemplateError: a template cannot be read.
        LabelError: fewer than two labels, or equal ones.
    """

    template: str
    objective: Objective = "text2text"
    target: str | None = None
    label_field: str | None = None
    labels: Mapping[str, str | list[str]] | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = None
    truncation_field: str | None = None

    def __post_init__(self) -> None:
        self._check_types()
        if self.objective not in get_args(Objective):
            raise TaskError(
                f"objective must be one of {', '.join(get_args(Objective))}; found {shown(self.objective)}."
            )
        self._check_target()
        self._check_labels()
        known = [*self.fields, *self.target_fields]
        unknown = [name for name in self.columns if name not in known]
        if unknown:
            raise TaskError(f"columns renames {shown(unknown)}; the fields of template and target are {known}.")
        if self.truncation_field is not None and self.truncation_field not in self.fields:
            raise TaskError(
                f"truncation_field must be one of {list(self.fields)}; found {shown(self.truncation_field)}."
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise TaskError(f"max_tokens must be at least 1; found {shown(self.max_tokens)}.")

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the template."""
        return field_names(parse_template(self.template))

    @property
    def target_template(self) -> str | None:
        """The template of the text after the prompt's; None if there is none."""
        if self.objective == "style" and self.target is None and not self.fields:
            return _STYLE_TARGET
        return self.target

    @property
    def target_fields(self) -> tuple[str, ...]:
        """The fields of the target."""
        return () if self.target_template is None else field_names(_text_parts(self.target_template))

    @property
    def target_texts(self) -> list[str]:
        """The literal texts of the target."""
        return [part.text for part in _text_parts(self.target_template or "") if isinstance(part, Text)]

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The columns that every row needs, each once."""
        names = [self.columns.get(name, name) for name in (*self.fields, *self.target_fields)]
        return tuple(dict.fromkeys([*names, *([self.label_field] if self.label_field is not None else [])]))

    @property
    def label_words(self) -> list[str]:
        """The first label word of every class, in the order of the classes."""
        verbalizers = self.verbalizers
        return [verbalizers.words[verbalizers.class_of.index(index)] for index in range(len(verbalizers.classes))]

    @property
    def verbalizers(self) -> Verbalizers:
        """The classes and all of their label words."""
        return read_labels(self.labels or {})

    def fields_of(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The values of the template's fields.

        Raises:
            MissingFieldError: the row lacks a column.
            FieldTypeError: a value is not a string.
        """
        return {name: self._text(row, self.columns.get(name, name)) for name in self.fields}

    def target_of(self, row: Mapping[str, Any]) -> str:
        """The text to generate; for a classification the label word of the row's class.

        Raises:
            MissingFieldError: the row lacks a column.
            FieldTypeError: a value is not a string.
            LabelError: the row's class has no label word.
        """
        if self.objective == "classification":
            return self.label_words[self.class_index(row)]
        if self.target_template is None:
            return ""
        values = {name: self._text(row, self.columns.get(name, name)) for name in self.target_fields}
        return Layout(_text_parts(self.target_template)).render(values, ())[0]

    def class_index(self, row: Mapping[str, Any]) -> int:
        """The position of the row's class among :attr:`labels`.

        Numbers and booleans are found however they are written, see :func:`~ruprompt_fast.training.classes.find_class`.

        Raises:
            MissingFieldError: the row lacks the column.
            LabelError: the class has no label word, or it may be several ones.
        """
        found = self._value(row, str(self.label_field))
        indices = self._classes_of(found)
        if len(indices) == 1:
            return indices[0]
        classes = [str(key) for key in self.labels or {}]
        if indices:
            raise LabelError(
                f"the column {self.label_field!r} holds {shown(found)}, which may be any of the classes "
                f"{shown([classes[index] for index in indices])}. Write it as one of them, as a string."
            )
        raise LabelError(
            f"the column {self.label_field!r} holds {shown(found)}; labels has words for {shown(classes, 400)}."
        )

    def unknown_classes(self, rows: Iterable[Mapping[str, Any]]) -> list[Any]:
        """What rows hold in place of a class, each once and sorted; nothing unless the task is a classification."""
        if self.label_field is None:
            return []
        found = dict.fromkeys(row[self.label_field] for row in rows)
        return sorted(value for value in found if not self._classes_of(value))

    def _classes_of(self, value: Any) -> list[int]:
        return find_class(value, list(self.labels or {}))

    def _value(self, row: Mapping[str, Any], column: str) -> Any:
        value = row.get(column) if isinstance(row, Mapping) else None
        if value is None:
            found = list(row) if isinstance(row, Mapping) else row
            raise MissingFieldError(f"the column {column!r} has no value; the row has {shown(found)}.")
        return value

    def _text(self, row: Mapping[str, Any], column: str) -> str:
        value = self._value(row, column)
        if not isinstance(value, str):
            raise FieldTypeError(
                f"the column {column!r} must hold strings; found {type(value).__name__}. Convert it with str() first."
            )
        if not is_text(value):
            raise FieldTypeError(
                f"the column {column!r} must hold text; found half a character, a lone surrogate, in {shown(value)}."
            )
        return value

    def _check_types(self) -> None:
        """Check what the other checks take for granted."""
        for name in ("template", "target", "label_field", "truncation_field"):
            value = getattr(self, name)
            if value is not None or name == "template":
                _check_text(name, value, TaskError)
        limit = self.max_tokens
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise TaskError(f"max_tokens must be a whole number, or None; found {shown(limit)}.")
        if not isinstance(self.columns, Mapping):
            raise TaskError(f"columns must map fields to columns; found {shown(self.columns)}.")
        for column in self.columns.values():
            _check_text("a column", column, TaskError)
        if self.labels is not None and not isinstance(self.labels, Mapping):
            raise LabelError(f"labels must map every class to its word; found {shown(self.labels)}.")
        verbalizers = self.verbalizers
        for word in verbalizers.words:
            _check_text("a label word", word, LabelError)
        for key in verbalizers.classes:
            if isinstance(key, str):
                _check_text("a class", key, LabelError)

    def _check_target(self) -> None:
        if self.objective == "classification":
            if self.target is not None:
                raise TaskError("a classification generates its label words; give labels, and no target.")
            return
        if self.objective == "text2text" and self.target is None:
            raise TaskError("text2text needs the template of the text to generate; give target, such as ' {summary}'.")
        if not self.fields and not self.target_fields:
            raise TaskError("neither template nor target has a field, so every row of the data would be the same.")

    def _check_labels(self) -> None:
        if self.objective != "classification":
            if self.labels is not None or self.label_field is not None:
                raise TaskError(
                    f"labels and label_field belong to a classification; the objective is {self.objective}."
                )
            return
        classes, words = self.verbalizers.classes, self.verbalizers.words
        if self.label_field is None or len(classes) < 2 or not all(words):
            raise LabelError(
                "a classification needs label_field, and labels with a word for each of at least two classes; found "
                f"label_field={shown(self.label_field)}, labels={shown(self.labels)}."
            )
        if len(set(words)) < len(words):
            raise LabelError(f"every class needs label words of its own, each once; found {shown(list(words))}.")
        if len(set(map(str, classes))) < len(classes):
            raise LabelError(f"two classes have the same name as text; found {shown(list(classes))}.")


def _check_text(what: str, value: object, error: type[TaskError | LabelError]) -> None:
    if not isinstance(value, str):
        raise error(f"{what} must be a string; found {shown(value)}.")
    if not is_text(value):
        raise error(f"{what} must be text; found half a character, a lone surrogate, in {shown(value)}.")


def _text_parts(target: str) -> list[Text | Field]:
    """Texts and fields of a target.

    Raises:
        TaskError: it has virtual tokens.
        TemplateError: it cannot be read.
    """
    parts = parse_template(target)
    if not all(isinstance(part, Text | Field) for part in parts):
        raise TaskError(
            f"the target is text to generate and has no virtual tokens and no special tokens; found {shown(target)}."
        )
    return [part for part in parts if isinstance(part, Text | Field)]
