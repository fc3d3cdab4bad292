"""How steps run: how often the host waits, what is captured and when, and what fails with whom."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
import transformers as tf
from backends.cuda.engine_cases import (
    KINDS,
    NUM_NEW,
    Reading,
    WatchedDevice,
    case,
    changed,
    config,
    endless,
    engines_on,
    expected,
    mixed,
    stats,
    trouble,
    troubled,
)
from engine.reference import NAMES, TEXTS, Case, assert_at_rest, counts
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ruprompt_fast import FastPromptModel
from ruprompt_fast.backends.cuda.options import CudaOptions
from ruprompt_fast.backends.cuda.rehearsal import RehearsalDevice, why_waiting
from ruprompt_fast.backends.cuda.runner import CudaRunner
from ruprompt_fast.errors import EngineStepError

NOT_AHEAD = CudaOptions(runs_ahead=False)


@pytest.fixture
def device() -> WatchedDevice:
    return WatchedDevice()


class Waits(TorchDispatchMode):
    """Notes the operators for which the host would wait."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (why := why_waiting(func, args)) is not None:
            self.found.append(why)
        return func(*args, **(kwargs or {}))


# How often the host waits


@pytest.mark.parametrize("options", [NOT_AHEAD, CudaOptions(runs_ahead=True)], ids=["in turns", "ahead"])
def test_one_wait_a_step(device: WatchedDevice, options: CudaOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and sampled rows with every filter, a penalty and log-probabilities; also in eager steps."""
    with engines_on(device, options):
        model = case().serve(max_step_tokens=256)
    mixed(model, output_scores=True)  # graphs are captured
    waits: list[str] = []
    launch = CudaRunner.launch

    def watched(self: CudaRunner, *arguments: Any) -> Any:
        with Waits(waits):
            return launch(self, *arguments)

    monkeypatch.setattr(CudaRunner, "launch", watched)
    before, fetches, replays = stats(model), device.num_fetches, device.num_replays
    assert mixed(model, output_scores=True) == expected()
    after = stats(model)
    replayed = after.num_replayed_steps - before.num_replayed_steps
    eager = after.num_eager_steps - before.num_eager_steps
    assert replayed >= NUM_NEW - 1
    assert eager >= 1
    assert device.num_replays - replays == replayed
    assert device.num_fetches - fetches == replayed + eager
    assert after.num_host_rows == 0
    assert (after.num_ahead_steps > 0) == bool(options.runs_ahead)
    assert waits == []
    assert_at_rest(model)


HOST_CHOICES: dict[str, dict[str, Any]] = {
    "bad words": {"bad_words_ids": [[7], [8, 9]]},
    "n-grams": {"no_repeat_ngram_size": 2},
    "another filter": {"do_sample": True, "top_k": 0, "typical_p": 0.8},
}


@pytest.mark.parametrize("settings", HOST_CHOICES.values(), ids=HOST_CHOICES.keys())
def test_what_the_host_chooses_costs_one_more_wait_a_step(device: WatchedDevice, settings: dict[str, Any]) -> None:
    """For all such rows of a step together, and none where there are none."""
    with engines_on(device, NOT_AHEAD):
        model = case().serve(max_step_tokens=256)
    configs = [config(0), config(1), *(tf.GenerationConfig(max_new_tokens=n, **settings) for n in (3, 5))]
    model.generate(TEXTS[:4], NAMES[:4], configs, seed=1, eos_token_id=None)
    before, fetches, steps = stats(model), device.num_fetches, counts(model).scheduler["steps"]
    outputs = model.generate(TEXTS[:4], NAMES[:4], configs, seed=1, eos_token_id=None)
    assert outputs[0].token_ids == endless(0, 0, 1)
    steps = counts(model).scheduler["steps"] - steps
    assert device.num_fetches - fetches == steps + 5
    assert stats(model).num_host_rows - before.num_host_rows == 3 + 5


def test_several_samples_wait_once_more_at_their_first_step(device: WatchedDevice) -> None:
    """Later every sample is a row of its own."""
    with engines_on(device, NOT_AHEAD):
        model = case().serve()
    settings = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6, "eos_token_id": None}
    model.generate("привет", None, seed=1, **settings)
    fetches, steps = device.num_fetches, counts(model).scheduler["steps"]
    model.generate("привет", None, seed=2, **settings)
    assert device.num_fetches - fetches == counts(model).scheduler["steps"] - steps + 1


def test_page_moves_do_not_wait(device: WatchedDevice) -> None:
    """Prefixes that leave for host memory and come back, and pages that are copied: no fetch of their own."""
    with engines_on(device, NOT_AHEAD):
        model = case().serve(num_pages=6, prefix_pages=2, max_step_tokens=64)
    for _ in range(2):
        fetches, before = device.num_fetches, stats(model)
        assert mixed(model, 3) == expected(3)
        after = stats(model)
        launched = after.num_replayed_steps + after.num_eager_steps
        launched -= before.num_replayed_steps + before.num_eager_steps
        assert device.num_fetches - fetches <= launched  # steps that compute prefixes choose nothing
    assert counts(model).prefix_cache.loads > 0
    assert counts(model).scheduler["copies"] > 0


# What is captured


def test_what_is_padding_changes_nothing(device: WatchedDevice) -> None:
    """Every number of sequences, in buckets of 1, 2, 4 and 8."""
    with engines_on(device):
        model = case().serve()
        for num in range(1, len(KINDS) + 1):
            assert mixed(model, num) == expected(num)
    assert stats(model).num_graphs == 4
    assert stats(model).eager_reasons == {}
    assert_at_rest(model)


class Selecting(Reading):
    """Has as many tokens as the numbers say."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.index_put((hidden.sum(-1) > -torch.inf,), self.layer(hidden)[hidden.sum(-1) > -torch.inf])


def replace_norm(by: type[nn.Module]) -> Case:
    def replace(model: Any) -> None:
        model.model.norm = by(model.model.norm)

    return changed(replace)


@pytest.mark.parametrize(("layer", "reason"), [(Reading, "aten::item"), (Selecting, "aten::index")])
def test_a_model_that_waits_runs_eagerly(device: WatchedDevice, layer: type[nn.Module], reason: str) -> None:
    with engines_on(device):
        model = replace_norm(layer).serve()
        assert mixed(model, 3) == expected(3)
    found = stats(model)
    assert (found.num_graphs, found.num_replayed_steps) == (0, 0)
    assert found.num_eager_steps >= NUM_NEW
    (size, text), *_ = found.eager_reasons.items()
    assert size.endswith("pages")
    assert reason in text
    assert_at_rest(model)


def test_a_hooked_model_runs_eagerly(device: WatchedDevice) -> None:
    calls = []
    hooked = changed(lambda base: base.model.layers[0].register_forward_hook(lambda *_: calls.append(1)))
    with engines_on(device):
        model = hooked.serve()
        mixed(model, 2)
        calls.clear()
        assert mixed(model, 2) == expected(2)
    assert len(calls) >= NUM_NEW
    assert "hooks of model.layers.0" in str(stats(model).eager_reasons)
    assert stats(model).num_replayed_steps == 0


class DependsOnData(tf.LlamaForCausalLM):
    """Says of itself what some mixtures of experts do."""

    _can_compile_fullgraph = False


@pytest.mark.parametrize(
    ("made", "settings", "reason"),
    [
        (tf.MixtralForCausalLM, {"num_local_experts": 3, "experts_implementation": "eager"}, "aten::nonzero"),
        (DependsOnData, {}, "DependsOnData computes depends on its data"),
    ],
)
def test_a_mixture_of_experts_runs_eagerly(
    device: WatchedDevice, made: type[tf.PreTrainedModel], settings: dict[str, Any], reason: str
) -> None:
    torch.manual_seed(0)
    base = made(made.config_class(**case().base.config.to_diff_dict() | settings)).eval()
    greedy = {"max_new_tokens": 8, "eos_token_id": None}
    plain = FastPromptModel.from_pretrained(copy.deepcopy(base), tokenizer=case().tokenizer)
    outputs = plain.generate(TEXTS[:3], **greedy)
    assert plain.stats().path == "engine"
    with engines_on(device):
        model = FastPromptModel.from_pretrained(base, tokenizer=case().tokenizer)
        assert model.generate(TEXTS[:3], **greedy) == outputs
    assert stats(model).num_replayed_steps == 0
    assert reason in str(stats(model).eager_reasons)


def test_graphs_can_be_switched_off(device: WatchedDevice) -> None:
    with engines_on(device, CudaOptions(graphs=False)):
        model = case().serve()
        assert mixed(model) == expected()
    assert stats(model).eager_reasons == {"all sizes": "graphs are switched off."}
    assert device.num_replays == 0


def double(model: FastPromptModel) -> None:
    with torch.no_grad():
        model.model.get_output_embeddings().weight.mul_(-1.0)


def other_weights(model: FastPromptModel) -> None:
    other = Case("llama").base
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(parameter.flip(0))
    model.model.load_state_dict(other.state_dict())


def other_dtype(model: FastPromptModel) -> None:
    model.model.to(torch.float64).to(torch.float32).to(torch.bfloat16)


def moved(model: FastPromptModel) -> None:
    layer = model.model.model.layers[0].mlp.down_proj
    layer.weight = nn.Parameter(-layer.weight.detach(), requires_grad=False)


@pytest.mark.parametrize("change", [double, other_weights, other_dtype, moved])
def test_a_changed_model_is_captured_again(device: WatchedDevice, change: Any) -> None:
    with engines_on(device):
        model = case().serve()
        before = mixed(model)
        old = list(device.graphs)
        assert old
        change(model)
        after = mixed(model)
        fresh = case().serve()
        change(fresh)
        assert after == mixed(fresh)
        assert after != before
    assert stats(model).num_graphs > 0
    assert_at_rest(model)
    new = set(device.graphs) - set(old)
    assert new
    del old
    gc.collect()
    assert set(device.graphs) == new  # those of the model as it was are gone


def test_graphs_are_gone_with_the_engine(device: WatchedDevice) -> None:
    with engines_on(device):
        model = case().serve()
        mixed(model)
        assert len(device.graphs) > 0
        model.detach()
    gc.collect()
    assert len(device.graphs) == 0


# What fails


def test_a_failing_step_fails_its_requests(device: WatchedDevice) -> None:
    with engines_on(device, NOT_AHEAD):
        model = troubled().serve()
        assert mixed(model, 3) == expected(3)
        for at in (1, 2, 7):
            with trouble(lambda: 1 / 0, at), pytest.raises(EngineStepError, match="ZeroDivisionError"):
                mixed(model, 3)
            assert_at_rest(model)
            assert mixed(model, 3) == expected(3)
    assert stats(model).num_replayed_steps > 0


def out_of_memory() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.12 GiB is "
        "free. Including non-PyTorch memory, this process has 14.64 GiB memory in use."
    )


