# Everything a person or a machine needs is here: each target sets up what it uses.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# The first Python of these that is 3.11 or later; `make PYTHON=/path/to/python run` names another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
UP ?=
CHAOS ?=
BENCH ?=
UPLOADS := examples/pictures/buckets/uploads

.PHONY: help run demo test check unit conformance e2e cluster services bench chaos fmt lock clean python

help: ## Show the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(VENV)/.run ## Set up, and start the platform with the pictures example
	@test -d $(UPLOADS) || $(BIN)/python examples/pictures/make_pictures.py --into $(UPLOADS) --count 6 --output json >/dev/null
	@echo "Pictures that you put into $(UPLOADS) become events; six are there to begin with."
	@exec $(BIN)/penstock up --apply examples/pictures/manifests $(UP)

demo: $(VENV)/.run ## Set up, and run the pictures example scripted, every result checked
	@$(BIN)/python -m examples.pictures.demo

test: check unit conformance e2e cluster ## Set up, and run everything that must hold
	@$(BIN)/python -m tests.support.netns -- $(BIN)/python -m tests.support.services --missing

check: $(VENV)/.dev ## Format, lint, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

unit: $(VENV)/.dev ## Pure logic, virtual time: seconds
	$(BIN)/pytest tests/unit

conformance: $(VENV)/.dev ## One suite per port, run on every adapter and the fake
	$(BIN)/pytest tests/conformance

e2e: $(VENV)/.dev ## Real processes, real clients, kill -9
	$(BIN)/pytest tests/e2e

cluster: $(VENV)/.dev ## A real Kubernetes control plane, pods as local processes, in a network of their own
	$(BIN)/python -m tests.support.netns -- $(BIN)/pytest tests/cluster

services: $(VENV)/.dev ## Start the servers that tests and `--broker-log` can use, and print their variables
	@$(BIN)/python -m tests.support.services

bench: $(VENV)/.run ## The benchmarks: JSON on each one's last line (BENCH=--quick for a short form)
	@set -e; for each in gateway broker ingest filters fanout isolation coldstart; do \
		echo "$(BIN)/python -m bench $$each $(BENCH)"; $(BIN)/python -m bench $$each $(BENCH); done

fmt: $(VENV)/.dev ## Format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

chaos: $(VENV)/.dev ## 200 times kill -9 of the broker under load, held to an account of every event (CHAOS=options)
	$(BIN)/python -m tests.support.chaos $(CHAOS)

PIN := --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-header --quiet
lock: $(VENV)/.dev ## Pin the dependencies anew
	$(BIN)/pip-compile $(PIN) --upgrade --extra examples --extra redis --extra kafka --extra cluster -o requirements.lock pyproject.toml
	$(BIN)/pip-compile $(PIN) --upgrade --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

clean: ## Remove the virtual environment, caches and the platform's data
	rm -rf $(VENV) .penstock build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later with venv was found. On Debian: apt-get install python3 python3-venv"; exit 1; }

$(VENV)/bin/python: | python
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing the locked dependencies and penstock ..."
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	@echo "Installing the locked tools for tests ..."
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@
