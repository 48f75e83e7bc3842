# Everything runs inside .venv, which `make setup` builds once and rebuilds only when the dependencies change.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
# Set in many containers; then every process compiles torch and transformers anew, which takes longer than most commands do.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow test-faults test-lower-bounds lint docs links bench lock clean help

help:  ## show what can be made
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(STAMP)  ## make .venv with what the demo and the tests need (a second call does nothing)

$(STAMP): requirements.lock pyproject.toml
	@echo "setup: installing into .venv (about two minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@# Proves that what was installed loads, and keeps what Python compiles of it for the first command.
	@$(BIN)/python -c "import distributed, faiss, matplotlib.pyplot, numba, polars, sentence_transformers, timm, torchvision"
	@touch $@

demo: setup  ## graphs, SimCLR and X-CLR on drawn scenes, and runs/demo/report.html
	@$(BIN)/python -m pipelines.demo

test: setup  ## the default suite
	@$(BIN)/python -m pytest tests

test-slow: setup  ## what takes long: the wheel, examples, the README, the map in a browser, more kills
	@$(BIN)/python -m pytest tests -m slow

test-faults: setup  ## hundreds of random kills (slow)
	@$(BIN)/python -m pytest tests -m faults

test-lower-bounds: setup  ## the oldest versions that pyproject.toml allows, in an environment of their own (slow)
	@UV=$(BIN)/uv PYTHON=$(BIN)/python .ci/lower-bounds

lint: setup  ## ruff, mypy, import-linter, deptry, vulture
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/deptry .
	@$(BIN)/vulture

docs: setup  ## the documentation as a site, in docs/_build
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

links: setup  ## ask every address outside that the documentation links to
	@$(BIN)/python -m sphinx -q -b linkcheck docs docs/_build/links

bench: setup  ## every benchmark's table at a small size
	@$(BIN)/python -m benchmarks

lock: setup  ## pin the newest versions that fit pyproject.toml
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-header --no-annotate --upgrade --quiet --output-file requirements.lock

clean:  ## remove .venv and caches (graphs/ and runs/ stay)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache *.egg-info
