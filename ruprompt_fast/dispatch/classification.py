"""Classification by the log-probability of label words."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ruprompt_fast.core import ClassificationOutput
from ruprompt_fast.errors import ContextLengthError, LabelError, shown
from ruprompt_fast.integration.context_length import context_length
from ruprompt_fast.prompts.format.continuations import Continuations, WordsAfter, decoder_words
from ruprompt_fast.prompts.format.verbalizers import Verbalizers, class_scores, read_labels
from ruprompt_fast.requests.ensemble_answers import majority
from ruprompt_fast.requests.inputs import PLAIN_TEXT, Request
from ruprompt_fast.requests.text_checks import check_encodable, check_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


MAX_LABELS = 4096
MAX_LABEL_TOKENS = 256
MAX_LABEL_CHARS = 4096
"""How many label words there may be, and how long one: each costs a pass over its tokens after every request."""

# Rows of logits computed at a time: one takes 0.2 MB at a vocabulary of 50,000.
_ROWS_AT_ONCE = 256


class Scorer(Protocol):
    """Something that runs requests for their logits."""

    def continuation_logits(self, requests: Sequence[Request], continuation: Sequence[int]) -> Tensor:
        """[requests, len(continuation) + 1, vocabulary]: logits after each request and each token after it."""
        ...


def check_labels(labels: Any) -> Verbalizers:
    """The classes and words of a call.

    Args:
        labels: label words, a list or another sequence; or a mapping from classes to their word or words.

    Raises:
        LabelError: neither of the two, fewer than two classes or too many words, or one that is too long or no text.
    """
    size = len(labels) if isinstance(labels, Sequence) else MAX_LABELS
    verbalizers = read_labels(labels) if size <= MAX_LABELS else None
    if verbalizers is None or len(verbalizers.classes) < 2 or len(verbalizers.words) > MAX_LABELS:
        raise LabelError(f"classification needs at least two labels and at most {MAX_LABELS}; found {shown(labels)}.")
    for index, word in enumerate(verbalizers.words):
        if len(word) > MAX_LABEL_CHARS:
            raise LabelError(f"{verbalizers.place(index)} may have {MAX_LABEL_CHARS} characters; found {len(word)}.")
        check_encodable(word, verbalizers.place(index), LabelError)
    return verbalizers


class Classification:
    """Requests to choose a class for, checked.

    A word's score is the sum of its tokens' log-probabilities (Lester et al. 2021 generate label words in the same
    way), a class's the log of the sum of its words' probabilities; the outputs' probabilities are the softmax of the
    scores over the classes. Words of one token cost one forward pass.

    Args:
        requests: the requests.
        verbalizers: the classes and words.
        tokenizer: the model's.
        config: the model's config.
        table_size: rows of the model's table of tokens.

    Raises:
        LabelError: a word without tokens or with too many, or two that read the same.
        TokenIdError: a word holds a token that the model has no row for.
        ContextLengthError: a request and its longest word do not fit the model's context.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        verbalizers: Verbalizers,
        tokenizer: PreTrainedTokenizerBase,
        config: PretrainedConfig,
        table_size: int,
    ) -> None:
        self._requests = requests
        self._verbalizers = verbalizers
        if config.is_encoder_decoder:
            self._words = [decoder_words(verbalizers.words, tokenizer)] * len(requests)
        else:
            self._words = _continuations(requests, verbalizers.words, tokenizer)
        for words in dict.fromkeys(self._words):
            _check_words(words, verbalizers, tokenizer, table_size)
        for request, words in zip(requests, self._words, strict=True):
            _check_fits(config, request, words, verbalizers)

    def run(self, runner: Scorer) -> list[ClassificationOutput]:
        """The most probable class after each input; of an ensemble the one that most of its members choose.

        Args:
            runner: computes logits.
        """
        alike: dict[WordsAfter, list[int]] = {}
        for index, words in enumerate(self._words):
            alike.setdefault(words, []).append(index)
        scores = torch.zeros((len(self._requests), len(self._verbalizers.words)), device="cpu")
        for words, indices in alike.items():
            group = [self._requests[index].without_last(words.num_joined) for index in indices]
            scores[indices] = _scores(group, words.ids, runner)
        probabilities = class_scores(scores, self._verbalizers.class_of).softmax(-1)
        outputs = [
            ClassificationOutput(
                self._verbalizers.classes[int(row.argmax())],
                dict(zip(self._verbalizers.classes, row.tolist(), strict=True)),
                request.prompt_name,
            )
            for request, row in zip(self._requests, probabilities, strict=True)
        ]
        return majority(self._requests, outputs)


def _check_words(
    words: WordsAfter, verbalizers: Verbalizers, tokenizer: PreTrainedTokenizerBase, table_size: int
) -> None:
    for index, ids in enumerate(words.ids):
        place = verbalizers.place(index)
        if not 1 <= len(ids) <= MAX_LABEL_TOKENS:
            raise LabelError(
                f"every label must have at least one token and at most {MAX_LABEL_TOKENS}; {place}, "
                f"{shown(verbalizers.words[index])}, has {len(ids)}."
            )
        check_ids(ids, table_size, tokenizer, place)
    if len(set(words.ids)) < len(words.ids):
        raise LabelError(f"labels must differ in their tokens; found {shown(list(verbalizers.words))}.")


def _continuations(
    requests: Sequence[Request], words: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[WordsAfter]:
    known: dict[Hashable, Continuations] = {}
    found = []
    for request in requests:
        prompt = request.prompt
        key = None if prompt is None else prompt.encoding_key
        continuations = known.get(key)
        if continuations is None:
            format = PLAIN_TEXT if prompt is None else prompt.format
            continuations = Continuations(format.layout, words, tokenizer, format.prompt_token, prompt is None)
            known[key] = continuations
        found.append(continuations.after(request.fields, request.input_ids))
    return found


def _check_fits(config: PretrainedConfig, request: Request, words: WordsAfter, verbalizers: Verbalizers) -> None:
    """Refuse a request that the model has no positions for; nobody looks at a word's last token."""
    limit = context_length(config)
    length = len(request.input_ids) - words.num_joined
    longest = max(range(len(words.ids)), key=lambda word: len(words.ids[word]))
    in_words = len(words.ids[longest]) - 1
    needed = max(length, in_words) if config.is_encoder_decoder else length + in_words
    if limit is None or needed <= limit:
        return
    raise ContextLengthError(
        f"input {request.index} has {len(request.input_ids)} tokens, virtual tokens included, and its longest label, "
        f"{shown(verbalizers.words[longest])}, has {len(words.ids[longest])}, the last of which takes no position; the "
        f"model's context is {limit}. Shorten the input by {needed - limit} tokens, or use shorter labels."
    )


def _scores(requests: Sequence[Request], label_ids: Sequence[Sequence[int]], runner: Scorer) -> Tensor:
    """The log-probability of every word after every request, [requests, words]."""
    scores = torch.zeros((len(requests), len(label_ids)), device="cpu")
    by_prefix: dict[tuple[int, ...], list[int]] = {}
    for column, ids in enumerate(label_ids):
        by_prefix.setdefault(tuple(ids[:-1]), []).append(column)
    for prefix, columns in by_prefix.items():
        size = max(1, _ROWS_AT_ONCE // (len(prefix) + 1))
        for start in range(0, len(requests), size):
            rows = slice(start, min(start + size, len(requests)))
            logprobs = runner.continuation_logits(requests[rows], prefix).log_softmax(-1).cpu()
            for column in columns:
                ids = label_ids[column]
                scores[rows, column] = logprobs[:, range(len(ids)), ids].sum(-1)
    return scores
