"""The figures of a prompt on rows, beside those of its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ruprompt_fast.errors import ContextLengthError
from ruprompt_fast.prompts import Prompt
from ruprompt_fast.prompts.ensemble import PromptEnsemble
from ruprompt_fast.runs.answer_config import EvaluateConfig
from ruprompt_fast.runs.baselines import COPY, MAJORITY, PlainTemplate, copies, majority, plain_templates
from ruprompt_fast.runs.comparison import Difference, compare_chrf, compare_means, compare_ratios
from ruprompt_fast.runs.config import ModelConfig
from ruprompt_fast.runs.data.rows import BadRow
from ruprompt_fast.runs.loss import TaskLoss, loss_of_text, quantized, teacher_forced_loss
from ruprompt_fast.runs.metrics import accuracy, chrf_metric, reference_streams, row_measures, text_metrics
from ruprompt_fast.runs.serving import Answering, serve
from ruprompt_fast.runs.word_lists import USUAL_SHARE, WordList, read_word_list

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.training.task import Task

WORD_SHARE = "word_list_share"

# Unless the settings say otherwise: what a prompt says most probably, of any length that a sentence or two may have.
_GREEDY = {"do_sample": False}
_MAX_NEW_TOKENS = 64

Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        metrics: ``loss``, teacher-forced, in nats per token to generate, its end token included, or per classified
            sample, an ensemble's the mean of its members'; for a classification ``accuracy``; for texts those of
            :func:`~ruprompt_fast.runs.metrics.text_metrics`, and ``word_list_share``, the share of texts with a word of
            the list. A style has its loss alone.
        predictions: for every row ``row``, its columns, ``output``, and ``references`` or, for a classification,
            ``label``, the class that was chosen, and ``scores``; ``baselines`` has what was answered without the
            prompt. Nothing for a style.
        baselines: the metrics of each baseline: ``no_prompt``, the model with the template's text alone;
            ``instruction``; ``copy``, the input itself; ``majority``, the most frequent class.
        differences: by baseline and metric, how far the prompt's figure is above it, and whether that is significant.
        bad: rows that were left out.
        seconds: how long it took.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    differences: dict[str, dict[str, Difference]] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    seconds: float = 0.0

    def with_baseline(self, name: str, metrics: dict[str, float], differences: dict[str, Difference]) -> None:
        """Add figures of a baseline."""
        self.baselines.setdefault(name, {}).update(metrics)
        self.differences.setdefault(name, {}).update(differences)


def evaluate_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt | PromptEnsemble,
    task: Task,
    rows: Rows,
    config: EvaluateConfig,
    model_config: ModelConfig | None = None,
) -> Evaluation:
    """Measure a prompt on a loaded model, which has no prompt afterwards.

    Args:
        model: the model, in evaluation mode; its weights are frozen.
        tokenizer: its tokenizer.
        prompt: the prompt or ensemble.
        task: its task.
        rows: the rows, with the task's columns.
        config: how to measure; what names files and the model is not read.
        model_config: how the model is served.
    """
    model_config = ModelConfig() if model_config is None else model_config
    plain = plain_templates(task, config.instruction, tokenizer) if config.baselines else {}
    found = Evaluation({}, [])
    with quantized(model, model_config.quantization):
        loss = teacher_forced_loss(model, tokenizer, prompt, task, rows, config.batch_size)
        found.metrics["loss"] = loss.mean
        for name, template in plain.items():
            # Of a style the first token counts too, which has to follow something.
            is_whole = task.objective == "style" and tokenizer.bos_token is not None
            text = f"{tokenizer.bos_token}{template.template}" if is_whole else template.template
            _compare_loss(
                found, name, loss, loss_of_text(model, tokenizer, text, task, rows, config.batch_size), config
            )
    if task.objective == "style":
        return found
    served = serve(model, tokenizer, model_config)
    try:
        answering = Answering.start(served, prompt, task)
        measure = _classification if task.objective == "classification" else _texts
        measure(found, answering, task, rows, plain, config)
    finally:
        served.detach()
    return found


def _compare_loss(found: Evaluation, name: str, prompt: TaskLoss, other: TaskLoss, config: EvaluateConfig) -> None:
    """Compare losses over the same tokens; without a prompt a text's first token may have nothing to follow."""
    if (prompt.parts[:, 1] == other.parts[:, 1]).all():
        difference = compare_ratios(prompt.parts, other.parts, config.seed)
        found.with_baseline(name, {"loss": other.mean}, {"loss": difference})


