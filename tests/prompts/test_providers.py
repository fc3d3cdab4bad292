"""Providers and the first values of their rows."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from prompts.families import shared
from prompts.tiny import WIDTH, tiny_tokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from ruprompt_fast.errors import (
    NonFiniteRowsError,
    NotInitializedError,
    PromptInitError,
    PromptLengthError,
    PromptMismatchError,
    PromptTooLongError,
)
from ruprompt_fast.prompts import (
    BasePromptProvider,
    LSTMPromptProvider,
    MLPPromptProvider,
    ModulePromptProvider,
    TensorPromptProvider,
)

VOCAB = 30


@pytest.fixture
def embedding() -> nn.Embedding:
    return nn.Embedding(VOCAB, WIDTH)


def initialize(
    provider: BasePromptProvider,
    embedding: nn.Module,
    rows: int = 4,
    init_tokens: dict[int, int] | None = None,
) -> Tensor:
    provider.initialize(prompt_length=rows, embedding_dim=WIDTH, embedding=embedding, init_tokens=init_tokens or {})
    assert provider.is_initialized
    return provider()


def token_of(row: Tensor, embedding: nn.Embedding) -> int:
    """The id whose embedding a row is; -1 for none."""
    equal = (embedding.weight == row).all(dim=1).nonzero().flatten().tolist()
    return int(equal[0]) if equal else -1


ALL = [TensorPromptProvider, LSTMPromptProvider, MLPPromptProvider, lambda: MLPPromptProvider(residual=True)]


@pytest.mark.parametrize("make", ALL)
class TestAllProviders:
    def test_rows(self, make: type[BasePromptProvider], embedding: nn.Embedding) -> None:
        provider = make()
        assert not provider.is_initialized
        assert list(provider.parameters()) == []
        rows = initialize(provider, embedding)
        assert rows.shape == (4, WIDTH)
        assert rows.requires_grad
        rows.sum().backward()
        assert all(parameter.grad is not None for parameter in provider.parameters())
        assert embedding.weight.grad is None

    def test_use_before_initialization(self, make: type[BasePromptProvider], tmp_path: Path) -> None:
        for use in (make(), lambda: make().save_pretrained(tmp_path / "rows.bin")):
            with pytest.raises(NotInitializedError, match="initialize") as caught:
                use()
            assert isinstance(caught.value, UserWarning)
        assert list(tmp_path.iterdir()) == []

    def test_a_second_initialization_does_nothing(
        self, make: type[BasePromptProvider], embedding: nn.Embedding
    ) -> None:
        provider = make()
        before = initialize(provider, embedding)
        assert torch.equal(initialize(provider, embedding, rows=9), before)

    @pytest.mark.parametrize("rows", [0, -1])
    def test_no_rows(self, make: type[BasePromptProvider], embedding: nn.Embedding, rows: int) -> None:
        provider = make()
        with pytest.raises(PromptLengthError, match="at least one row") as caught:
            provider.initialize(rows, WIDTH, embedding, {})
        assert isinstance(caught.value, ValueError)
        assert not provider.is_initialized

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_rows_are_as_precise_as_float32_or_more(
        self, make: type[BasePromptProvider], embedding: nn.Embedding, dtype: torch.dtype
    ) -> None:
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert initialize(make(), embedding.to(dtype)).dtype == expected

    @pytest.mark.parametrize("name", ["rows.bin", "rows.safetensors"])
    def test_saving(self, make: type[BasePromptProvider], embedding: nn.Embedding, tmp_path: Path, name: str) -> None:
        provider = make()
        rows = initialize(provider, embedding)
        provider.save_pretrained(tmp_path / name)
        if name.endswith(".bin"):
            loaded = torch.load(tmp_path / name, weights_only=True)
        else:
            loaded = load_file(tmp_path / name)["prompt_embeddings"]
        assert torch.equal(loaded, rows)
        assert not loaded.requires_grad
        assert torch.equal(TensorPromptProvider.from_pretrained(loaded)(), rows)
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_copies_of_a_model_do_not_carry_the_tokenizer(
        self, make: type[BasePromptProvider], embedding: nn.Embedding
    ) -> None:
        provider = make()
        provider.bind_tokenizer(tiny_tokenizer())
        initialize(provider, embedding)
        twin = copy.deepcopy(provider)
        assert torch.equal(twin(), provider())
        assert "tokenizer" not in repr(vars(twin))


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: TensorPromptProvider(seed=seed),
        lambda seed: TensorPromptProvider("random", seed=seed),
        lambda seed: LSTMPromptProvider(seed=seed),
        lambda seed: MLPPromptProvider(seed=seed),
        lambda seed: MLPPromptProvider(residual=True, seed=seed),
    ],
)
def test_seeds(make: type[BasePromptProvider], embedding: nn.Embedding) -> None:
    state = torch.random.get_rng_state()
    first = initialize(make(3), embedding)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(initialize(make(3), embedding), first)
    assert not torch.equal(initialize(make(4), embedding), first)
    assert not torch.equal(initialize(make(None), embedding), initialize(make(None), embedding))


class TestTensorProvider:
    def test_vocabulary_without_repetition(self, embedding: nn.Embedding) -> None:
        rows = initialize(TensorPromptProvider(), embedding, rows=VOCAB)
        assert sorted(token_of(row, embedding) for row in rows) == list(range(VOCAB))
        with pytest.raises(PromptTooLongError, match="31 rows") as caught:
            initialize(TensorPromptProvider(), embedding, rows=VOCAB + 1)
        assert isinstance(caught.value, UserWarning)
        assert isinstance(caught.value, ValueError)

    def test_rows_are_copies(self, embedding: nn.Embedding) -> None:
        provider = TensorPromptProvider()
        rows = initialize(provider, embedding, init_tokens={0: 1})
        before = embedding.weight.detach().clone()
        with torch.no_grad():
            rows.zero_()
        assert torch.equal(embedding.weight, before)
        assert rows.grad_fn is None

    def test_padded_rows_of_the_table_are_left_alone(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["<|P|>"])
        embedding = nn.Embedding(64, WIDTH)
        provider = TensorPromptProvider()
        provider.bind_tokenizer(tokenizer)
        rows = initialize(provider, embedding, rows=21)
        assert sorted(token_of(row, embedding) for row in rows) == list(range(21))
        provider = TensorPromptProvider(tokenizer=tokenizer)
        rows = initialize(provider, embedding, rows=40)
        assert len({token_of(row, embedding) for row in rows}) == 40

    def test_random(self, embedding: nn.Embedding) -> None:
        rows = initialize(TensorPromptProvider("random", seed=0), embedding, rows=200)
        assert abs(float(rows.detach().std()) - 1) < 0.05
        small = initialize(TensorPromptProvider("random", seed=0, std=0.1), embedding, rows=200)
        assert torch.allclose(small, rows * 0.1)

    def test_generator(self, embedding: nn.Embedding) -> None:
        def rows() -> Tensor:
            return initialize(TensorPromptProvider(generator=torch.Generator().manual_seed(5)), embedding)

        assert torch.equal(rows(), rows())

    def test_frequent(self) -> None:
        tokenizer = shared("byte_level")
        embedding = nn.Embedding(len(tokenizer), WIDTH)
        provider = TensorPromptProvider("frequent", tokenizer=tokenizer, most_frequent=20)
        tokens = [token_of(row, embedding) for row in initialize(provider, embedding, rows=20)]
        names = tokenizer.convert_ids_to_tokens(sorted(tokens))
        assert len(set(tokens)) == 20
        assert all(len(name) > 1 for name in names)
        assert not set(tokens) & set(tokenizer.all_special_ids)
        merged = [index for token, index in tokenizer.get_vocab().items() if len(token) > 1]
        assert sorted(tokens) == sorted(set(merged) - set(tokenizer.all_special_ids))[:20]
        with pytest.raises(PromptTooLongError):
            initialize(TensorPromptProvider("frequent", tokenizer=tokenizer, most_frequent=3), embedding)

    def test_text(self) -> None:
        tokenizer = shared("metaspace_always")
        embedding = nn.Embedding(len(tokenizer), WIDTH)
        ids = tokenizer("the answer", add_special_tokens=False).input_ids
        for rows in (1, len(ids), len(ids) + 3):
            provider = TensorPromptProvider("text", text="the answer", tokenizer=tokenizer)
            found = [token_of(row, embedding) for row in initialize(provider, embedding, rows=rows)]
            assert found == (ids * 4)[:rows]
        with pytest.raises(PromptInitError, match="no tokens"):
            initialize(TensorPromptProvider("text", text="", tokenizer=tokenizer), embedding)

    def test_labels(self) -> None:
        tokenizer = shared("metaspace_always")
        embedding = nn.Embedding(len(tokenizer), WIDTH)
        labels = ["question", "the answer"]
        rows = initialize(TensorPromptProvider("labels", labels=labels, tokenizer=tokenizer), embedding, rows=5)
        for row, label in zip(rows, labels, strict=False):
            ids = torch.tensor(tokenizer(label, add_special_tokens=False).input_ids)
            assert torch.allclose(row, embedding(ids).mean(dim=0))
        assert all(token_of(row, embedding) >= 0 for row in rows[2:])
        with pytest.raises(PromptInitError, match="give each label a row"):
            initialize(TensorPromptProvider("labels", labels=labels, tokenizer=tokenizer), embedding, rows=1)

    @pytest.mark.parametrize("init", ["frequent", "text", "labels"])
    def test_tokenizer_is_needed(self, init: str, embedding: nn.Embedding) -> None:
        argument = {"text": {"text": "x"}, "labels": {"labels": ["x"]}}.get(init, {})
        provider = TensorPromptProvider(init, **argument)
        with pytest.raises(PromptInitError, match="needs the tokenizer"):
            initialize(provider, embedding)
        provider.bind_tokenizer(tiny_tokenizer())
        initialize(provider, embedding)

    def test_init_tokens(self, embedding: nn.Embedding) -> None:
        rows = initialize(TensorPromptProvider(), embedding, rows=6, init_tokens={0: 7, 5: 7, 2: 9})
        assert [token_of(rows[i], embedding) for i in (0, 5, 2)] == [7, 7, 9]
        with pytest.raises(PromptInitError, match="the model's own tokenizer"):
            initialize(TensorPromptProvider(), embedding, init_tokens={0: VOCAB})
        with pytest.raises(PromptInitError, match="row 4 of 4"):
            initialize(TensorPromptProvider(), embedding, init_tokens={4: 0})

    def test_rows_stand_for_the_output_of_a_scaling_embedding(self, embedding: nn.Embedding) -> None:
        class Scaled(nn.Embedding):
            def forward(self, input: Tensor) -> Tensor:
                return super().forward(input) * 8

        scaled = Scaled(VOCAB, WIDTH)
        rows = initialize(TensorPromptProvider(), scaled, init_tokens={1: 3})
        assert torch.equal(rows[1], scaled.weight[3] * 8)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"init": "best"},
            {"init": None},
            {"init": "text"},
            {"init": "vocab", "text": "x"},
            {"init": "labels"},
            {"init": "labels", "labels": "abc"},
            {"init": "labels", "labels": [1]},
            {"init": "text", "text": 3},
            {"seed": 1, "generator": torch.Generator()},
        ],
    )
    def test_arguments_that_do_not_fit(self, arguments: dict[str, object]) -> None:
        with pytest.raises(PromptInitError) as caught:
            TensorPromptProvider(**arguments)
        assert isinstance(caught.value, TypeError)
        assert isinstance(caught.value, ValueError)

    def test_from_pretrained_copies(self) -> None:
        rows = torch.rand(3, WIDTH)
        provider = TensorPromptProvider.from_pretrained(rows)
        assert provider.is_initialized
        assert isinstance(provider.weights, nn.Parameter)
        rows.zero_()
        assert bool((provider() != 0).any())

    @pytest.mark.parametrize(
        "rows",
        [
            torch.ones(3),
            torch.ones(0, 4),
            torch.ones(3, 4, dtype=torch.long),
            torch.ones(3, 4).to_sparse(),
            [[1.0]],
        ],
    )
    def test_from_pretrained_refuses(self, rows: Tensor) -> None:
        with pytest.raises(PromptInitError, match=r"\[rows, width\]"):
            TensorPromptProvider.from_pretrained(rows)
        with pytest.raises(NonFiniteRowsError):
            TensorPromptProvider.from_pretrained(torch.tensor([[1.0, float("nan")]]))

    def test_state_dict_name(self, embedding: nn.Embedding) -> None:
        provider = TensorPromptProvider()
        initialize(provider, embedding)
        assert list(provider.state_dict()) == ["weights"]


class TestNetworks:
    @pytest.mark.parametrize("make", [LSTMPromptProvider, MLPPromptProvider])
    def test_sizes(self, make: type[LSTMPromptProvider], embedding: nn.Embedding) -> None:
        provider = make(hidden_dim=6, input_dim=5)
        assert initialize(provider, embedding).shape == (4, WIDTH)
        assert provider.input is not None
        assert provider.input.shape[-1] == 5
        for size in (0, -2, 1.5, True):
            with pytest.raises(PromptInitError, match="hidden_dim"):
                make(hidden_dim=size)

    def test_layers(self, embedding: nn.Embedding) -> None:
        provider = LSTMPromptProvider(num_lstm_layers=1)
        initialize(provider, embedding)
        assert provider.lstm is not None
        assert provider.lstm.num_layers == 1
        with pytest.raises(PromptInitError, match="num_lstm_layers"):
            LSTMPromptProvider(num_lstm_layers=0)

    @pytest.mark.parametrize("make", [LSTMPromptProvider, MLPPromptProvider])
    def test_init_tokens_are_refused(self, make: type[BasePromptProvider], embedding: nn.Embedding) -> None:
        provider = make()
        with pytest.raises(PromptInitError, match="<P>text</P>") as caught:
            provider.initialize(4, WIDTH, embedding, {0: 1})
        assert isinstance(caught.value, ValueError)
        assert not provider.is_initialized

    def test_residual_starts_from_the_vocabulary(self, embedding: nn.Embedding) -> None:
        provider = MLPPromptProvider(hidden_dim=7, residual=True)
        rows = initialize(provider, embedding, init_tokens={2: 5})
        assert all(token_of(row, embedding) >= 0 for row in rows)
        assert token_of(rows[2], embedding) == 5
        with pytest.raises(PromptInitError, match="input_dim=3"):
            initialize(MLPPromptProvider(input_dim=3, residual=True), embedding)

    def test_more_rows_than_tokens(self, embedding: nn.Embedding) -> None:
        assert initialize(LSTMPromptProvider(), embedding, rows=VOCAB + 5).shape[0] == VOCAB + 5


class _Constant(nn.Module):
    def __init__(self, rows: object) -> None:
        super().__init__()
        self.rows = rows

    def forward(self) -> object:
        return self.rows


class TestModuleProvider:
    def test_any_module(self, embedding: nn.Embedding) -> None:
        rows = torch.rand(4, WIDTH)
        provider = ModulePromptProvider(_Constant(rows))
        assert not provider.is_initialized
        with pytest.raises(NotInitializedError):
            provider()
        assert torch.equal(initialize(provider, embedding), rows)

    @pytest.mark.parametrize(
        "rows", [torch.rand(3, WIDTH), torch.rand(4, WIDTH + 1), torch.rand(4), torch.ones(4, WIDTH).long(), "rows"]
    )
    def test_what_it_returns_is_checked(self, rows: object, embedding: nn.Embedding) -> None:
        provider = ModulePromptProvider(_Constant(rows))
        with pytest.raises(PromptMismatchError, match=r"_Constant must return .*\[4, 20\]"):
            initialize(provider, embedding)
        assert not provider.is_initialized

    def test_later_changes_are_noticed(self, embedding: nn.Embedding) -> None:
        module = _Constant(torch.rand(4, WIDTH))
        provider = ModulePromptProvider(module)
        initialize(provider, embedding)
        module.rows = torch.rand(5, WIDTH)
        with pytest.raises(PromptMismatchError):
            provider()

    def test_init_tokens_are_refused(self, embedding: nn.Embedding) -> None:
        with pytest.raises(PromptInitError, match="makes its own rows"):
            initialize(ModulePromptProvider(_Constant(torch.rand(4, WIDTH))), embedding, init_tokens={0: 1})
