# `make quickstart` and `make test` do all the set-up that they need. `make help` lists the rest.
#
# Variables: PYTHON (which interpreter makes .venv), PIP_ARGS (for every pip install), TORCH_ARGS
# (for torch's alone: an --index-url of CPU wheels, say), PYTEST_ARGS, ENGINE (docker or podman), IMAGE.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep -m1 '^torch==' constraints.txt)
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' toolkit/__init__.py)
PIP = $(BIN)/python -m pip --disable-pip-version-check -qq
PYTEST_ARGS ?= -q -n 2 --dist loadfile
ENGINE ?= docker
IMAGE ?= megatron-toolkit

# megatron-core has wheels for these.
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	"$$p" -c '$(SUITABLE)' 2>/dev/null && echo "$$p" && break; done)

.PHONY: help
help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: quickstart
quickstart: $(STAMP) ## From raw text to an aligned model, on this machine's CPU: configs/mini.yaml
	@$(BIN)/toolkit run configs/mini.yaml

.PHONY: test
test: $(STAMP) ## Run the tests, but for those that need a scheduler
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slurm and not k8s"

.PHONY: test-slurm
test-slurm: $(STAMP) ## Run the tests on a real Slurm: the one here, or a small one that root may start
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -n 3 tests/slurm

.PHONY: lint
lint: $(STAMP) ## Check format, code, types, the direction of imports, and the pre-commit file
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/pre-commit validate-config

.PHONY: format
format: $(STAMP) ## Format the code and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: schema
schema: $(STAMP) ## Write toolkit.schema.json and cluster.schema.json, by which editors complete and check
	@$(BIN)/toolkit schema pipeline > toolkit.schema.json.tmp
	@$(BIN)/toolkit schema cluster > cluster.schema.json.tmp
	@mv toolkit.schema.json.tmp toolkit.schema.json
	@mv cluster.schema.json.tmp cluster.schema.json
	@echo "toolkit.schema.json and cluster.schema.json written"

.PHONY: install
install: $(STAMP) ## Make .venv with everything in it (the targets above do this themselves)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { \
		echo "No Python that fits: 3.11, 3.12 or 3.13 with its venv module is needed." >&2; \
		echo "Here is: $$(command -v python3 > /dev/null && python3 --version || echo no python3)" >&2; \
		echo "On Debian and Ubuntu: apt-get install python3 python3-venv; or name one: make PYTHON=..." >&2; \
		exit 1; }
	@test -x $(BIN)/pip || { \
		echo "Making $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -c '$(SUITABLE)' && $(PYTHON) -m venv $(VENV) || { \
			rm -rf $(VENV); \
			echo "$(PYTHON) can't make it: Python 3.11 to 3.13 with its venv module is needed." >&2; \
			exit 1; }; }
	@echo "Installing $(TORCH) (1 of 2)"
	@$(PIP) install $(PIP_ARGS) $(TORCH_ARGS) $(TORCH)
	@echo "Installing megatron-core, transformers, trl and the rest (2 of 2; some minutes)"
	@$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[data,train,slurm,track,test,dev]'
	@touch $@

.PHONY: image
image: ## Build the GPU image
	$(ENGINE) build --tag $(IMAGE):$(VERSION) --build-arg VERSION=$(VERSION) .

.PHONY: image-cpu
image-cpu: ## Build the CPU image
	$(ENGINE) build --tag $(IMAGE):$(VERSION)-cpu --build-arg VERSION=$(VERSION) --file docker/cpu.Dockerfile .

.PHONY: clean
clean: ## Remove .venv, caches and builds; runs/ stays
	@rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache toolkit.schema.json cluster.schema.json
	@find toolkit tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
