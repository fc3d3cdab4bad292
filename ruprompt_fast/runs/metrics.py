"""How well generated texts and chosen labels agree with what is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ruprompt_fast.errors import BatchMismatchError, EmptyInputError, MissingDependencyError, TrainingDataError

_ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rouge_l"}
_WORD = re.compile(r"\w+")


def text_metrics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compare texts with their references; of several references of a text the one that agrees best counts.

    White space around a text does not matter, nor does it count for chrF inside one.

    Args:
        predictions: the texts.
        references: for each of them one reference or more; different texts may have differently many.

    Returns:
        ``exact_match``, the fraction of texts that equal a reference; ``chrf``, chrF2 of the whole corpus, 0 to 100
        (Popović 2015, by sacrebleu); ``rouge1``, ``rouge2`` and ``rouge_l``, the mean F-measure, 0 to 1, of words,
        pairs of words and longest common subsequences (Lin 2004, by rouge-score), case ignored, nothing stemmed.

    Raises:
        EmptyInputError, BatchMismatchError: no texts, or another number of them than of references.
        TrainingDataError: a text has no reference.
        MissingDependencyError: sacrebleu or rouge-score is not installed.
    """
    _check_parallel(predictions, references)
    for index, known in enumerate(references):
        if isinstance(known, str) or not known:
            raise TrainingDataError(f"text {index}: expected a list of at least one reference; found {known!r}.")
    texts = [text.strip() for text in predictions]
    known_texts = [[reference.strip() for reference in known] for known in references]
    of_rows = {name: _mean(values) for name, values in row_measures(texts, known_texts).items()}
    return {"exact_match": of_rows.pop("exact_match"), "chrf": _chrf(texts, known_texts), **of_rows}


def row_measures(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """The measures of :func:`text_metrics` that every text has, without white space around texts and references."""
    matches = [float(text in known) for text, known in zip(predictions, references, strict=True)]
    return {"exact_match": matches, **_rouge(predictions, references)}


def check_can_measure() -> None:
    """Check that texts can be compared, before any is generated.

    Raises:
        MissingDependencyError: sacrebleu or rouge-score is not installed.
    """
    chrf_metric()
    _rouge_scorer()


def accuracy(predictions: Sequence[str], golds: Sequence[str]) -> float:
    """The fraction of labels that are right.

    Raises:
        EmptyInputError, BatchMismatchError: no labels, or another number of them than of right ones.
    """
    _check_parallel(predictions, golds)
    return _mean([prediction == gold for prediction, gold in zip(predictions, golds, strict=True)])


class UnicodeWords:
    """Words for ROUGE: runs of letters and digits of any script, in lower case.

    The tokenizer that rouge-score brings drops every letter outside ASCII, so any two Russian texts would have nothing
    in common, or only their numbers.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return _WORD.findall(text.lower())


def chrf_metric() -> Any:
    """Sacrebleu's chrF2.

    Raises:
        MissingDependencyError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise _missing("chrF", "sacrebleu") from error
    return CHRF()


def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing("ROUGE", "rouge-score") from error
    return RougeScorer(list(_ROUGE), tokenizer=UnicodeWords())


def reference_streams(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """The references as sacrebleu wants them: the first of every text, the second of every text, ..."""
    # A text without a k-th reference has its last one again, which changes nothing.
    return [[known[min(k, len(known) - 1)] for known in references] for k in range(max(map(len, references)))]


def _chrf(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    return float(chrf_metric().corpus_score(texts, reference_streams(references)).score)


def _rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    scorer = _rouge_scorer()
    scores = [scorer.score_multi(known, text) for text, known in zip(texts, references, strict=True)]
    return {name: [score[kind].fmeasure for score in scores] for kind, name in _ROUGE.items()}


def _missing(metric: str, package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{metric} needs the package {package}; install it with pip install 'ruprompt-fast[train]'."
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _check_parallel(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    if len(predictions) != len(references):
        raise BatchMismatchError(f"{len(predictions)} predictions for {len(references)} references.")
    if not predictions:
        raise EmptyInputError("there is nothing to evaluate; give at least one prediction.")
