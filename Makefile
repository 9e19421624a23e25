# graftwork: everything from nothing but python3 (3.11 or newer) and make.
#
#   make demo    set up, then run the main job on real pretrained weights
#   make test    set up, then run the tests
#
# Another interpreter: `make test PYTHON=python3.12`. A torch build of your own (CPU only, a certain CUDA): install
# torch into .venv first, or point pip at it by pip's usual environment variables; the pinned version is kept.

PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
ARGS    ?=

BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.graftwork-ready
DOCS  := $(VENV)/.graftwork-docs

# Nothing below needs a network once the environment stands.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# One thread a worker: as many workers as WORKERS says share the cores, and results do not depend on how many.
PYTEST  := $(OFFLINE) OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
# An int is a float where annotations are read, as PEP 484 has it.
CHECKER := beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-slow test-typed coverage check format-check lint types imports \
	import-floor budgets fix docs docs-serve bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("graftwork needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12" % v[:2])'
	@test -x $(BIN)/python || echo "setting up $(VENV) (once, some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: is the venv module of your Python installed?"; exit 1; }
	@# torch by itself and first: an open range could resolve to another version and gigabytes of GPU libraries
	@$(PIP) torch==2.13.0
	@# the build backend too at its pinned version, hence no build isolation
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation -e '.[control,demo,dev,images,int8,molecules,tensorboard,transport]'
	@touch $@

$(DOCS): $(READY)
	@$(PIP) --no-build-isolation -e '.[docs]'
	@touch $@

setup: $(READY) ## create .venv with everything pinned

demo: $(READY) ## run the main job (offline; ARGS="..." are passed on)
	@$(OFFLINE) $(BIN)/graftwork demo $(ARGS)

test: $(READY) ## run the fast tests and the docstring examples
	@$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(READY) ## run only the slow tests
	@$(PYTEST) -m slow $(ARGS)

test-all: $(READY) ## run all tests
	@$(PYTEST) $(ARGS)

test-typed: $(READY) ## run the fast tests with every annotation checked at run time
	@$(PYTEST) -m "not slow" "--jaxtyping-packages=graftwork,$(CHECKER)" $(ARGS)

coverage: $(READY) ## run all tests and hold the coverage gate
	@$(PYTEST) --cov --cov-report=term $(ARGS)

check: format-check lint types imports import-floor budgets ## format, lint, types, imports, import floor, budgets

format-check: $(READY)
	@$(BIN)/ruff format --check .

lint: $(READY)
	@$(BIN)/ruff check .

types: $(READY)
	@$(BIN)/mypy

imports: $(READY)
	@$(BIN)/lint-imports --no-logo

import-floor: $(READY)
	@$(BIN)/python scripts/import_floor.py

budgets: $(READY)
	@$(BIN)/python scripts/budgets.py $(ARGS)

fix: $(READY) ## format and mend what the linter can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(DOCS) ## build the documentation into site/, strictly
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(DOCS) ## serve the documentation while writing
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench: $(READY) ## run every script of benchmarks/
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(OFFLINE) $(BIN)/python "$$script" $(ARGS); done

clean: ## remove the environment, caches and the built documentation
	rm -rf $(VENV) .cache .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache htmlcov site build dist
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