def _classification(
    found: Evaluation,
    answering: Answering,
    task: Task,
    rows: Rows,
    plain: Mapping[str, PlainTemplate],
    config: EvaluateConfig,
) -> None:
    classes = [str(name) for name in task.labels or {}]
    golds = [classes[task.class_index(row)] for row in rows]
    answers = answering.classify([_inputs(task, row) for row in rows])
    chosen = [str(answer["label"]) for answer in answers]
    found.metrics["accuracy"] = accuracy(chosen, golds)
    others = {name: answering.classify_plain(_rendered(one, task, rows)) for name, one in plain.items()}
    # The row's own columns are apart: one of them is the class, by whatever name.
    found.predictions[:] = [
        {"row": row, **answer, **_beside(others, index)}
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]
    if config.baselines:
        others[MAJORITY] = majority(golds)
    for name, labels in others.items():
        difference = compare_means(_hits(chosen, golds), _hits(labels, golds), config.seed)
        found.with_baseline(name, {"accuracy": accuracy(labels, golds)}, {"accuracy": difference})


def _texts(
    found: Evaluation,
    answering: Answering,
    task: Task,
    rows: Rows,
    plain: Mapping[str, PlainTemplate],
    config: EvaluateConfig,
) -> None:
    settings = {**_GREEDY, **config.generation, "num_return_sequences": 1}
    if not settings.keys() & {"max_new_tokens", "max_length"}:
        settings["max_new_tokens"] = _MAX_NEW_TOKENS
    seeds = range(config.seed, config.seed + len(rows))
    inputs = [_inputs(task, row) for row in rows]
    for row, given in zip(rows, inputs, strict=True):
        _check_fits(answering, row, given, settings)
    outputs = answering.generate(inputs, settings, seeds, progress=config.progress)
    texts = [output.text.strip() for (output,) in outputs]
    others = {
        name: [
            output.text.strip()
            for output in answering.generate_plain(_rendered(one, task, rows), settings, seeds, config.progress)
        ]
        for name, one in plain.items()
    }
    references = [_references(task, row, config.references) for row in rows]
    found.predictions[:] = [
        {"row": row, "output": text, "references": known, **_beside(others, index)}
        for index, (row, text, known) in enumerate(zip(rows, texts, references, strict=True))
    ]
    copied = copies(task, rows)
    if config.baselines and copied is not None:
        others[COPY] = [text.strip() for text in copied]
    words = _word_list(config, copied or [])
    found.metrics.update(_figures(texts, references, words))
    _compare_texts(found, texts, others, references, words, config)


def _check_fits(
    answering: Answering, row: Mapping[str, str], fields: Mapping[str, str], settings: Mapping[str, Any]
) -> None:
    """Check that a row and its answer fit the context; the error names the row's place in its file, if it has one."""
    try:
        answering.check_fits(fields, settings)
    except ContextLengthError as error:
        reason = str(error).removeprefix("input 0 ")
        raise ContextLengthError(f"{getattr(row, 'place', 'a row')} {reason}") from error


def _compare_texts(
    found: Evaluation,
    texts: Sequence[str],
    others: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    words: WordList | None,
    config: EvaluateConfig,
) -> None:
    if not others:
        return
    chrf = compare_chrf(texts, others, reference_streams(references), chrf_metric())
    measured = _row_measures(texts, references, words)
    for name, other in others.items():
        of_rows = _row_measures(other, references, words)
        differences = {key: compare_means(measured[key], of_rows[key], config.seed) for key in measured}
        found.with_baseline(name, _figures(other, references, words), {**differences, "chrf": chrf[name]})


def _figures(texts: Sequence[str], references: Sequence[Sequence[str]], words: WordList | None) -> dict[str, float]:
    share = {} if words is None else {WORD_SHARE: sum(words.flags(texts)) / len(texts)}
    return {**text_metrics(texts, references), **share}


def _row_measures(
    texts: Sequence[str], references: Sequence[Sequence[str]], words: WordList | None
) -> dict[str, list[float]]:
    return {**row_measures(texts, references), **({} if words is None else {WORD_SHARE: words.flags(texts)})}


def _word_list(config: EvaluateConfig, inputs: Sequence[str]) -> WordList | None:
    """The list that is asked for; or the package's own, where the inputs have many of its words."""
    if config.word_list is not None:
        return read_word_list(config.word_list)
    words = read_word_list()
    return words if inputs and sum(words.flags(inputs)) >= USUAL_SHARE * len(inputs) else None


def _rendered(plain: PlainTemplate, task: Task, rows: Rows) -> list[str]:
    return [plain.render(task.fields_of(row)) for row in rows]


def _hits(labels: Sequence[str], golds: Sequence[str]) -> list[float]:
    return [float(label == gold) for label, gold in zip(labels, golds, strict=True)]


def _beside(others: Mapping[str, Sequence[str]], index: int) -> dict[str, Any]:
    """What the baselines answered to a row."""
    return {"baselines": {name: answers[index] for name, answers in others.items()}} if others else {}


def _inputs(task: Task, row: Mapping[str, str]) -> dict[str, str]:
    """The prompt's fields of a row; one without fields begins by itself, from no text."""
    return task.fields_of(row) or {"text": ""}


def _references(task: Task, row: Mapping[str, str], columns: Sequence[str]) -> list[str]:
    """The right answers of a row, each once."""
    texts = [task.target_of(row), *(row[column] for column in columns if column in row)]
    return list(dict.fromkeys(text.strip() for text in texts))
