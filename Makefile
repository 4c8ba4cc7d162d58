# Everything runs in its own virtual environment, .build/venv, made on first use.
#
#   PYTHON       the Python to make it with, 3.11 or newer                                 make test PYTHON=python3.12
#   TORCH_INDEX  where torch comes from; on Linux the plain package brings CUDA (gigabytes). Without an Nvidia GPU:
#                                                  make test TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=

VENV := .build/venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
DEV := $(VENV)/.dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help quickstart test proof lint docs clean

help:  ## show this
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

quickstart: $(BASE)  ## base model → adapted → fine-tuned → evaluated, offline, on a CPU (runs/quickstart)
	@$(BIN)/posttrain quickstart

test: lint  ## lint, then the whole test suite
	$(BIN)/python -m pytest

proof: $(DEV)  ## what takes too long for every test run: 10,000 cases of bad luck
	$(BIN)/python -m tests.fuzz --cases 10000 --result .build/fuzz.json

lint: $(DEV)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(BASE)  ## write the reference pages that are made from the code
	$(BIN)/python docs/generate.py

clean:  ## remove the virtual environment and caches; runs stay
	rm -rf .build .pytest_cache .ruff_cache .hypothesis
	find src tests docs examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(BASE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; give one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) (once; takes minutes)"
	@$(PYTHON) -m venv $(VENV) || { echo "needs Python's venv module; on Debian: apt install python3-venv" >&2; exit 1; }
ifneq ($(TORCH_INDEX),)
	@$(PIP) --index-url $(TORCH_INDEX) $(TORCH)
endif
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(DEV): $(BASE)
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@
