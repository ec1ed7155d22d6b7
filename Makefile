.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

DATA ?= data

.PHONY: help demo live-demo peers test mutants check format clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv/run.stamp ## Set up, then four simulated banks publish one synthetic table
	$(BIN)/python simulations/run.py --sites 4 --evaluation quick

live-demo: .venv/run.stamp ## Set up, then four sites as processes of their own over TLS, from keys to a published table
	./deploy/proxy/install.sh
	$(BIN)/python simulations/live.py --sites 4

peers: .venv/run.stamp .venv-peers/dpmm.stamp .venv-peers/mostlyai.stamp .venv-peers/smartnoise.stamp ## Set up, then privshare beside synthesizers of others: make peers DATA=folder
	$(BIN)/python -m simulations.peers.compare $(DATA)

test: .venv/dev.stamp ## Set up, then all tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadscope --no-loadscope-reorder

mutants: .venv/dev.stamp ## Break privacy in a copy of the code, in each of many ways: a test must see it
	$(BIN)/python -m tests.mutants.run

check: .venv/dev.stamp ## Formatting, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev.stamp ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the environment and caches; runs stay
	rm -rf .venv .venv-peers build *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Each peer has an environment of its own: they need versions of numpy and pandas that nothing else here does.
.venv-peers/%.stamp: simulations/peers/%.txt
	$(PYTHON) -m venv .venv-peers/$*
	.venv-peers/$*/bin/python -m pip --disable-pip-version-check --quiet install --requirement $<
	.venv-peers/$*/bin/python -m pip --quiet uninstall --yes torchvision torchaudio # unused, and may not fit the torch
	touch $@

# torch first: a release that is not pinned may bring gigabytes for hardware that is not there.
.venv/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or 3.12 is needed" if not (3, 11) <= sys.version_info < (3, 13) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv, 1.7 GB: a few minutes without a word"
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

.venv/dev.stamp: .venv/run.stamp
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@
