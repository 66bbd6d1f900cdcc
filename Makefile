# Every target does its own set-up: Python 3.11 or newer and make are all that a machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test check bench faults
.DEFAULT_GOAL := help

help:  ## Say what each target does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed. Name one: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(STAMP)  ## From drawn images and texts to a fitted head and its report, offline (two minutes)
	$(BIN)/python cli.py demo

test: $(STAMP)  ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

faults: $(STAMP)  ## Kill, cut off, fill up, interrupt and race real extractions, and count (ten minutes)
	$(BIN)/python -m tests.faults

check: $(STAMP)  ## Lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## Speed and memory beside their peers, as ratios
	$(BIN)/python -m benchmarks
