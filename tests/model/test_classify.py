"""FastPromptModel.classify against log-probabilities computed one label at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ruprompt_fast import FastPromptModel, Prompt


def label_logprob(model: PreTrainedModel, before: torch.Tensor, label: list[int]) -> float:
    """Log-probability of a label after embeddings [tokens, width], one token after another."""
    table = model.get_input_embeddings()
    total, read = 0.0, []
    for token in label:
        if model.config.is_encoder_decoder:
            decoder_ids = torch.tensor([[model.generation_config.decoder_start_token_id, *read]])
            logits = model(inputs_embeds=before[None], decoder_input_ids=decoder_ids).logits
        else:
            embeds = torch.cat([before, table(torch.tensor(read, dtype=torch.long))])
            logits = model(inputs_embeds=embeds[None]).logits
        total += logits[0, -1].log_softmax(-1)[token].item()
        read.append(token)
    return total


@pytest.mark.parametrize("labels", [["а", "б"], ["да", "нет", "может быть"]], ids=["one token", "many tokens"])
def test_probabilities(
    base: PreTrainedModel, prompts: dict[str, Prompt], tokenizer: PreTrainedTokenizerFast, labels: list[str]
) -> None:
    texts = ["привет", "как идут дела"]
    rows = prompts["around"].rows()
    expected = []
    with torch.no_grad():
        for text in texts:
            middle = base.get_input_embeddings()(torch.tensor(tokenizer(text)["input_ids"]))
            before = torch.cat([rows[:7], middle, rows[7:]])
            scores = [label_logprob(base, before, tokenizer(label)["input_ids"]) for label in labels]
            expected.append(torch.tensor(scores).softmax(-1).tolist())
    served = FastPromptModel.from_pretrained(base, prompts=prompts, tokenizer=tokenizer)
    for output, probabilities in zip(served.classify(texts, prompt="around", labels=labels), expected, strict=True):
        assert list(output.probabilities) == labels
        assert list(output.probabilities.values()) == pytest.approx(probabilities, abs=1e-5)
        assert output.label == labels[int(torch.tensor(probabilities).argmax())]
        assert output.prompt == "around"


def test_torchs_default_device_changes_nothing(served: FastPromptModel) -> None:
    """Programs for GPUs often set it, so nothing of ours may be made where it says."""

    def answers() -> tuple[object, object]:
        return (
            served.generate(["да", "а"], prompt="around", max_new_tokens=3),
            served.classify(["да", "а"], prompt="around", labels={"+": ["да", "б"], "-": ["нет"]}),
        )

    expected = answers()
    with torch.device("meta"):
        assert answers() == expected


def test_mixed_prompts_equal_each_alone(served: FastPromptModel) -> None:
    texts, names = ["да", "привет всем", "а"], ["short", None, "around"]
    together = served.classify(texts, prompt=names, labels=["да", "нет"])
    for output, text, name in zip(together, texts, names, strict=True):
        alone = served.classify(text, prompt=name, labels=["да", "нет"])[0]
        assert output.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
