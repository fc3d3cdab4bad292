# make demo    a mixed batch of soft prompts on the bundled model
# make test    the whole test suite
# make lint    formatting, lint, types, the stub of the extension
# make bench   timings against plain PyTorch and against ruPrompts' algorithm
# make wheel   the wheel and the source distribution, in dist/
#
# Each sets up what it needs in .venv on its first run. PYTHON names the interpreter that the environment is made from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/*)

# Two test processes with one thread each use two cores better than one process with two.
PYTEST_WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo test lint bench wheel clean

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

bench: .make/dev
	$(BIN)/pytest bench --benchmark-only

wheel: .make/dev
	$(BIN)/python -m build

clean:
	rm -rf .make build dist *.egg-info ruprompt_fast/*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

.make/package: $(SOURCES) | $(BIN)/python
	$(PIP_INSTALL) -e .
	mkdir -p .make && touch $@

.make/dev: $(SOURCES) | $(BIN)/python
	$(PIP_INSTALL) -e ".[dev]"
	mkdir -p .make && touch $@ .make/package
