"""First values of virtual tokens: random vectors, or embeddings of well-chosen tokens.

The ways to choose are those of Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section
3.2. Good first values matter most for small models and short training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, get_args

import torch
from torch import Tensor, nn

from ruprompt_fast.errors import PromptInitError, PromptLengthError, PromptTooLongError, shown
from ruprompt_fast.precision import training_dtype
from ruprompt_fast.prompts.format.init_texts import ids_after_text, ids_alone
from ruprompt_fast.prompts.format.template import is_marker
from ruprompt_fast.prompts.format.texts import is_text
from ruprompt_fast.prompts.providers.init_mode import InitMode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOT_WORDS = re.compile(r"<0x[0-9A-Fa-f]{2}>|[<\[]unused_?\d+[>\]]")


@dataclass
class RowInit:
    """How to make the first values of rows.

    Attributes:
        mode: ``vocab`` takes embeddings of distinct tokens drawn from the whole vocabulary, ``frequent`` from its most
            frequent tokens, ``text`` those of a given text, ``labels`` those of class labels, ``random`` draws numbers
            from a normal distribution.
        text: for ``text``: repeated if it has fewer tokens than there are rows, cut if it has more.
        labels: for ``labels``: one row each, the mean of the label's tokens; the other rows are drawn as by ``vocab``.
        tokenizer: needed by ``frequent``, ``text`` and ``labels``; keeps ``vocab`` away from rows of padded tables.
        seed: makes the draws repeatable, whatever the device.
        generator: a CPU generator to draw with, instead of ``seed``. Without either torch's global one is used.
        std: for ``random``: the standard deviation.
        most_frequent: for ``frequent``: how many tokens to draw from; 5,000 in the paper.

    Raises:
        PromptInitError: an unknown mode, or arguments that do not belong together.
    """

    mode: InitMode = "vocab"
    text: str | None = None
    labels: Sequence[str] | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    seed: int | None = None
    generator: torch.Generator | None = None
    std: float = 1.0
    most_frequent: int = 5000

    def __post_init__(self) -> None:
        if self.mode not in get_args(InitMode):
            raise PromptInitError(f"init must be one of {', '.join(get_args(InitMode))}; found {shown(self.mode)}.")
        for mode, value in (("text", self.text), ("labels", self.labels)):
            if (value is not None) != (self.mode == mode):
                raise PromptInitError(f"init={mode!r} and the argument {mode} belong together; give both or neither.")
        if self.text is not None and not (isinstance(self.text, str) and is_text(self.text)):
            raise PromptInitError(f"text must be a string of whole characters; found {shown(self.text)}.")
        if self.labels is not None and (
            isinstance(self.labels, str) or not all(isinstance(x, str) and is_text(x) for x in self.labels)
        ):
            raise PromptInitError(f"labels must be a list of strings, one for each class; found {shown(self.labels)}.")
        if self.seed is not None and self.generator is not None:
            raise PromptInitError("give a seed or a generator, not both.")

    def make_rows(
        self, prompt_length: int, embedding_dim: int, embedding: nn.Module, init_tokens: dict[int, int]
    ) -> Tensor:
        """New rows [prompt_length, embedding_dim] on the embedding's device, in its dtype or float32 if that is wider.

        Rows replace the embedding module's output, so they are made by calling it: modules that scale what they look
        up are accounted for.

        Args:
            prompt_length: the number of rows.
            embedding_dim: their width.
            embedding: the model's own input embedding.
            init_tokens: tokens whose embeddings certain rows take, whatever the mode.

        Raises:
            PromptLengthError: there are no rows to make.
            PromptTooLongError: more rows than there are tokens to draw from.
            PromptInitError: a text without tokens, more labels than rows, a missing tokenizer, or a token or row that
                does not exist.
        """
        check_prompt_length(prompt_length)
        weight = cast(Tensor, embedding.weight)
        if self.mode == "random":
            rows = self.noise(prompt_length, embedding_dim).to(weight.device)
        elif self.mode == "labels":
            rows = self._label_rows(prompt_length, embedding, self._generator())
        else:
            rows = embed_tokens(embedding, self.token_ids(prompt_length, weight.shape[0]))
        dtype = training_dtype(weight.dtype)
        rows = rows.to(dtype)
        if init_tokens:
            check_init_tokens(init_tokens, prompt_length)
            rows[list(init_tokens)] = embed_tokens(embedding, init_tokens.values()).to(dtype)
        return rows

    def noise(self, prompt_length: int, width: int) -> Tensor:
        """The numbers of ``random``, float32 [prompt_length, width] on the CPU."""
        return torch.empty(prompt_length, width).normal_(std=self.std, generator=self._generator())

    def token_ids(self, prompt_length: int, table_size: int) -> list[int]:
        """The token that each row starts from, for ``vocab``, ``frequent`` and ``text``.

        Args:
            prompt_length: the number of rows.
            table_size: rows of the model's table of tokens.

        Raises:
            PromptTooLongError: more rows than there are tokens to draw from.
            PromptInitError: a text without tokens, or a missing tokenizer.
        """
        if self.mode == "text":
            ids = self._ids(cast(str, self.text))
            return [ids[i % len(ids)] for i in range(prompt_length)]
        pool = self._frequent_ids() if self.mode == "frequent" else self._vocabulary(table_size, prompt_length)
        return _draw(pool, prompt_length, self._generator())

    def _generator(self) -> torch.Generator | None:
        return self.generator if self.seed is None else torch.Generator().manual_seed(self.seed)

    def _label_rows(self, prompt_length: int, embedding: nn.Module, generator: torch.Generator | None) -> Tensor:
        labels = cast("Sequence[str]", self.labels)
        if not 0 < len(labels) <= prompt_length:
            raise PromptInitError(
                f"{len(labels)} labels cannot initialize {prompt_length} rows; give each label a row."
            )
        rows = [embed_tokens(embedding, self._ids(label)).mean(dim=0, keepdim=True) for label in labels]
        rest = prompt_length - len(labels)
        pool = self._vocabulary(cast(Tensor, embedding.weight).shape[0], rest)
        return torch.cat([*rows, embed_tokens(embedding, _draw(pool, rest, generator))])

    def _ids(self, text: str) -> list[int]:
        """The ids of a text: one that begins with a space or a line end continues another, others are on their own."""
        ids = (ids_after_text if text[:1].isspace() else ids_alone)(text, self._need_tokenizer())
        if not ids:
            raise PromptInitError(f"the text {shown(text)} has no tokens to initialize rows from.")
        return ids

    def _need_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise PromptInitError(
                f"init={self.mode!r} needs the tokenizer: initialize the provider through its Prompt, or give it "
                "tokenizer=..."
            )
        return self.tokenizer

    def _vocabulary(self, table_size: int, wanted: int) -> list[int]:
        """Ids of real tokens; all rows of the table if the tokenizer is unknown or has too few."""
        if self.tokenizer is not None:
            vocab = self.tokenizer.get_vocab().items()
            ids = sorted(i for token, i in vocab if i < table_size and not is_marker(token))
            if len(ids) >= wanted:
                return ids
        return list(range(table_size))

    def _frequent_ids(self) -> list[int]:
        """The most frequent tokens, by id: trainers number tokens in the order in which they found them.

        Byte-pair encoding merges the most frequent pair first, WordPiece and Unigram vocabularies are sorted by count
        and score. What comes before the first of these says nothing: special and added tokens, placeholders, and the
        single bytes of byte-level vocabularies are left out.
        """
        tokenizer = self._need_tokenizer()
        vocab = tokenizer.get_vocab()
        left_out = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        is_byte_level = "Ġ" in vocab
        ids = [
            i
            for token, i in vocab.items()
            if i not in left_out and not _NOT_WORDS.fullmatch(token) and not (is_byte_level and len(token) == 1)
        ]
        return sorted(ids)[: self.most_frequent]


def check_prompt_length(prompt_length: int) -> None:
    """Refuse prompts without rows.

    Raises:
        PromptLengthError: ``prompt_length`` is less than one.
    """
    if prompt_length < 1:
        raise PromptLengthError(
            f"a prompt must have at least one row; found {prompt_length}. Put <P> or <P*N> into its template."
        )


def check_init_tokens(init_tokens: dict[int, int], prompt_length: int) -> None:
    """Refuse tokens for rows that the prompt does not have.

    Raises:
        PromptInitError: there are some.
    """
    if max(init_tokens, default=0) >= prompt_length or min(init_tokens, default=0) < 0:
        raise PromptInitError(f"init_tokens names the row {max(init_tokens)} of {prompt_length} rows.")


def check_tokens(ids: Sequence[int], table_size: int) -> None:
    """Refuse tokens that the model does not have.

    Raises:
        PromptInitError: there are some.
    """
    unknown = [i for i in ids if not 0 <= i < table_size]
    if unknown:
        raise PromptInitError(
            f"cannot initialize rows from the tokens {shown(unknown)}: the model's table has {table_size} rows. "
            "Use the model's own tokenizer."
        )


def embed_tokens(embedding: nn.Module, ids: Iterable[int]) -> Tensor:
    """A new tensor with what the embedding module gives for these tokens, [len(ids), width], without a graph.

    Raises:
        PromptInitError: the embedding has no such token.
    """
    weight = cast(Tensor, embedding.weight)
    wanted = list(ids)
    check_tokens(wanted, weight.shape[0])
    with torch.no_grad():
        return cast(Tensor, embedding(torch.tensor(wanted, dtype=torch.long, device=weight.device))).clone()


def _draw(pool: Sequence[int], count: int, generator: torch.Generator | None) -> list[int]:
    if count > len(pool):
        raise PromptTooLongError(
            f"{count} rows cannot be initialized from {len(pool)} distinct tokens; use fewer rows or init='random'."
        )
    return [pool[i] for i in torch.randperm(len(pool), generator=generator)[:count].tolist()]