@pytest.mark.parametrize("options", [NOT_AHEAD, CudaOptions(runs_ahead=True)], ids=["in turns", "ahead"])
@pytest.mark.parametrize("at", [1, 4], ids=["prefill", "decode"])
def test_a_step_without_memory(device: WatchedDevice, options: CudaOptions, at: int) -> None:
    """Its requests are told how much was wanted; what the step had computed is not kept for the error's sake."""
    with engines_on(device, options):
        model = troubled().serve()
        assert mixed(model, 3) == expected(3)
        with trouble(out_of_memory, at) as found, pytest.raises(EngineStepError) as caught:
            mixed(model, 3)
        assert "Tried to allocate 2.00 GiB" in str(caught.value)
        assert "max_step_tokens" in str(caught.value)
        assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
        gc.collect()
        assert [tensor() for tensor in found] == [None]
        assert_at_rest(model)
        assert mixed(model, 3) == expected(3)


def test_a_capture_without_memory_runs_eagerly() -> None:
    """The request that wanted the graph is answered."""

    class Full(RehearsalDevice):
        def capture(self, launches: Any) -> Any:
            out_of_memory()

    with engines_on(Full()):
        model = case().serve()
        assert mixed(model, 3) == expected(3)
    assert "Tried to allocate 2.00 GiB" in str(stats(model).eager_reasons)
