# BitingLip. `make help` lists the targets.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# On a machine with a GPU: where pip finds the torch build for it, e.g. PyTorch's own index for a CUDA or ROCm version.
TORCH_INDEX_URL ?=

.DEFAULT_GOAL := help
.PHONY: help setup nats-server demo up test lint fmt type fast faults bench docs clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.done ## Make the environment (.venv) with everything in it

$(VENV)/.done: pyproject.toml constraints.txt
	@echo "making the environment in $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first, and alone: else pip may bring gigabytes of CUDA that nobody asked for.
	@$(PIP) install -c constraints.txt $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch
	@$(PIP) install -c constraints.txt -e '.[worker,dev]'
	@touch $@

nats-server: setup ## Find nats-server, or fetch it into the user's cache
	@$(BIN)/python -m bitinglip.cli.natsserver

demo: setup nats-server ## The main job on an embedded cluster, from submission to result, then stop
	@$(BIN)/python -m scripts.demo

up: setup nats-server ## The same cluster, kept running until Ctrl-C
	@$(BIN)/python -m scripts.demo --keep

test: setup nats-server lint type ## All that CI does: lint, types, tests
	@$(BIN)/python -m pytest -q

fast: setup ## The tests of the pure core alone
	@$(BIN)/python -m pytest -q tests/unit

faults: setup nats-server ## The long runs of faults, on one server and on three (FAULTS_TASKS, FAULTS_SECONDS, FAULTS_SEED), and the slow tests of them
	@FAULTS_SERVERS=1 $(BIN)/python -m tests.faults.harness
	@FAULTS_SERVERS=3 $(BIN)/python -m tests.faults.harness
	@$(BIN)/python -m pytest -q -m faults tests/faults

lint: setup ## Style, the dependency rule, spelling, generated docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports --config importlinter.ini > .lint-imports.log || { cat .lint-imports.log; exit 1; }
	@$(BIN)/codespell bitinglip tests scripts benchmarks docs README.md CHANGELOG.md
	@$(BIN)/python scripts/lint_tests.py
	@$(BIN)/python -m scripts.reference --check
	@$(BIN)/python scripts/shape.py

fmt: setup ## Format the code
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

type: setup ## Check the types
	@$(BIN)/pyright

bench: setup nats-server ## Measure this machine and print the table of benchmarks/README.md
	@$(BIN)/python -m benchmarks

docs: setup ## Write the generated reference pages anew
	@$(BIN)/python -m scripts.reference

clean: ## Remove what the other targets made
	rm -rf $(VENV) .lint-imports.log .pytest_cache .ruff_cache .hypothesis .import_linter_cache
