"""The padded path: transformers' own ``generate`` on a left-padded batch of requests with mixed prompts."""

from __future__ import annotations

import copy
import inspect
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.engine.context import NewTokens, new_tokens
from ruprompt_fast.engine.requests import Request
from ruprompt_fast.engine.stopping import StopStrings

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.embedding import SplicedEmbedding

# Settings whose processors look up scores by the ids of the input: prompt rows and padding need columns there.
_READS_INPUT_IDS = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "watermarking_config",
)


class PaddedGenerator:
    """Runs requests through ``model.generate``, padded left, each with the rows of its own prompt.

    A batch gets a table of its own: row 0 is padding, then the rows of the prompts it uses. A request therefore reads
    the same ids wherever it stands, and what it generates (greedy, float32) does not depend on its neighbours.

    Args:
        model: the frozen model, with ``embedding`` attached.
        tokenizer: its tokenizer.
        embedding: the model's input embedding.
        max_batch_size: requests that run together at most.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        embedding: SplicedEmbedding,
        max_batch_size: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._embedding = embedding
        self._max_batch_size = max_batch_size
        self._lock = threading.Lock()
        self._never_generated = _unused_ids(model, tokenizer)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def generate(self, requests: Sequence[Request], configs: Sequence[GenerationConfig]) -> list[GenerationOutput]:
        """Generate for every request with its own settings; ``num_return_sequences`` outputs each, in order.

        Raises:
            ContextLengthError: a request and its new tokens do not fit the model's context. Nothing is run then.
        """
        budgets = [
            new_tokens(self._model.config, request.input_ids, config, index)
            for index, (request, config) in enumerate(zip(requests, configs, strict=True))
        ]
        results: list[list[GenerationOutput]] = [[] for _ in requests]
        with self._lock, torch.inference_mode():
            for indices in self._batches(requests, configs, budgets):
                batch = [requests[index] for index in indices]
                outputs = self._run(batch, configs[indices[0]], budgets[indices[0]])
                for index, output in zip(indices, outputs, strict=True):
                    results[index] = output
        return [output for outputs in results for output in outputs]

    def continuation_logits(self, requests: Sequence[Request], continuation: Sequence[int]) -> Tensor:
        """Logits behind each request and behind each token of a continuation.

        Returns:
            [requests, len(continuation) + 1, vocabulary], float32.
        """
        starts = range(0, len(requests), self._max_batch_size)
        with self._lock, torch.inference_mode():
            batches = [requests[start : start + self._max_batch_size] for start in starts]
            return torch.cat([self._continue(batch, list(continuation)) for batch in batches])

    def _continue(self, batch: Sequence[Request], continuation: list[int]) -> Tensor:
        if self._model.config.is_encoder_decoder:
            input_ids, mask, rows = self._assemble(batch)
            decoder_ids = [self._model.generation_config.decoder_start_token_id, *continuation]
            inputs = {"decoder_input_ids": torch.tensor([decoder_ids] * len(batch), device=input_ids.device)}
        else:
            longer = [Request([*request.input_ids, *continuation], request.prompt) for request in batch]
            input_ids, mask, rows = self._assemble(longer)
            inputs = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if self._takes_positions else {}
        with self._embedding.rows_for_call(rows):
            logits = self._model(input_ids=input_ids, attention_mask=mask, use_cache=False, **inputs).logits
        return cast(Tensor, logits[:, -(len(continuation) + 1) :].float())

    def _batches(
        self, requests: Sequence[Request], configs: Sequence[GenerationConfig], budgets: Sequence[NewTokens]
    ) -> Iterator[list[int]]:
        """Indices of requests with the same settings, of like lengths, at most ``max_batch_size`` together."""
        keys = {id(config): json.dumps(config.to_dict(), sort_keys=True, default=str) for config in configs}
        groups: dict[tuple[str, NewTokens], list[int]] = {}
        for index, config in enumerate(configs):
            groups.setdefault((keys[id(config)], budgets[index]), []).append(index)
        for indices in groups.values():
            indices.sort(key=lambda index: len(requests[index].input_ids))
            for start in range(0, len(indices), self._max_batch_size):
                yield indices[start : start + self._max_batch_size]

    def _assemble(self, batch: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
        """The batch's ids and attention mask [batch, longest], and its table of rows [1 + rows, width]."""
        padding_id, first_row_id = self._embedding.first_prompt_id, self._embedding.first_prompt_id + 1
        prompts = {request.prompt.name: request.prompt for request in batch if request.prompt is not None}
        starts, parts, total = {}, [self._embedding.weight.new_zeros((1, self._embedding.row_width))], 0
        for name, prompt in prompts.items():
            starts[name] = total
            parts.append(prompt.rows)
            total += prompt.rows.shape[0]
        longest = max(len(request.input_ids) for request in batch)
        input_ids = torch.full((len(batch), longest), padding_id, dtype=torch.long)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, request in enumerate(batch):
            ids = torch.tensor(request.input_ids, dtype=torch.long)
            shift = starts[request.prompt.name] if request.prompt is not None else 0
            input_ids[row, longest - len(ids) :] = torch.where(ids >= first_row_id, ids + shift, ids)
            mask[row, longest - len(ids) :] = 1
        device = self._embedding.weight.device
        return input_ids.to(device), mask.to(device), torch.cat(parts)

    def _run(
        self, batch: Sequence[Request], config: GenerationConfig, budget: NewTokens
    ) -> list[list[GenerationOutput]]:
        input_ids, mask, rows = self._assemble(batch)
        settings, strings = self._settings(config, budget)
        new_start = 1 if self._model.config.is_encoder_decoder else input_ids.shape[1]
        stop = StopStrings(strings, self._tokenizer, new_start)
        columns = rows.shape[0] if _reads_input_ids(settings) else 0
        with self._embedding.rows_for_call(rows), self._score_columns(columns):
            result = cast(Any, self._model).generate(
                input_ids=input_ids,
                attention_mask=mask,
                generation_config=settings,
                stopping_criteria=[stop] if strings else None,
            )
        token_ids = result.sequences[:, new_start:].tolist()
        logprobs = self._logprobs(result, settings)
        count = len(token_ids) // len(batch)
        return [
            [
                self._output(request, token_ids[k], logprobs[k] if logprobs else None, settings, stop)
                for k in range(index * count, (index + 1) * count)
            ]
            for index, request in enumerate(batch)
        ]

    def _settings(self, config: GenerationConfig, budget: NewTokens) -> tuple[GenerationConfig, list[str]]:
        """The settings for transformers' generate, and the stop strings apart from them."""
        settings = copy.deepcopy(config)
        settings.return_dict_in_generate = True
        settings.max_length, settings.min_length = None, None
        settings.max_new_tokens, settings.min_new_tokens = budget.most, budget.least or None
        if settings.pad_token_id is None:
            settings.pad_token_id = _padding_token(self._tokenizer, settings)
        if self._never_generated:
            settings.suppress_tokens = sorted({*(settings.suppress_tokens or ()), *self._never_generated})
        strings, settings.stop_strings = settings.stop_strings or [], None
        return settings, [strings] if isinstance(strings, str) else list(strings)

    @contextmanager
    def _score_columns(self, rows: int) -> Iterator[None]:
        """Give the logits a column of -inf for every id of the batch's table, so that processors can look them up."""
        if not rows:
            yield
            return
        columns = self._embedding.first_prompt_id + rows

        def widen(module: torch.nn.Module, arguments: Any, output: Any) -> None:
            missing = columns - output.logits.shape[-1]
            output.logits = F.pad(output.logits, (0, missing), value=float("-inf"))

        handle = self._model.register_forward_hook(widen)
        try:
            yield
        finally:
            handle.remove()

    def _logprobs(self, result: Any, settings: GenerationConfig) -> list[list[float]] | None:
        if not settings.output_scores:
            return None
        beams = getattr(result, "beam_indices", None)
        scores = cast(Any, self._model).compute_transition_scores(
            result.sequences, result.scores, beam_indices=beams, normalize_logits=True
        )
        return cast("list[list[float]]", scores.tolist())

    def _output(
        self,
        request: Request,
        token_ids: list[int],
        logprobs: list[float] | None,
        settings: GenerationConfig,
        stop: StopStrings,
    ) -> GenerationOutput:
        eos = settings.eos_token_id
        stops = set(eos) if isinstance(eos, (list, tuple)) else {eos}
        end = next((index + 1 for index, token in enumerate(token_ids) if token in stops), len(token_ids))
        kept = token_ids[:end]
        text = self._decode(kept)
        stopped = stop.contained_in(text)
        if stopped:  # the others of the batch went on, and this one was padded
            while len(kept) > 1 and kept[-1] == settings.pad_token_id and stop.contained_in(self._decode(kept[:-1])):
                kept.pop()
        if stopped or (kept and kept[-1] in stops):
            reason = "stop"
        else:
            reason = "length" if len(kept) == settings.max_new_tokens else "time"
        name = request.prompt.name if request.prompt is not None else None
        return GenerationOutput(text, kept, name, reason, logprobs[: len(kept)] if logprobs is not None else None)

    def _decode(self, token_ids: list[int]) -> str:
        return cast(str, self._tokenizer.decode(token_ids, skip_special_tokens=True))


def _reads_input_ids(config: GenerationConfig) -> bool:
    neutral = (None, 0, 1, 1.0)
    return any(getattr(config, name, None) not in neutral for name in _READS_INPUT_IDS)


def _padding_token(tokenizer: PreTrainedTokenizerBase, config: GenerationConfig) -> int:
    if tokenizer.pad_token_id is not None:
        return cast(int, tokenizer.pad_token_id)
    eos = config.eos_token_id
    first = eos[0] if isinstance(eos, (list, tuple)) and eos else eos
    return first if isinstance(first, int) else 0


def _unused_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the output layer has but the tokenizer does not, and markers: they must never be generated."""
    from ruprompt_fast.prompts import is_marker

    vocab_size = model.config.get_text_config().vocab_size
    markers = [index for token, index in tokenizer.get_added_vocab().items() if is_marker(token)]
    unused = set(range(len(tokenizer), vocab_size)) | {index for index in markers if index < vocab_size}
    return sorted(unused)
