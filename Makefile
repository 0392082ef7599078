# make demo   install, then let the embedded model draw, edit, answer and think; writes demo/index.html
# make test   install, then lint and the fast tests
# make lint   install, then lint, format and types
# make fast   install, then the fast tests; CORES=1 in one process
# make slow   install, then the slow tests, likewise
# make docs   install, then the site, into site/
# make screenshots   install, then the pictures of the page in docs/images; needs Chromium
# make venv   install alone
# make bench-full   the official size with random weights (writes 30 GB into runs/full once; half an hour)
# make clean  remove what the others made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the demo needs, and what the tests need beside it.
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# The exact version is named on pip's command line, and first: a range would let pip take another build of PyTorch.
TORCH := $(shell grep -E '^torch==' constraints.txt)
INSTALL := $(BIN)/python -m pip install $(TORCH) -c constraints.txt

# Tests run in as many processes as there are cores, up to four; each computes with one thread.
CORES = $$($(BIN)/python -c 'from bagel_mot.threads import usable_cores; print(min(4, usable_cores()))')
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES)

.PHONY: venv demo test lint fast slow docs screenshots bench-full clean
.DEFAULT_GOAL := test

venv: $(DEV)

$(BASE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing into $(VENV): PyTorch and some 40 packages, for a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL)
	$(INSTALL) -e .
	@touch $@

$(DEV): $(BASE)
	@echo "Installing what the tests need into $(VENV): about 80 packages, for some minutes the first time."
	$(INSTALL) -e ".[dev]"
	@touch $@

demo: $(BASE)
	$(BIN)/bagel demo

test: lint fast

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fast: venv
	$(PYTEST) -m "not slow"

# pytest's status 5 says that no test is marked slow, which is no failure.
slow: venv
	$(PYTEST) -m slow || test $$? -eq 5

screenshots: venv
	BAGEL_REQUIRE_BROWSER=1 BAGEL_README_SCREENSHOTS=1 $(BIN)/python -m pytest -q tests/app -m screenshot

docs: venv
	$(BIN)/python -m mkdocs build --strict

bench-full: venv
	$(BIN)/python benchmarks/full.py

clean:
	rm -rf $(VENV) build dist demo site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find bagel_mot tests -name __pycache__ -type d -prune -exec rm -rf {} +
