"""Answering a file: what is written, how a killed run goes on, and what is refused before anything is spent."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from full_disk import no_room_after
from patience import wait_for
from runs.run_cases import KIND, ensemble_folder, read_jsonl, task_of, trained, write_jsonl

from ruprompt_fast import FastPromptModel, Prompt, bundled
from ruprompt_fast.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    FileWriteError,
    OutputExistsError,
    OutputInUseError,
    PromptMismatchError,
    RupromptError,
    SettingError,
    TaskError,
    TrainingDataError,
    UnknownArgumentError,
)
from ruprompt_fast.runs.answer_config import GenerateConfig, ServedModelConfig
from ruprompt_fast.runs.config import DataConfig, ModelConfig, TrainConfig, config_yaml
from ruprompt_fast.runs.generate import generate
from ruprompt_fast.runs.serving import find_model
from ruprompt_fast.training.ownership import owning_file
from ruprompt_fast.training.task import Task

PROVERB = str(bundled.PROMPTS["proverb"])
TEXTS = ["Без труда", "Старый друг", "Вечером", "Над морем", "Я помню", "Кто рано", "В лесу"]
SAMPLING = {"max_new_tokens": 6, "do_sample": True}


@pytest.fixture
def config(tmp_path: Path) -> GenerateConfig:
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": index, "text": text} for index, text in enumerate(TEXTS)])
    return GenerateConfig(
        PROVERB, source, str(tmp_path / "out" / "out.jsonl"), generation=SAMPLING, batch_size=2, seed=5
    )


class TestOutput:
    def test_rows_with_their_answers(self, config: GenerateConfig) -> None:
        outcome = generate(config)
        assert (outcome.num_rows, outcome.num_before, outcome.bad) == (7, 0, [])
        served = bundled.load()
        expected = []
        for start in range(0, 7, 2):
            lines = range(start + 1, min(start + 2, 7) + 1)
            outputs = served.generate(
                TEXTS[start : start + 2], "proverb", seed=[(5 << 32) + line for line in lines], **SAMPLING
            )
            expected += [output.text for output in outputs]
        rows = read_jsonl(config.output)
        assert rows == [
            {"id": index, "text": text, "output": output}
            for index, (text, output) in enumerate(zip(TEXTS, expected, strict=True))
        ]
        assert len(set(expected)) == 7

    def test_classification(self, config: GenerateConfig, tmp_path: Path) -> None:
        config = replace(config, prompt=trained(tmp_path / "kind", "kind", KIND), generation={}, field_prefix="my_")
        generate(config)
        served = bundled.load()
        for row, text in zip(read_jsonl(config.output), TEXTS, strict=True):
            (output,) = served.classify(text, "kind", labels=list(bundled.LABELS))
            assert row["my_output"] == output.label
            assert row["my_label"] == {" стихи": "verse", " рассказ": "prose"}[output.label]
            scores = {"verse": output.probabilities[" стихи"], "prose": output.probabilities[" рассказ"]}
            assert row["my_scores"] == pytest.approx(scores, abs=1e-5)

    def test_columns_of_the_task(self, config: GenerateConfig, tmp_path: Path) -> None:
        task = task_of("proverb", objective="style", target="{text}", columns={"text": "начало"})
        table = tmp_path / "in.tsv"
        table.write_text("".join(f"{line}\n" for line in ["номер\tначало", "1\tБез труда", "2\tВечером"]))
        config = replace(config, input=str(table), prompt=trained(tmp_path / "prompt", "proverb", task))
        generate(config)
        assert [list(row) for row in read_jsonl(config.output)] == [["номер", "начало", "output"]] * 2

    def test_rows_without_text_for_a_prompt_without_fields(self, config: GenerateConfig, tmp_path: Path) -> None:
        source = write_jsonl(tmp_path / "bare.jsonl", [{"id": 1}, {"id": 2, "text": ""}])
        generate(replace(config, input=source))
        served = bundled.load()
        outputs = served.generate(["", ""], "proverb", seed=[(5 << 32) + 1, (5 << 32) + 2], **SAMPLING)
        assert [row["output"] for row in read_jsonl(config.output)] == [output.text for output in outputs]

    def test_several_sequences_make_a_list(self, config: GenerateConfig) -> None:
        generate(replace(config, generation={**SAMPLING, "num_return_sequences": 3}))
        for row in read_jsonl(config.output):
            assert len(row["output"]) == 3
            assert len(set(row["output"])) > 1

    def test_ensemble(self, config: GenerateConfig, tmp_path: Path) -> None:
        folder = ensemble_folder(tmp_path / "kinds", "kind", KIND)
        generate(replace(config, prompt=folder, generation={}))
        for row in read_jsonl(config.output):
            assert row["label"] in ("verse", "prose")
            assert sum(row["scores"].values()) == pytest.approx(1)

    def test_pipe(self, config: GenerateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        content = Path(config.input).read_bytes()
        writer = threading.Thread(target=lambda: pipe.write_bytes(content), daemon=True)
        writer.start()
        generate(replace(config, input=str(pipe), progress=True))
        writer.join()
        assert "7/?" in capsys.readouterr().err
        assert [row["text"] for row in read_jsonl(config.output)] == TEXTS
        with pytest.raises(CheckpointError, match="input="):
            generate(replace(config, input=str(pipe)))


class TestResuming:
    @pytest.fixture
    def whole(self, config: GenerateConfig) -> bytes:
        generate(config)
        return Path(config.output).read_bytes()

    def interrupt(self, config: GenerateConfig, content: bytes) -> None:
        """Leave what a killed run would have left."""
        Path(config.output).write_bytes(content)
        path = Path(f"{config.output}.run.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "num_lines": None}))

    def test_cut_anywhere(self, config: GenerateConfig, whole: bytes) -> None:
        lines = whole.splitlines(keepends=True)
        cases = {
            b"": 0,
            whole[:7]: 0,
            b"".join(lines[:3]): 2,
            b"".join(lines[:4]): 4,
            b"".join(lines[:4]) + lines[4][:-1]: 4,
            whole[:-1]: 6,
            whole: 6,
        }
        for content, num_kept in cases.items():
            self.interrupt(config, content)
            assert generate(config).num_before == num_kept
            assert Path(config.output).read_bytes() == whole

    def test_a_finished_run_is_left_alone(self, config: GenerateConfig, whole: bytes) -> None:
        changed = Path(config.output).stat().st_mtime_ns
        outcome = generate(config)
        assert (outcome.num_rows, outcome.num_before) == (7, 7)
        assert Path(config.output).stat().st_mtime_ns == changed

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("seed", {"seed": 6}),
            ("generation", {"generation": {**SAMPLING, "temperature": 0.7}}),
            ("batch_size", {"batch_size": 3}),
            ("field_prefix", {"field_prefix": "x_"}),
            ("prompt", {"prompt": str(bundled.PROMPTS["verse"])}),
            ("model", {"model": ServedModelConfig(dtype="bfloat16")}),
        ],
    )
    def test_another_run(self, config: GenerateConfig, whole: bytes, name: str, change: dict[str, Any]) -> None:
        self.interrupt(config, whole[:100])
        with pytest.raises(CheckpointError, match=f"{name}="):
            generate(replace(config, **change))
        assert Path(config.output).read_bytes() == whole[:100]

    def test_another_input(self, config: GenerateConfig, whole: bytes) -> None:
        self.interrupt(config, whole[:100])
        with Path(config.input).open("a") as file:
            file.write('{"text": "Ещё"}\n')
        with pytest.raises(CheckpointError, match="input="):
            generate(config)

    def test_skipped_rows_are_not_counted_twice(self, config: GenerateConfig, tmp_path: Path) -> None:
        long = {"text": "море " * 600}
        rows = [{"text": "Без труда"}, "{", long, {"text": "Вечером"}, {"text": "В лесу"}, long, {"text": "Я помню"}]
        config = replace(config, input=write_jsonl(tmp_path / "mixed.jsonl", rows), on_bad_row="skip")
        outcome = generate(config)
        assert [row.line for row in outcome.bad] == [2, 3, 6]
        assert "context" in outcome.bad[1].reason
        whole = Path(config.output).read_bytes()
        assert [row["text"] for row in read_jsonl(config.output)] == ["Без труда", "Вечером", "В лесу", "Я помню"]
        for num_lines, num_kept in ((1, 0), (2, 2), (3, 2)):
            self.interrupt(config, b"".join(whole.splitlines(keepends=True)[:num_lines]))
            assert generate(config).num_before == num_kept
            assert Path(config.output).read_bytes() == whole

    def test_killed(self, config: GenerateConfig, tmp_path: Path) -> None:
        rows = [{"text": text, "copy": copy} for copy in range(15) for text in TEXTS]
        config = replace(config, input=write_jsonl(tmp_path / "many.jsonl", rows), batch_size=4)
        generate(config)
        whole = Path(config.output).read_bytes()
        output = tmp_path / "killed.jsonl"
        command = [sys.executable, "-m", "ruprompt_fast.cli", "generate", "--prompt", PROVERB, "--model", "bundled"]
        command += ["--input", config.input, "--output", str(output), "--max_new_tokens", "6", "--do_sample", "true"]
        run = subprocess.Popen([*command, "--batch_size", "4", "--seed", "5"], stderr=subprocess.DEVNULL)
        wait_for(lambda: run.poll() is not None or (output.exists() and output.stat().st_size > 1000))
        run.send_signal(signal.SIGKILL)
        run.wait()
        part = output.read_bytes()
        assert 1000 < len(part) < len(whole)
        outcome = generate(replace(config, output=str(output)))
        assert 0 < outcome.num_before < 105
        assert output.read_bytes() == whole


class TestStreams:
    @pytest.mark.parametrize("reaches_stdout", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
    def test_standard_output_in_a_file(self, config: GenerateConfig, tmp_path: Path, reaches_stdout: str) -> None:
        generate(config)
        command = [sys.executable, "-m", "ruprompt_fast.cli", "generate", "--prompt", PROVERB, "--model", "bundled"]
        command += ["--input", config.input, "--output", reaches_stdout, "--max_new_tokens", "6"]
        command += ["--do_sample", "true", "--batch_size", "2", "--seed", "5"]
        with (tmp_path / "redirected").open("wb") as file:
            subprocess.run(command, stdout=file, stderr=subprocess.DEVNULL, check=True)
        assert (tmp_path / "redirected").read_bytes() == Path(config.output).read_bytes()
        assert os.path.exists("/dev/stdout")
        assert not os.path.exists("/dev/stdout.run.json")

    def test_a_pipe(self, config: GenerateConfig, tmp_path: Path) -> None:
        generate(config)
        pipe = tmp_path / "answers"
        os.mkfifo(pipe)
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
        reader.start()
        outcome = generate(replace(config, output=str(pipe)))
        reader.join()
        assert (outcome.num_rows, outcome.num_before) == (7, 0)
        assert received == [Path(config.output).read_bytes()]
        assert pipe.is_fifo()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["answers", "in.jsonl", "out"]

    def test_a_full_device(self, config: GenerateConfig) -> None:
        before = os.stat("/dev/full")
        with pytest.raises(FileWriteError, match="/dev/full: cannot be written: No space left"):
            generate(replace(config, output="/dev/full"))
        assert os.path.samestat(os.stat("/dev/full"), before)
        assert not os.path.exists("/dev/full.run.json")
        assert generate(replace(config, output="/dev/null")).num_rows == 7

    def test_a_full_disk(self, config: GenerateConfig, tmp_path: Path) -> None:
        rows = [{"text": text, "note": "длинно" * 500} for text in TEXTS]
        config = replace(config, input=write_jsonl(tmp_path / "long.jsonl", rows))
        generate(config)
        whole = Path(config.output).read_bytes()
        lines = whole.splitlines(keepends=True)
        room = len(b"".join(lines[:4])) + 5
        config = replace(config, output=str(Path(config.output).with_name("again.jsonl")))
        with no_room_after(room), pytest.raises(FileWriteError, match=r"again\.jsonl"):
            generate(config)
        assert Path(config.output).read_bytes() == b"".join(lines[:4])
        assert generate(config).num_before == 4
        assert Path(config.output).read_bytes() == whole


class TestRefusals:
    def refuse(self, config: GenerateConfig, error: type[RupromptError], match: str) -> None:
        with pytest.raises(error, match=match):
            generate(config)
        assert not Path(config.output).exists()

    def test_an_output_of_something_else(self, config: GenerateConfig) -> None:
        Path(config.output).parent.mkdir()
        Path(config.output).write_text("important\n")
        with pytest.raises(OutputExistsError, match="Name another output"):
            generate(config)
        assert Path(config.output).read_text() == "important\n"

    def test_an_output_that_is_being_written(self, config: GenerateConfig) -> None:
        with owning_file(Path(config.output)):
            with pytest.raises(OutputInUseError, match=f"process {os.getpid()} on "):
                generate(config)
            assert len(list(Path(config.output).parent.iterdir())) == 1  # the lock alone
        generate(config)

    def test_a_finished_output_that_was_changed(self, config: GenerateConfig) -> None:
        generate(config)
        whole = Path(config.output).read_bytes()
        for content in (whole[:-1], whole + b"{}\n"):
            Path(config.output).write_bytes(content)
            with pytest.raises(CheckpointError, match="expected the 7 lines.*found [68]"):
                generate(config)
            assert Path(config.output).read_bytes() == content

    def test_a_description_that_is_something_else(self, config: GenerateConfig) -> None:
        path = Path(f"{config.output}.run.json")
        path.parent.mkdir()
        path.write_text('{"important": 1}')
        with pytest.raises(CheckpointError, match="description of a run"):
            generate(config)
        assert path.read_text() == '{"important": 1}'

    def test_broken_rows(self, config: GenerateConfig, tmp_path: Path) -> None:
        rows = [{"text": "Вечером"}, "не JSON", {"txt": "Вечером"}, '{"text": "\\ud800"}', {"text": 5, "output": 1}]
        config = replace(
            config, input=write_jsonl(tmp_path / "broken.jsonl", rows), prompt=str(bundled.PROMPTS["kind"])
        )
        self.refuse(
            config, TrainingDataError, r"4 of 5 rows.*broken\.jsonl:2 is not JSON.*:3 has no value.*:4 .*1 more"
        )
        self.refuse(
            replace(config, input=write_jsonl(tmp_path / "taken.jsonl", [{"text": "а", "output": "б"}])),
            TrainingDataError,
            "field 'output'.*field_prefix",
        )
        self.refuse(replace(config, input=write_jsonl(tmp_path / "empty.jsonl", [])), TrainingDataError, "none")

    def test_a_row_that_is_too_long(self, config: GenerateConfig, tmp_path: Path) -> None:
        rows = [{"text": "Вечером"}, {"text": "Я помню"}, {"text": "море " * 600}]
        config = replace(config, input=write_jsonl(tmp_path / "long.jsonl", rows))
        with pytest.raises(ContextLengthError, match=r"long\.jsonl:3 has \d+ tokens.*on_bad_row=skip"):
            generate(config)
        assert len(read_jsonl(config.output)) == 2
        assert generate(replace(config, on_bad_row="skip")).num_before == 2
        config = replace(
            config, output=str(tmp_path / "first.jsonl"), input=write_jsonl(tmp_path / "1.jsonl", rows[2:])
        )
        self.refuse(config, ContextLengthError, r"1\.jsonl:1 has")
        assert not list(tmp_path.glob("first*"))

    def test_other_files(self, config: GenerateConfig, tmp_path: Path) -> None:
        self.refuse(replace(config, input=str(tmp_path / "none.jsonl")), TrainingDataError, "no such file")
        (tmp_path / "in.md").write_text("Вечером")
        self.refuse(replace(config, input=str(tmp_path / "in.md")), TrainingDataError, r"suffix '\.md'")

    def test_settings(self, config: GenerateConfig) -> None:
        self.refuse(replace(config, generation={"max_new_tokns": 5}), UnknownArgumentError, "max_new_tokens")
        self.refuse(replace(config, generation={"penalty_alpha": 0.6}), SettingError, "penalty_alpha")
        self.refuse(replace(config, generation={"seed": 5}), ConfigError, "seed=")
        for change in ({"batch_size": 0}, {"seed": -1}, {"seed": 2**31}):
            with pytest.raises(ConfigError, match=next(iter(change))):
                replace(config, **change)

    def test_a_task_of_another_prompt(self, config: GenerateConfig, tmp_path: Path) -> None:
        task = Task("<P*3>{text}", target=" {answer}")
        self.refuse(replace(config, prompt=trained(tmp_path / "prompt", "proverb", task)), TaskError, r"<P\*3>")

    def test_a_prompt_of_another_model(self, config: GenerateConfig, tmp_path: Path) -> None:
        folder = Path(trained(tmp_path / "prompt", "proverb", task_of("proverb", objective="style")))
        content = json.loads((folder / "prompt.json").read_text())
        numbers = content["base_model"]["fingerprint"]
        content["base_model"]["fingerprint"] = "".join(reversed(re.findall("....", numbers)))
        (folder / "prompt.json").write_text(json.dumps(content))
        self.refuse(replace(config, prompt=str(folder)), PromptMismatchError, "another")


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".json", ".parquet"])
def test_other_kinds_of_files_are_answered(suffix: str, tmp_path: Path) -> None:
    path, texts = tmp_path / f"in{suffix}", ["Без труда", "Вечером"]
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    elif suffix == ".json":
        path.write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")
    else:
        content = "".join(f"{text}\n" for text in texts).encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    settings = {"max_new_tokens": 4, "do_sample": False}
    config = GenerateConfig(
        str(bundled.PROMPTS["proverb"]), str(path), str(tmp_path / "out.jsonl"), generation=settings
    )
    generate(config)
    rows = read_jsonl(config.output)
    assert [row["text"] for row in rows] == texts
    outputs = bundled.load().generate(texts, "proverb", **settings)
    assert [row["output"] for row in rows] == [output.text for output in outputs]


def test_the_lines_of_a_text_file_are_the_only_field(tmp_path: Path) -> None:
    prompt = trained(tmp_path / "prompt", "kind", task_of("kind", target="{end}", columns={"text": "begin"}))
    (tmp_path / "in.txt").write_text("Без труда\n", encoding="utf-8")
    config = GenerateConfig(prompt, str(tmp_path / "in.txt"), str(tmp_path / "out.jsonl"))
    generate(replace(config, generation={"max_new_tokens": 2}))
    assert [list(row) for row in read_jsonl(config.output)] == [["begin", "output"]]


class TestModel:
    """Which model answers where the configuration names none."""

    def test_the_one_beside_the_prompt(self, config: GenerateConfig, tmp_path: Path) -> None:
        folder = tmp_path / "prompt"
        shutil.copytree(PROVERB, folder)
        trained_on = ModelConfig("/no/model/here", "bfloat16")
        run = TrainConfig(task_of("proverb", target="{text}"), DataConfig("rows.jsonl"), "prompt", trained_on)
        (folder / "config.yaml").write_text(config_yaml(run), encoding="utf-8")
        found = find_model(ServedModelConfig(device="cpu"), str(folder), Prompt.from_pretrained(folder))
        assert found == replace(trained_on, device="cpu")
        with pytest.raises(ConfigError, match="/no/model/here"):
            generate(replace(config, prompt=str(folder)))
        found = find_model(ServedModelConfig("bundled"), str(folder), Prompt.from_pretrained(folder))
        assert found == ModelConfig("bundled", "float32")

    def test_the_one_that_the_prompt_names(self) -> None:
        prompt = Prompt.from_pretrained(PROVERB)
        expected = ModelConfig("bundled", quantization="int8")
        assert find_model(ServedModelConfig(quantization="int8"), PROVERB, prompt) == expected
        prompt.config.pretrained_model_name = "ai-forever/rugpt3small_based_on_gpt2"
        name = "ai-forever/rugpt3small_based_on_gpt2"
        assert find_model(ServedModelConfig(), "x", prompt) == ModelConfig(name, "float32")
        prompt.config.pretrained_model_name = ""
        with pytest.raises(ConfigError, match="--model NAME"):
            find_model(ServedModelConfig(), "x", prompt)

    def test_quantized(self, config: GenerateConfig) -> None:
        generate(replace(config, model=ServedModelConfig(quantization="int8")))
        served = FastPromptModel.from_pretrained(bundled.MODEL, {"proverb": PROVERB}, quantization="int8")
        seeds = [(5 << 32) + line for line in (1, 2)]
        expected = served.generate(TEXTS[:2], "proverb", seed=seeds, **SAMPLING)
        assert [row["output"] for row in read_jsonl(config.output)[:2]] == [output.text for output in expected]
