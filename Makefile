# Everything runs inside .venv, which `make setup` makes from the lock. No target needs an activated environment.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
SMOOTH_HOME ?= .smooth
STAMP := .venv/.smooth-setup
CHOICES = SMOOTH_BIND="$${BIND:-$${SMOOTH_BIND:-}}" SMOOTH_WORKERS="$${WORKERS:-$${SMOOTH_WORKERS:-}}"
.PHONY: setup demo test lint bench cluster-up cluster-down cluster-status promote rollback backup restore clean help

setup: $(STAMP)  ## Make .venv with every locked version (once; minutes, 7 GB)

# --no-deps: the lock is complete; img2dataset would pull in `dataclasses`, a backport that breaks Prefect, and gradio
# an older Pillow than the rest runs with.
$(STAMP): infra/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 3))' || \
	  { echo "error: Smooth needs Python 3.11.3 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); use make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "setting up .venv from infra/requirements.lock: some minutes, 7 GB"
	@begin=$$SECONDS; \
	  $(PYTHON) -m venv .venv; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r infra/requirements.lock; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	  touch $(STAMP); echo "set up in $$((SECONDS - begin)) s"

demo: cluster-up  ## Run the whole chain on this machine and show base against smooth
	@$(BIN)/python -m flows.demo

test: setup  ## Run all tests, with real Ray, Prefect, MLflow and HTTP
	$(BIN)/python -m pytest --numprocesses=2 --no-loadscope-reorder

lint: setup  ## Check style, types, the rule of imports, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layering.py
	$(BIN)/python -m infra.audit

bench: setup  ## Run the benchmarks (long; keep the machine quiet)
	@for script in tests/benchmarks/bench_*.py; do \
	  module=$${script%.py}; echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python -m "$${module//\//.}"; done

cluster-up: setup  ## Start Ray, MLflow and Prefect on loopback (BIND=0.0.0.0: for others, too; WORKERS=4: more Ray nodes)
	@$(CHOICES) $(BIN)/python -m infra.local up

cluster-down:  ## Stop what cluster-up started
	@[[ ! -f $(STAMP) ]] || $(BIN)/python -m infra.local down

cluster-status: setup  ## Tell the health of each service (JSON=1: for programs)
	@$(BIN)/python -m infra.local status $(if $(JSON),--json)

backup: setup  ## Save all runs, models and artifacts while the cluster runs (TO=folder)
	@$(BIN)/python -m infra.backup save $${TO:+--to "$$TO"}

restore: setup  ## Bring a backup into an empty home (FROM=folder)
	@[[ -n "$${FROM:-}" ]] || { echo "error: which backup? make restore FROM=folder" >&2; exit 2; }
	@$(BIN)/python -m infra.backup restore --from "$$FROM"

# As JSON, so that a number stays text, and quotes in WHY stay what they are.
PARAMETERS = $(BIN)/python -c 'import json, sys; print(json.dumps({k: v for k, _, v in (a.partition("=") for a in sys.argv[1:]) if v}))'
RUN = $(BIN)/prefect --no-prompt deployment run --watch
ifeq ($(origin WHO), undefined)
WHO := $(shell id -un)
endif
# Unexpanded, so that a $$ stays one; and a VERSION that happens to be in the environment is not meant.
override export WHY := $(value WHY)
override export WHO := $(value WHO)
override export VERSION := $(if $(filter command line,$(origin VERSION)),$(value VERSION))

promote: setup  ## VERSION=number|alias [WHY=text]: put it into production if it passes the gate
	@[[ -n "$$VERSION" ]] || { echo "error: which one? make promote VERSION=candidate, or a number" >&2; exit 2; }
	@$(RUN) smooth-promote/production --params "$$($(PARAMETERS) version="$$VERSION" why="$$WHY" who="$$WHO")"

rollback: setup  ## [VERSION=number] [WHY=text]: put back what was in production before
	@$(RUN) smooth-promote/rollback --params "$$($(PARAMETERS) version="$$VERSION" why="$$WHY" who="$$WHO")"

clean: cluster-down  ## Stop the cluster; remove caches, artifacts and databases (not .venv)
	@rm -rf "$(SMOOTH_HOME)" build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find flows infra smooth tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
