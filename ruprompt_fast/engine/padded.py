"""The padded path: transformers' own ``generate`` on a left-padded batch of requests with mixed prompts."""

from __future__ import annotations

import copy
import inspect
import threading
from bisect import bisect_left
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
from ruprompt_fast.errors import DetachedModelError, SettingError

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
        self._takes = set(inspect.signature(model.forward).parameters)

    def generate(self, requests: Sequence[Request], configs: Sequence[GenerationConfig]) -> list[GenerationOutput]:
        """Generate for every request with its own settings; ``num_return_sequences`` outputs each, in order.

        Raises:
            ContextLengthError, SettingError: a request and its new tokens cannot work. Nothing is run then.
            DetachedModelError: the model has lost its prompts.
        """
        budgets = [
            new_tokens(self._model.config, request.input_ids, config, index)
            for index, (request, config) in enumerate(zip(requests, configs, strict=True))
        ]
        guided = any(config.guidance_scale not in (None, 1) for config in configs)
        if guided and self._model.config.is_encoder_decoder:
            raise SettingError("guidance_scale needs a decoder-only model: transformers cannot guide encoder-decoders.")
        results: list[list[GenerationOutput]] = [[] for _ in requests]
        with self._running():
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
        with self._running():
            batches = [requests[start : start + self._max_batch_size] for start in starts]
            return torch.cat([self._continue(batch, list(continuation)) for batch in batches])

    def _continue(self, batch: Sequence[Request], continuation: list[int]) -> Tensor:
        if self._model.config.is_encoder_decoder:
            input_ids, mask, rows = self._assemble(batch)
            start = self._model.generation_config.decoder_start_token_id
            decoder_ids = torch.tensor([[start, *continuation]] * len(batch), device=input_ids.device)
            inputs: dict[str, Any] = {"decoder_input_ids": decoder_ids}
        else:
            longer = [Request([*request.input_ids, *continuation], request.prompt) for request in batch]
            input_ids, mask, rows = self._assemble(longer)
            inputs = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if "position_ids" in self._takes else {}
        if "logits_to_keep" in self._takes:
            inputs["logits_to_keep"] = len(continuation) + 1
        with self._embedding.rows_for_call(rows):
            logits = self._model(input_ids=input_ids, attention_mask=mask, use_cache=False, **inputs).logits
        return cast(Tensor, logits[:, -(len(continuation) + 1) :].float())

    def _batches(
        self, requests: Sequence[Request], configs: Sequence[GenerationConfig], budgets: Sequence[NewTokens]
    ) -> Iterator[list[int]]:
        """Indices of requests with the same settings, of like lengths, at most ``max_batch_size`` together."""
        keys = {id(config): repr(sorted(config.to_dict().items())) for config in configs}
        groups: dict[tuple[str, NewTokens], list[int]] = {}
        for index, config in enumerate(configs):
            groups.setdefault((keys[id(config)], budgets[index]), []).append(index)
        for indices in groups.values():
            indices.sort(key=lambda index: len(requests[index].input_ids))
            # transformers looks candidates up in the input of a single request only.
            size = 1 if configs[indices[0]].prompt_lookup_num_tokens else self._max_batch_size
            for start in range(0, len(indices), size):
                yield indices[start : start + size]

    def _assemble(self, batch: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
        """The batch's ids and attention mask [batch, longest], and its table of rows [1 + rows, width]."""
        padding_id, first_row_id = self._embedding.first_prompt_id, self._embedding.first_prompt_id + 1
        weight = self._embedding.weight
        prompts = {id(request.prompt): request.prompt for request in batch if request.prompt is not None}
        starts, parts, total = {id(None): 0}, [weight.new_zeros((1, self._embedding.row_width))], 0
        for key, prompt in prompts.items():
            starts[key] = total
            parts.append(prompt.rows.to(weight.device, weight.dtype))  # the model may have been converted since
            total += prompt.rows.shape[0]
        longest = max(len(request.input_ids) for request in batch)
        input_ids = torch.full((len(batch), longest), padding_id, dtype=torch.long)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, request in enumerate(batch):
            ids = torch.tensor(request.input_ids, dtype=torch.long)
            shifted = ids + starts[id(request.prompt)]
            input_ids[row, longest - len(ids) :] = torch.where(ids >= first_row_id, shifted, ids)
            mask[row, longest - len(ids) :] = 1
        return input_ids.to(weight.device), mask.to(weight.device), torch.cat(parts)

    def _run(
        self, batch: Sequence[Request], config: GenerationConfig, budget: NewTokens
    ) -> list[list[GenerationOutput]]:
        input_ids, mask, rows = self._assemble(batch)
        settings, strings = self._settings(config, budget)
        new_start = 1 if self._model.config.is_encoder_decoder else input_ids.shape[1]
        stop = StopStrings(strings, self._tokenizer, new_start)
        columns = rows.shape[0] if _reads_input_ids(settings) else 0
        with self._embedding.rows_for_call(rows), self._score_columns(columns), self._defaults(settings):
            result = cast(Any, self._model).generate(
                input_ids=input_ids,
                attention_mask=mask,
                generation_config=settings,
                stopping_criteria=[stop] if strings else None,
            )
        token_ids = result.sequences[:, new_start:].tolist()
        logprobs = _token_logprobs(result, token_ids) if settings.output_scores else None
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
        settings.max_length, settings.min_length = None, None
        settings.max_new_tokens, settings.min_new_tokens = budget.most, budget.least or None
        settings.pad_token_id = _padding_token(self._tokenizer, settings, self._embedding.num_embeddings)
        never = _unused_ids(self._model, self._tokenizer)
        if never:
            settings.suppress_tokens = sorted({*(settings.suppress_tokens or ()), *never})
        strings, settings.stop_strings = settings.stop_strings or [], None
        return settings, [strings] if isinstance(strings, str) else list(strings)

    @contextmanager
    def _score_columns(self, rows: int) -> Iterator[None]:
        """Give the logits a column for every id of the batch's table, so that processors can look them up.

        The columns hold the smallest finite number: with minus infinity, guidance would subtract infinities.
        """
        if not rows:
            yield
            return
        columns = self._embedding.first_prompt_id + rows

        def widen(module: torch.nn.Module, arguments: Any, output: Any) -> None:
            missing = columns - output.logits.shape[-1]
            output.logits = F.pad(output.logits, (0, missing), value=torch.finfo(output.logits.dtype).min)

        handle = self._model.register_forward_hook(widen)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _running(self) -> Iterator[None]:
        """One call at a time, without gradients, on a model that still has its prompts."""
        with self._lock, torch.inference_mode():
            if self._model.get_input_embeddings() is not self._embedding:
                raise DetachedModelError(
                    "the model's input embedding is not this FastPromptModel's any more: it was detached, or another "
                    "prompt was attached. Make a new FastPromptModel, and attach nothing else to a model it serves."
                )
            yield

    @contextmanager
    def _defaults(self, settings: GenerationConfig) -> Iterator[None]:
        """Keep transformers from filling unset settings in from the model's defaults a second time."""
        model = cast(Any, self._model)
        defaults, model.generation_config = model.generation_config, settings
        try:
            yield
        finally:
            model.generation_config = defaults

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
        stopped = stop.contained_in(self._decode(kept))
        if stopped:  # what stands behind is padding, or went on while the rest of the batch did
            kept = kept[
                : bisect_left(range(end), True, key=lambda index: stop.contained_in(self._decode(kept[:index])))
            ]
        text = self._decode(kept)
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


def _token_logprobs(result: Any, token_ids: list[list[int]]) -> list[list[float]]:
    """Log-probability of every generated token, from the scores [steps][batch * beams, columns] of ``generate``."""
    tokens = torch.tensor(token_ids, device=result.scores[0].device)[:, : len(result.scores)]
    steps = torch.arange(tokens.shape[1], device=tokens.device)
    beams = getattr(result, "beam_indices", None)
    if beams is None:
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    else:
        rows = beams[:, : tokens.shape[1]].clamp(min=0)
    logprobs = torch.stack(result.scores).log_softmax(-1)
    return cast("list[list[float]]", logprobs[steps, rows, tokens].tolist())


def _padding_token(tokenizer: PreTrainedTokenizerBase, config: GenerationConfig, num_embeddings: int) -> int:
    """What ended sequences are filled with; a padding token that the model has no row for will not do."""
    eos = config.eos_token_id
    candidates = [config.pad_token_id, tokenizer.pad_token_id, *(eos if isinstance(eos, (list, tuple)) else [eos])]
    return next((token for token in candidates if isinstance(token, int) and 0 <= token < num_embeddings), 0)


def _unused_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the output layer has but the tokenizer does not, and markers: they must never be generated."""
    from ruprompt_fast.prompts import is_marker

    vocab_size = model.config.get_text_config().vocab_size
    markers = [index for token, index in tokenizer.get_added_vocab().items() if is_marker(token)]
    unused = set(range(len(tokenizer), vocab_size)) | {index for index in markers if index < vocab_size}
    return sorted(unused)
