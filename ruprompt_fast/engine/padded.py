"""The padded path: transformers' own ``generate`` on a left-padded batch of requests with mixed prompts."""

from __future__ import annotations

import copy
import inspect
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.engine.context import NewTokens
from ruprompt_fast.engine.loop import FairLock
from ruprompt_fast.engine.padded_context import check_attached, own_defaults, reads_input_ids, score_columns, seeded
from ruprompt_fast.engine.padded_stream import stream_text
from ruprompt_fast.engine.requests import Request
from ruprompt_fast.engine.stopping import StopStrings, unused_ids
from ruprompt_fast.engine.tasks import GenerationTask
from ruprompt_fast.errors import SettingError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria
    from transformers.generation.streamers import BaseStreamer

    from ruprompt_fast.embedding import SplicedEmbedding


class PaddedGenerator:
    """Runs requests through ``model.generate``, padded left, each with the rows of its own prompt.

    A batch gets a table of its own: row 0 is padding, then the rows of the prompts it uses. A request therefore reads
    the same ids wherever it stands, and what it generates (greedy, float32) does not depend on its neighbours.

    Args:
        model: the frozen model, with ``embedding`` attached.
        tokenizer: its tokenizer.
        embedding: the model's input embedding.
        max_batch_size: requests that run together at most.
        turn: held while the model runs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        embedding: SplicedEmbedding,
        max_batch_size: int,
        turn: FairLock,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._embedding = embedding
        self._max_batch_size = max_batch_size
        self._turn = turn
        self._takes = set(inspect.signature(model.forward).parameters)

    def generate(
        self, tasks: Sequence[GenerationTask], progress: Callable[[int], None] | None = None
    ) -> list[list[GenerationOutput]]:
        """Generate for every task with its own settings; ``num_return_sequences`` outputs each, in order.

        Args:
            tasks: requests and settings.
            progress: is told how many tasks are done.

        Raises:
            SettingError: transformers cannot do what is asked. Nothing is run then.
            DetachedModelError: the model has lost its prompts.
        """
        guided = any(task.config.guidance_scale not in (None, 1) for task in tasks)
        if guided and self._model.config.is_encoder_decoder:
            raise SettingError("guidance_scale needs a decoder-only model: transformers cannot guide encoder-decoders.")
        if any(task.config.prompt_lookup_num_tokens and task.config.do_sample for task in tasks if task.request.prompt):
            raise SettingError(
                "prompt_lookup_num_tokens with do_sample=True cannot run behind a prompt: transformers would propose "
                "the prompt's rows as tokens. Leave one of the two out."
            )
        results: list[list[GenerationOutput]] = [[] for _ in tasks]
        num_done = 0
        with self._running():
            for indices in self._batches(tasks):
                batch = [tasks[index] for index in indices]
                for index, output in zip(indices, self._run(batch), strict=True):
                    results[index] = output
                num_done += len(indices)
                if progress is not None:
                    progress(num_done)
        return results

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
            input_ids, mask, rows = self._assemble([request.followed_by(continuation) for request in batch])
            inputs = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if "position_ids" in self._takes else {}
        if "logits_to_keep" in self._takes:
            inputs["logits_to_keep"] = len(continuation) + 1
        with self._embedding.rows_for_call(rows):
            logits = self._model(input_ids=input_ids, attention_mask=mask, use_cache=False, **inputs).logits
        return cast(Tensor, logits[:, -(len(continuation) + 1) :].float())

    def _batches(self, tasks: Sequence[GenerationTask]) -> Iterator[list[int]]:
        """Indices of tasks with the same settings, of like lengths, at most ``max_batch_size`` together."""
        keys = {id(task.config): repr(sorted(task.config.to_dict().items())) for task in tasks}
        groups: dict[tuple[str, NewTokens, int | None], list[int]] = {}
        for index, task in enumerate(tasks):
            groups.setdefault((keys[id(task.config)], task.budget, task.extras.seed), []).append(index)
        for indices in groups.values():
            indices.sort(key=lambda index: len(tasks[index].request.input_ids))
            task = tasks[indices[0]]
            # transformers draws one stream for a batch, so what has a seed runs alone; and it looks candidates up in
            # the input of a single request only.
            alone = task.config.prompt_lookup_num_tokens or (task.config.do_sample and task.extras.seed is not None)
            size = 1 if alone else self._max_batch_size
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

    def stream(self, task: GenerationTask, stop_strings: tuple[str, ...]) -> Iterator[str]:
        """The text of a task's one output, piece by piece; closing the iterator stops generating."""

        def generate(streamer: BaseStreamer, closed: StoppingCriteria) -> None:
            with self._running():
                self._run([task], streamer, closed)

        return stream_text(generate, self._tokenizer, stop_strings, self._turn)

    def _run(
        self,
        tasks: Sequence[GenerationTask],
        streamer: BaseStreamer | None = None,
        closed: StoppingCriteria | None = None,
    ) -> list[list[GenerationOutput]]:
        """Run tasks that share their settings."""
        batch = [task.request for task in tasks]
        input_ids, mask, rows = self._assemble(batch)
        settings, strings = self._settings(tasks[0].config, tasks[0].budget)
        new_start = 1 if self._model.config.is_encoder_decoder else input_ids.shape[1]
        stop = StopStrings(strings, self._tokenizer, new_start)
        columns = self._embedding.first_prompt_id + rows.shape[0]
        with (
            self._embedding.rows_for_call(rows),
            score_columns(self._model, columns) if reads_input_ids(settings) else nullcontext(),
            own_defaults(self._model, settings),
            seeded(tasks[0].extras.seed),
        ):
            result = cast(Any, self._model).generate(
                input_ids=input_ids,
                attention_mask=mask,
                generation_config=settings,
                stopping_criteria=[criterion for criterion in (stop if strings else None, closed) if criterion],
                streamer=streamer,
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
        never = unused_ids(self._model, self._tokenizer)
        if never:
            settings.suppress_tokens = sorted({*(settings.suppress_tokens or ()), *never})
        strings, settings.stop_strings = settings.stop_strings or [], None
        return settings, [strings] if isinstance(strings, str) else list(strings)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """One call at a time, without gradients, on a model that still has its prompts."""
        with self._turn, torch.inference_mode():
            check_attached(self._model, self._embedding)
            yield

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
        kept_logprobs = logprobs[: len(kept)] if logprobs is not None else None
        return GenerationOutput(text, kept, request.prompt_name, reason, kept_logprobs)

    def _decode(self, token_ids: list[int]) -> str:
        return cast(str, self._tokenizer.decode(token_ids, skip_special_tokens=True))


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
