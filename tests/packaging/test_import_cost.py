"""Importing the package costs no more than importing torch and transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

REPORT = """
import json, resource, sys
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": usage.ru_utime + usage.ru_stime, "modules": sorted(sys.modules)}))
"""
BASELINE = "import torch, transformers"
OURS = "import ruprompt_fast"
PUBLIC_NAMES = "import ruprompt_fast\nfor name in ruprompt_fast.__all__: getattr(ruprompt_fast, name)"
# What the public names are built on in transformers, used in the same way without this package.
PUBLIC_BASELINE = (
    "import torch, transformers, transformers.pipelines, huggingface_hub, safetensors.torch\n"
    "import transformers.masking_utils, transformers.modeling_layers, transformers.pipelines.text_generation\n"
    "transformers.GenerationConfig, transformers.PreTrainedModel, transformers.TrainerCallback, transformers.Trainer"
)
OPTIONAL = {"triton", "datasets", "accelerate", "rich", "pandas", "pyarrow", "torch._dynamo", "torch._inductor"}


def after(code: str) -> dict:
    """Processor seconds of a fresh interpreter that runs ``code``, and the modules it ends with."""
    command = [sys.executable, "-c", code + REPORT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *printed, report = result.stdout.splitlines()
    return {**json.loads(report), "between": float(printed[-1]) if printed else 0.0}


@pytest.mark.parametrize(("ours", "baseline"), [(OURS, BASELINE), (PUBLIC_NAMES, PUBLIC_BASELINE)])
def test_adds_little_to_torch_and_transformers(ours: str, baseline: str) -> None:
    # One process imports both, one behind the other, so that a slow moment of the machine falls on both.
    measured = f"import time\n{baseline}\nbetween = time.process_time()\n{ours}\nprint(between)\n"
    rounds = [after(measured) for _ in range(3)]
    share = min((one["seconds"] - one["between"]) / one["between"] for one in rounds)
    assert share <= 0.1, f"the package adds {share:.2f} of the processor time that torch and transformers take"


def test_the_operators_import_nothing_optional() -> None:
    modules = set(after("import ruprompt_fast.ops")["modules"])
    assert not modules & (OPTIONAL | {"transformers"})


def test_the_operators_are_registered_by_the_package() -> None:
    code = "import torch, ruprompt_fast; torch.ops.ruprompt_fast.splice, torch.ops.ruprompt_fast.resolve_markers"
    assert "transformers.pipelines" not in after(code)["modules"]


@pytest.mark.parametrize("modules", ["torch, ruprompt_fast", "ruprompt_fast, torch"])
def test_the_operators_are_registered_in_either_order(modules: str) -> None:
    after(f"import {modules}; torch.ops.ruprompt_fast.splice")


def test_the_package_alone_imports_no_torch() -> None:
    assert "torch" not in after("import ruprompt_fast.errors, ruprompt_fast.training.task")["modules"]
