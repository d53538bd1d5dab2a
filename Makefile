PYTHON  ?= python3
RECIPE  ?= agents/brax/hopper/eggroll.toml
OUT     ?= runs/hopper
WORKERS ?= 2
WHEELS  ?= wheels
GPU_PYTHON ?= 3.12
ARGS    ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
SUITES := $(VENV)/.suites
DOCS   := $(VENV)/.docs

# `make train` runs these in a shell where $out is a new folder.
TRAIN  = $(BIN)/esrl train $(RECIPE) --out "$$out" $(ARGS)
RENDER = $(BIN)/esrl render "$$out"

.DEFAULT_GOAL := help
.PHONY: help setup suites train test lint format lines matrix gpu wheels figures docs clean

help:  ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

setup: $(STAMP)  ## Make .venv with everything installed (PYTHON=python3.12 for another Python)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "esrl needs Python 3.11 or newer, '$(PYTHON)' is not: try make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

suites: $(SUITES)  ## Add the other suites of environments (the tests of their adapters need them)

$(SUITES): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,suites,atari,dev,docs]'
	@touch $@

train: setup  ## Train Hopper with EGGROLL and render it (RECIPE=... OUT=... ARGS=...)
	@out=$(OUT); n=2; while [ -e "$$out" ]; do out=$(OUT)-$$n; n=$$((n + 1)); done; \
	set -ex; $(TRAIN); $(RENDER)

test: suites  ## Run the tests (WORKERS=2 ARGS=...)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: setup  ## Check style, types, and that rooms import downwards
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Rewrite to the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lines: setup  ## Print the lines of each room, and who imports whom
	$(BIN)/python -m experiments.house.run

matrix:  ## Run a short set of tests with the oldest and newest Python and JAX, each in an environment of its own
	$(PYTHON) -m experiments.matrix.run $(ARGS)

gpu:  ## Test and measure on a GPU, in under 8 minutes (PYTHON=... with its JAX; WHEELS=folder of what else is needed)
	@python=$(PYTHON); if [ -d $(WHEELS) ]; then \
	  $(PYTHON) -m venv --system-site-packages .gpu && python=.gpu/bin/python && \
	  $$python -m pip install --disable-pip-version-check -q --no-index --no-deps --find-links $(WHEELS) $(WHEELS)/*.whl; \
	elif [ -x $(BIN)/python ] && [ $(PYTHON) = python3 ]; then python=$(BIN)/python; fi; \
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $$python -m experiments.gpu.run $(ARGS)

wheels:  ## Download what `make gpu` needs beside a machine's own JAX and Flax (GPU_PYTHON=3.12)
	$(PYTHON) -m pip download --disable-pip-version-check -q --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) \
	  -d $(WHEELS) -r experiments/gpu/requirements.txt

figures: setup  ## Redraw plots/*.png and the report from the results that are there
	$(BIN)/python -m plots.redraw
	$(BIN)/python -m experiments.report.build

docs: $(DOCS)  ## Build the site of the documentation into site/, strictly and offline
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,dev,docs]'
	@touch $@

clean:  ## Remove .venv and caches; runs/ stays
	rm -rf $(VENV) .matrix .gpu wheels build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
