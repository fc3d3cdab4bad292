"""Importing the package imports nothing that a program with torch and transformers does not import anyway."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

REPORT = """
import json, sys
print(json.dumps(sorted(sys.modules)))
"""
BASELINE = "import torch, transformers"
OURS = "import ruprompt_fast"
PUBLIC_NAMES = "import ruprompt_fast\nfor name in ruprompt_fast.__all__: getattr(ruprompt_fast, name)"
# What the public names are built on in transformers, used in the same way without this package.
PUBLIC_BASELINE = (
    "import torch, transformers, transformers.pipelines, huggingface_hub, safetensors.torch\n"
    "import transformers.masking_utils, transformers.modeling_layers, transformers.pipelines.text_generation\n"
    "transformers.GenerationConfig, transformers.PreTrainedModel, transformers.TrainerCallback, transformers.Trainer\n"
    "transformers.StoppingCriteria, transformers.TextStreamer"
)
OWN = {"ruprompt_fast", "kernels"}
OPTIONAL = {"triton", "datasets", "accelerate", "rich", "pandas", "pyarrow", "torch._dynamo", "torch._inductor"}


def after(code: str) -> set[str]:
    """The modules that a fresh interpreter ends with when it runs ``code``."""
    command = [sys.executable, "-c", code + REPORT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("ours", "baseline"), [(OURS, BASELINE), (PUBLIC_NAMES, PUBLIC_BASELINE)])
def test_adds_nothing_to_torch_and_transformers(ours: str, baseline: str) -> None:
    added = after(f"{baseline}\n{ours}") - after(baseline)
    assert {name for name in added if name.split(".")[0] not in OWN} == set()


def test_the_operators_import_nothing_optional() -> None:
    assert not after("import ruprompt_fast.ops") & (OPTIONAL | {"transformers"})


def test_the_operators_are_registered_by_the_package() -> None:
    code = "import torch, ruprompt_fast; torch.ops.ruprompt_fast.splice, torch.ops.ruprompt_fast.resolve_markers"
    assert "transformers.pipelines" not in after(code)


@pytest.mark.parametrize("modules", ["torch, ruprompt_fast", "ruprompt_fast, torch"])
def test_the_operators_are_registered_in_either_order(modules: str) -> None:
    after(f"import {modules}; torch.ops.ruprompt_fast.splice")


def test_the_package_alone_imports_no_torch() -> None:
    assert "torch" not in after("import ruprompt_fast.errors, ruprompt_fast.training.task")
