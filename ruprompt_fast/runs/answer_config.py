"""Configurations of the runs in which a trained prompt answers: ``evaluate`` and ``generate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ruprompt_fast.errors import ConfigError, shown
from ruprompt_fast.runs.data.compressed import COMPRESSIONS
from ruprompt_fast.runs.data.row_format import Quoting, RowFormat
from ruprompt_fast.runs.data.rows import OnBadRow
from ruprompt_fast.runs.data.sources import is_row_file


@dataclass
class ServedModelConfig:
    """The frozen model.

    Attributes:
        name: the bundled model, a folder, or a hub id; by default the one that the prompt was trained on.
        dtype: the dtype of the weights; auto takes the file's; by default what the prompt was trained with if name is
            not given, else float32.
        quantization: int8 keeps the weights of the frozen matrices as 8-bit integers; by default they stay as they are.
        device: where it runs, such as cpu or cuda:0; by default the GPU if there is one.
        threads: how many threads of a CPU compute; by default one for each processor, and fewer for as long as other
            programs take processors.
    """

    name: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = None
    quantization: Literal["int8"] | None = None
    device: str | None = None
    threads: int | None = None


@dataclass
class EvaluateConfig:
    """Measure a prompt on data.

    Attributes:
        prompt: the folder of a prompt or of an ensemble, or the hub id of a prompt.
        data: a file of rows (.jsonl, .json, .csv, .tsv, .txt or .parquet, also compressed), a folder, or the id of a
            hub data set.
        model: the frozen model.
        task: the YAML file of a training configuration, for its task; by default config.yaml in the prompt's folder.
        references: columns with further right answers, which rows may leave empty.
        generation: settings of generation, the fields of transformers' GenerationConfig; by default greedy.
        baselines: whether to measure too what the model does without the prompt, what a copy of the input gives, and
            what the instruction gives, and to compare.
        instruction: a template with the prompt's fields that takes the prompt's place, to compare with, such as
            "Rewrite politely: {text}".
        word_list: a UTF-8 file of word beginnings, one a line, whose share in the answers is measured; "obscene" names
            the small Russian list that comes with the package.
        batch_size: samples of a forward pass for the loss.
        output: a folder to write metrics.json and predictions.jsonl to; it must not exist.
        name: the configuration of a hub data set.
        split: the split of a hub data set.
        on_bad_row: whether a broken or too long row is an error or is left out and counted.
        delimiter: what is between the values of a CSV or TSV file; by default a comma or a tab.
        quoting: standard for values in quotation marks, none where they are text; by default standard for CSV, none
            for TSV.
        encoding: of text files; by default UTF-8, or what a mark at their beginning says.
        limit: how many rows to evaluate; all by default.
        seed: the seed of sampling and of the comparisons.
        progress: whether to show a progress bar; by default on a terminal.
    """

    prompt: str
    data: str
    model: ServedModelConfig = field(default_factory=ServedModelConfig)
    task: str | None = None
    references: list[str] = field(default_factory=list)
    generation: dict[str, Any] = field(default_factory=dict)
    baselines: bool = True
    instruction: str | None = None
    word_list: str | None = None
    batch_size: int = 16
    output: str | None = None
    name: str | None = None
    split: str = "validation"
    on_bad_row: OnBadRow = "fail"
    delimiter: str | None = None
    quoting: Quoting | None = None
    encoding: str | None = None
    limit: int | None = None
    seed: int = 0
    progress: bool | None = None

    def __post_init__(self) -> None:
        RowFormat(self.delimiter, self.quoting, self.encoding)
        _check_numbers(self.batch_size, self.seed)
        if self.instruction is not None and not self.baselines:
            raise ConfigError("instruction is what to compare with; leave it out, or set baselines=true.")


@dataclass
class GenerateConfig:
    """Answer every row of a file with a prompt.

    Attributes:
        prompt: the folder of a prompt or of an ensemble, or the hub id of a prompt.
        input: a file of rows (.jsonl, .json, .csv, .tsv, .txt or .parquet, also compressed), or a pipe of JSON lines.
        output: the .jsonl file to write; that of an interrupted run is continued. Or a pipe or device, such as
            /dev/stdout, which cannot be continued.
        model: the frozen model.
        task: the YAML file of a training configuration, for its task; by default config.yaml in the prompt's folder.
        generation: settings of generation, the fields of transformers' GenerationConfig.
        batch_size: rows that are answered, and written, together.
        seed: the seed of sampling.
        on_bad_row: whether a broken or too long row is an error or is left out and counted.
        delimiter: what is between the values of a CSV or TSV file; by default a comma or a tab.
        quoting: standard for values in quotation marks, none where they are text; by default standard for CSV, none
            for TSV.
        encoding: of a text file; by default UTF-8, or what a mark at its beginning says.
        field_prefix: put before the names output, label and scores of the fields that are added.
        progress: whether to show a progress bar; by default on a terminal.
    """

    prompt: str
    input: str
    output: str
    model: ServedModelConfig = field(default_factory=ServedModelConfig)
    task: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 64
    seed: int = 0
    on_bad_row: OnBadRow = "fail"
    delimiter: str | None = None
    quoting: Quoting | None = None
    encoding: str | None = None
    field_prefix: str = ""
    progress: bool | None = None

    def __post_init__(self) -> None:
        RowFormat(self.delimiter, self.quoting, self.encoding)
        if not Path(self.output).name:
            raise ConfigError(f"output must name a file; found {shown(str(self.output))}.")
        _check_can_hold_lines(Path(self.output))
        _check_numbers(self.batch_size, self.seed)


def _check_can_hold_lines(output: Path) -> None:
    """Refuse a name that says that something else than plain JSON lines is in the file."""
    suffix = output.suffix.lower()
    if suffix in COMPRESSIONS or (suffix != ".jsonl" and is_row_file(output)):
        raise ConfigError(f"output must name a .jsonl file: JSON lines are written; found {shown(output.name)}.")


def _check_numbers(batch_size: int, seed: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1; found {batch_size}.")
    if not 0 <= seed < 2**31:
        raise ConfigError(f"seed must be from 0 to 2**31 - 1; found {seed}.")
